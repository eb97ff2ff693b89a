"""The records of a run, in the form of reprune.json. Knows nothing of how the numbers were computed."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from reprune import __version__
from reprune.engine.peak_memory import peak_memory_bytes
from reprune.engine.window import PrunedBlock
from reprune.math.ranks import Ranks, Traffic
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Errors, Fit
from reprune.math.standardization import FeatureStatistics
from reprune.model.linears import Linear
from reprune.planning.choice import Choice
from reprune.planning.descents import SolverRecipe
from reprune.planning.paths import last_part, local_name, on_record, with_paths
from reprune.planning.pruners import package
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window
from reprune.planning.sparsities import Sparsities


def window_record(
    window: Window,
    fit: Fit,
    after: Errors,
    solver: SolverRecipe,
    features: FeatureStatistics | None,
    fresh: Sequence[PrunedBlock],
    notes: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """One entry of `windows`: errors against the window's own targets, before and after its reconstruction.

    Args:
        window, fit, after: the window, what the solver did to it, and its errors afterwards.
        solver: its loss is the measure of the relative errors.
        features: statistics of the targets; None if nothing was fitted to them.
        fresh: the blocks that were pruned in this window.
        notes: exceptions from the plain rule, such as a raised damping, and where they were made.
        seconds: how long the window took.
    """
    before = fit.before or after
    standardized = solver.standardizes

    def change(error_of: Callable[[Errors], float | None]) -> dict[str, float | None]:
        return {"before": error_of(before), "after": error_of(after)}

    return {
        "index": window.index,
        "blocks": list(window.blocks),
        "loss": "standardized" if standardized else "squared",
        "teacher_forcing": solver.teacher_forcing,
        "largest_feature": None if features is None else features.largest_share,
        "calibration_error": change(lambda errors: errors.calibration.normalized),
        "heldout_error": change(lambda errors: errors.heldout.normalized),
        "relative_calibration_error": change(lambda errors: errors.calibration.in_measure(standardized)),
        "relative_heldout_error": change(lambda errors: errors.heldout.in_measure(standardized)),
        "standardized_heldout_error": change(lambda errors: errors.heldout.standardized),
        "epochs": [
            {
                "epoch": epoch.number,
                "relative_calibration_error": epoch.calibration,
                "relative_heldout_error": epoch.heldout,
                "standardized_heldout_error": epoch.judged,
                "lr": epoch.lr,
                "relative_lr": epoch.relative_lr,
                "steps": epoch.steps,
                "blocks": list(window.blocks)[-1:] if epoch.last_part else list(window.blocks),
            }
            for epoch in fit.epochs
        ],
        "relative_lr": fit.relative_lr,
        "kept_epoch": fit.kept_epoch,
        "reconstructed": _reconstructed(window, fit),
        "guard": _guard_record(fit, before.heldout, standardized) if fit.planned_epochs else None,
        "least_squares": [
            {"block": pruned.index, "linears": list(names), "ridge": ridge}
            for pruned in fresh
            for names, ridge in pruned.ridges.items()
        ],
        "notes": list(notes),
        "seconds": round(seconds, 3),
    }


def _reconstructed(window: Window, fit: Fit) -> list[int]:
    """The blocks whose weights the solver changed and kept."""
    kept = [epoch for epoch in fit.epochs if epoch.number <= fit.kept_epoch]
    if not kept:
        return []
    return list(window.blocks)[-1:] if all(epoch.last_part for epoch in kept) else list(window.blocks)


def _guard_record(fit: Fit, start: Error, standardized: bool) -> dict[str, Any]:
    """What the guard did to a window: epochs that it saved, and the held-out errors of the last and the kept state."""
    relative = [start.in_measure(standardized), *(epoch.heldout for epoch in fit.epochs)]
    judged = [start.judged, *(epoch.judged for epoch in fit.epochs)]
    return {
        "on": fit.guarded,
        "planned_epochs": fit.planned_epochs,
        "run_epochs": len(fit.epochs),
        "stopped_early": len(fit.epochs) < fit.planned_epochs,
        "restored": fit.kept_epoch < len(fit.epochs),
        "failures": [str(failure) for failure in fit.failures],
        "relative_heldout_error": {"last": relative[-1], "kept": relative[fit.kept_epoch]},
        "standardized_heldout_error": {"last": judged[-1], "kept": judged[fit.kept_epoch]},
    }


def exchange_record(ranks: Ranks, before: Traffic) -> dict[str, Any]:
    """The entry `exchange`: bytes that each process sent since `before`, and seconds; none for a single process."""
    if ranks.alone:
        return {}
    spent = ranks.traffic.since(before)
    sent, seconds = zip(*ranks.each_tells([spent.bytes, round(spent.seconds, 3)]), strict=True)
    return {"exchange": {"bytes": list(sent), "seconds": list(seconds)}}


def block_record(pruned: PrunedBlock, errors: Errors, sparsities: Sparsities, choice: Choice) -> dict[str, Any]:
    """One entry of `blocks`; its errors are the paper's, of the sparse stream against the dense one."""
    linears = [linear for linear in pruned.block.linears if linear.name in pruned.masks]
    matrices = [_matrix_record(pruned, linear, sparsities) for linear in linears]
    return {
        "index": pruned.index,
        "sparsity": _sparsity(matrices),
        "calibration_error": errors.calibration.normalized,
        "heldout_error": errors.heldout.normalized,
        "relative_calibration_error": errors.calibration.relative,
        "relative_heldout_error": errors.heldout.relative,
        "matrices": matrices,
        "idle": pruned.idle(choice),
    }


