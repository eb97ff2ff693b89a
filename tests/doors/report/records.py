"""Records like those of `prune` and `study`, of any size and without a model, to make reports of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from reprune.doors.records.study import Study
from reprune.doors.report.rows import bring_together
from reprune.doors.report.verdict import Verdict
from reprune.doors.report.verdict_study import study_verdict

MATRICES = {
    **{f"self_attn.{name}": (64, 32) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{f"mlp.{name}": (96, 32) for name in ("gate_proj", "up_proj", "down_proj")},
}
SOURCE = {"name": "valid.txt", "count": 32, "documents": 1, "sha256": "4c" * 32, "role": "calibration"}
HARNESS = {"data": "hub", "precision": "bfloat16", "harness": "lm-eval 0.4.12"}
MODEL: dict[str, Any] = {"fingerprint": "ab" * 32, "files": {"config.json": "ac" * 32}}
RUNGS = ("LR", "BR", "BR+GP", "BR+GP+CR", "auto")
VERSIONS = {"reprune": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.24.0"}


def pair(before: float, after: float) -> dict[str, float]:
    return {"before": before, "after": after}


def window(
    index: int,
    calibration: Sequence[float],
    heldout: Sequence[float],
    *,
    blocks: Sequence[int] | None = None,
    kept: int | None = None,
    planned: int | None = None,
    guard: bool = True,
) -> dict[str, Any]:
    """A window by its relative errors at the start and after each epoch.

    Args:
        kept: the epoch kept; by default the guard's choice, or the last.
        planned: the planned number of epochs; by default those that there are.
    """
    epochs = len(heldout) - 1
    if kept is None:
        kept = min(range(epochs + 1), key=lambda epoch: heldout[epoch]) if guard else epochs
    errors = pair(calibration[0], calibration[kept]), pair(heldout[0], heldout[kept])
    saved = {"last": heldout[-1], "kept": heldout[kept]}
    note = {
        "on": guard,
        "planned_epochs": planned or epochs,
        "run_epochs": epochs,
        "stopped_early": epochs < (planned or epochs),
        "restored": kept < epochs,
        "relative_heldout_error": saved,
        "standardized_heldout_error": saved,
        "failures": [],
    }
    return {
        "index": index,
        "blocks": list(blocks or [index]),
        "loss": "squared",
        "teacher_forcing": 0.0,
        "largest_feature": 0.1 if epochs else None,
        "relative_calibration_error": errors[0],
        "relative_heldout_error": errors[1],
        "calibration_error": {when: 40 * error for when, error in errors[0].items()},
        "heldout_error": {when: 40 * error for when, error in errors[1].items()},
        "standardized_heldout_error": errors[1] if epochs else {"before": None, "after": None},
        "epochs": [
            {
                "epoch": number,
                "relative_calibration_error": c,
                "relative_heldout_error": h,
                "standardized_heldout_error": h,
                "relative_lr": 0.01,
            }
            for number, (c, h) in enumerate(zip(calibration, heldout, strict=True))
            if number
        ],
        "relative_lr": 0.01 if epochs else None,
        "kept_epoch": kept,
        "reconstructed": list(blocks or [index]) if kept else [],
        "guard": note if epochs else None,
        "least_squares": [],
        "seconds": 6.0 + index % 3,
    }


def fitted(index: int, blocks: int = 18, *, epochs: int = 3, overfits: bool = False, level: float = 1.0) -> Any:
    """A window whose errors fall; if it `overfits`, its held-out error rises again."""
    start = level * 0.004 * (1 + index) ** 0.6
    calibration = [start * 0.8**epoch for epoch in range(epochs + 1)]
    fall = [start * 1.2 * 0.88**epoch for epoch in range(epochs + 1)]
    turn = [start * 1.2 * (0.85 + 0.09 * abs(epoch - 1)) for epoch in range(epochs + 1)]
    return window(index, calibration, turn if overfits else fall, blocks=[min(index, blocks - 1)])


def block(index: int, calibration: float, heldout: float) -> dict[str, Any]:
    """A block by its relative errors."""
    return {
        "index": index,
        "sparsity": 0.5,
        "calibration_error": calibration * 10 ** (index / 4),
        "heldout_error": heldout * 10 ** (index / 4),
        "relative_calibration_error": calibration,
        "relative_heldout_error": heldout,
    }


def distilled(after: float) -> dict[str, Any]:
    """The record of a distillation that changed a divergence from 0.1 to `after`."""
    return {
        "blocks": [2, 3],
        "heldout_divergence": pair(0.1, after),
        "last_block": {f"relative_{which}_error": pair(0.02, 0.03) for which in ("calibration", "heldout")},
        "epochs": [{"epoch": 1, "calibration_divergence": 0.1, "heldout_divergence": after}],
        "kept_epoch": 1,
        "seconds": 3.0,
    }


def run_record(count: int = 4, **changes: Any) -> dict[str, Any]:
    """reprune.json of a run whose second window overfits and is restored to an earlier state.

    Args:
        changes: replacements of top-level keys.
    """
    matrices = [
        {"name": name, "rows": rows, "columns": columns, "zeros": rows * columns // 2, "sparsity": 0.5}
        for name, (rows, columns) in MATRICES.items()
    ]
    return {
        "recipe": {
            "model": "tiny-llama",
            "pruner": {"name": "wanda"},
            "sparsity": "0.5",
            "reconstruct": "BR+GP",
            "calibration": ["valid.txt"],
            "samples": 32,
        },
        "model": {"name": "tiny-llama", **MODEL},
        "versions": VERSIONS,
        "seed": 0,
        "data": {"sha256": "cd" * 32, "sources": [SOURCE, {**SOURCE, "count": 4, "role": "heldout"}]},
        "sparsity": 0.5,
        "blocks": [{**block(i, 0.01 + 0.002 * i, 0.014 + 0.003 * i), "matrices": matrices} for i in range(count)],
        "windows": [fitted(index, count, overfits=index == 1) for index in range(count)],
        "distillation": None,
        "seconds": 122.4,
        "peak_memory_bytes": {"host": 1_049_620_480, "device": 0},
        "machine": {"system": "Linux x86_64", "threads": 2, "device": "cpu"},
        **changes,
    }


def cell(pruner: str, rung: str, *, seed: int = 0, count: int = 4, zero_shot: bool = False, **changes: Any) -> Any:
    """A finished cell. Up the ladder, the calibration error falls at every step, the test error only up to BR+GP.

    Args:
        changes: replacements of its keys.
    """
    step = {"LR": 0, "BR": 1, "BR+GP": 2, "BR+GP+CR": 3, "auto": 2.4}[rung]
    base = {"sparsegpt": 0.056, "wanda": 0.094, "magnitude": 0.24}[pruner] * (1 + 0.03 * seed)
    calibration = base * 0.62**step
    heldout = base * 1.15 * 0.75**step
    test = base * 1.6 * (0.75**step if step < 3 else 0.75**2 * 1.08)
    perplexity = 26.9 * (1 + 14 * test if pruner != "magnitude" else 1 + 200 * test**2)
    waves = [0.1 + 0.9 * ((i + 1) / count) ** 2 + 0.12 * math.sin(i) ** 2 for i in range(count)]
    made: dict[str, Any] = {
        "name": f"{pruner}-{rung}-seed{seed}",
        "pruner": pruner,
        "sparsity": "0.5",
        "rung": rung,
        "only": "all",
        "seed": seed,
        "self_generate": 0,
        "status": "done",
        "error": None,
        "folder": f"cells/{pruner}-{rung}-seed{seed}",
        "calibration_error": calibration * 2.3e6,
        "heldout_error": heldout * 2.3e6,
        "relative_calibration_error": calibration,
        "relative_heldout_error": heldout,
        "test_error": {"test.txt": {"normalized": test * 2.3e6, "relative": test}},
        "perplexity": {"test.txt": perplexity},
        "zero_shot": {},
        "zero_shot_mean": None,
        "seconds": 50.0 * (1 + step) ** 1.2,
        "peak_memory_bytes": {"host": 1_050_000_000 + (160_000_000 if step > 2 else 0), "device": 0},
        "blocks": [
            {
                **block(i, calibration * wave, heldout * wave),
                "test_error": {"test.txt": {"normalized": test * wave, "relative": test * wave}},
            }
            for i, wave in enumerate(waves)
        ],
        "windows": [
            fitted(i, count, epochs=3 if step else 0, overfits=step > 2 and i % 5 == 2, level=base / 0.05)
            for i in range(count)
        ],
    }
    if zero_shot:
        score = {"accuracy": 0.52 - test / 2, "standard_error": 0.021, "examples": 500}
        made |= {"zero_shot": {"boolq": score, "arc_easy": score}, "zero_shot_mean": score["accuracy"]}
    return {**made, **changes}


def study_record(cells: Sequence[Any] | None = None, *, zero_shot: bool = False, **changes: Any) -> dict[str, Any]:
    """study.json of the whole grid, or of these cells.

    Args:
        changes: replacements of top-level keys.
    """
    if cells is None:
        pruners = ("magnitude", "wanda", "sparsegpt")
        cells = [cell(pruner, rung, zero_shot=zero_shot) for pruner in pruners for rung in RUNGS]
    score = {"metric": "acc", "accuracy": 0.55, "standard_error": 0.02, "examples": 500, "sha256": "ee" * 32}
    tasks = {"boolq": score, "arc_easy": score}
    found = {
        "perplexity": 26.91,
        "protocol": "short",
        "seqlen": 512,
        "windows": 12,
        "tokens": 12 * 511,
        "bos": True,
        "begun": True,
        "precision": "bfloat16",
        "text_sha256": "ef" * 32,
    }
    return {
        "kind": "reprune study",
        "format": 1,
        "model": {"name": "gemma-3-270m", **MODEL},
        "versions": VERSIONS,
        "packages": {},
        "machine": {"system": "Linux x86_64", "threads": 2, "device": "cpu"},
        "settings": {"sparsity": "0.5", "solver": {"epochs": 3, "lr": 0.0002}, "calibration": ["valid.txt"]},
        "measures": {"texts": {"test.txt": "ef" * 32}, "protocol": "short", "seqlen": None, "zero_shot": []},
        "data": {"0": {"sha256": "cd" * 32, "sources": [SOURCE]}},
        "dense": {
            "perplexity": {"test.txt": found},
            "zero_shot": {"mean": 0.55, "tasks": tasks, **HARNESS} if zero_shot else None,
        },
        "cells": list(cells),
        **changes,
    }


def said(verdict: Verdict) -> str:
    """All words of a verdict, with plain spaces."""
    return " ".join([verdict.headline, *verdict.sentences]).replace("\N{NO-BREAK SPACE}", " ")


def judged(*cells: Any, **changes: Any) -> Verdict:
    """The verdict on a study of these cells; without any, of a whole grid."""
    study = Study.model_validate(study_record(cells or None, **changes))
    return study_verdict(study, bring_together(study))


def verdict_on(cells: list[Any] | None = None, **changes: Any) -> str:
    """All words of the same verdict."""
    return said(judged(*(cells or ()), **changes))