def _matrix_record(pruned: PrunedBlock, linear: Linear, sparsities: Sparsities) -> dict[str, Any]:
    """One entry of a block's `matrices`; with `pattern` if it is not the run's, and with `tokens` for an expert's."""
    pattern, zeros = sparsities.of(pruned.index, linear.name), int((linear.matrix() == 0).sum())
    rows, columns = linear.shape
    return {
        "name": linear.name,
        "rows": rows,
        "columns": columns,
        "zeros": zeros,
        "sparsity": zeros / (rows * columns),
        **({"pattern": str(pattern)} if pattern != sparsities.base else {}),
        **({"tokens": pruned.tokens[linear.name]} if linear.name in pruned.tokens else {}),
    }


def _sparsity(matrices: Sequence[Mapping[str, Any]]) -> float:
    """The share of zeros among the weights of recorded matrices."""
    weights = sum(matrix["rows"] * matrix["columns"] for matrix in matrices)
    return sum(matrix["zeros"] for matrix in matrices) / weights if weights else 0.0


def versions(*pruners: str) -> dict[str, str]:
    """The versions of everything that determines a result's bits, and of the packages that provide these pruners."""
    return {
        "reprune": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # includes the build, such as +cpu, which package metadata may lack
        **{name: version(name) for name in ("transformers", "safetensors", "tokenizers")},
        **{name: number for pruner in pruners for name, number in package(pruner).items()},
    }


def full_record(
    recipe: Recipe,
    job: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    seconds: float,
    peaks: Sequence[dict[str, int]],
) -> dict[str, Any]:
    """The whole of reprune.json. Local paths are reduced to their last part, because results are meant to be shared.

    `peaks` are the processes' peak memory, in bytes, since the run began or was resumed.
    """
    blocks = list({block["index"]: block for line in lines for block in line["blocks"]}.values())  # the last of each
    here = machine(recipe.device)
    steps = [{**line["window"], **_elsewhere(line, here)} for line in lines]
    for line in lines:  # some may be of processes that were interrupted
        peaks = _highest(peaks, line.get("peaks", ()))
    if own := job.get("self_generation"):
        peaks = _highest(peaks, own["peak_memory_bytes"])
        own = {**own, "peak_memory_bytes": own["peak_memory_bytes"][0]}
    model = Path(job["folder"])
    return {
        "recipe": _without_folders(recipe, model),
        "model": {
            **on_record(recipe.model, model),
            "fingerprint": job["fingerprint"],
            "files": job["weights"],
        },
        "versions": job["versions"],
        "seed": recipe.seed,
        "data": job["data"],
        "sketch": job["sketch"],
        "sparsity": _sparsity([matrix for block in blocks for matrix in block["matrices"]]),
        "blocks": blocks,
        "windows": [step for step in steps if not step.get("distilled")],
        "distillation": next((step for step in steps if step.get("distilled")), None),
        "forward": lines[-1]["forward"],
        "seconds": round(seconds, 3),  # without self-generation, which has its own
        "self_generation": own,
        "peak_memory_bytes": peaks[0],
        "machine": here,
        **({"ranks": len(peaks), "peak_memory_bytes_by_rank": list(peaks)} if len(peaks) > 1 else {}),
    }


def conditions(ranks: Ranks, device: str) -> dict[str, Any]:
    """For the ledger's line of a step: the machine that did it, and the peak memory of each process so far."""
    return {"machine": machine(device), "peaks": ranks.each_tells(peak_memory_bytes(device))}


def _elsewhere(line: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """The machine that did a step, if it is another than the last one, on which the run was resumed."""
    return {} if (there := line.get("machine", here)) == here else {"machine": there}


def _highest(peaks: Sequence[dict[str, int]], before: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    """The higher of two peaks of each process; the earlier ones may be of a different number of processes."""
    pairs = zip(peaks, [*before, *peaks[len(before) :]], strict=False)
    return [{key: max(one[key], other[key]) for key in one} for one, other in pairs]


def machine(device: str) -> dict[str, Any]:
    """What determines times on this machine."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
    }


def _without_folders(recipe: Recipe, model: Path) -> dict[str, Any]:
    named = with_paths(recipe, last_part)
    return named.model_copy(update={"model": local_name(recipe.model, model)}).model_dump(mode="json")
