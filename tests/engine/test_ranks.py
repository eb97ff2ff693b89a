"""Several processes that share the samples get the result of a single one, whatever the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import reprune
from reprune.doors.api import prune_by_recipe
from reprune.engine.watcher import Watcher
from reprune.planning.layers import resolve_recipe
from tests import tiny
from tests.engine import together
from tests.engine.quick import tensors

TOLERANCE = 1e-4
"""Relative to a model's weights: sums over samples are taken in another order, and nothing else differs."""

_COMMON: dict[str, Any] = {
    "samples": 9,  # not divisible by any tested number of processes
    "seqlen": 24,
    "device": "cpu",
    "precision": "float32",
    "solver": {"epochs": 2, "lr": 1e-3, "batch_size": 4},
}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "LR, SparseGPT": ("llama", {"reconstruct": "LR"}),
    "LR, Wanda 2:4": ("llama", {"reconstruct": "LR", "pruner": {"name": "wanda"}, "sparsity": "2:4"}),
    "LR, magnitude": ("llama", {"reconstruct": "LR", "pruner": {"name": "magnitude"}}),
    "LR, group by group": ("llama", {"reconstruct": "LR", "pruner": {"sequential": True}}),
    "BR": ("llama", {"reconstruct": "BR"}),
    "BR+GP+CR": ("llama", {"reconstruct": "BR+GP+CR"}),
    "auto": ("llama", {"reconstruct": "auto"}),
    "least squares": ("llama", {"reconstruct": "BR+GP", "solver": {"start": "least-squares"}}),
    "no guard, in parts": ("llama", {"reconstruct": "BR+GP", "guard": "off", "solver": {"micro_batch_size": 1}}),
    "kept weights": ("llama", {"reconstruct": "BR+GP", "solver": {"compact": True, "checkpointing": True}}),
    "standardized": ("llama", {"reconstruct": "BR+GP+CR", "solver": {"loss": "standardized", "teacher_forcing": 0.5}}),
    "low rank": ("llama", {"reconstruct": "BR+GP", "solver": {"rank": 2}}),
    "by error": ("llama", {"reconstruct": "BR", "allocation": {"name": "by-error"}}),
    "owl, on disk": ("llama", {"reconstruct": "LR", "allocation": {"name": "owl"}, "streams": {"memory": 0}}),
    "float16, some without a sample": (
        "llama",
        {
            "pruner": {"name": "magnitude"},
            "precision": "float16",
            "distill": {"blocks": 1},
            "solver": {"batch_size": 1},
        },
    ),
    "experts": ("mixtral", {"reconstruct": "BR+GP", "pruner": {"min_tokens": 4}}),
    "experts, as the teacher": ("mixtral", {"reconstruct": "BR+GP", "solver": {"routing": "teacher"}}),
    "shared keys": ("gemma4", {"reconstruct": "BR+GP+CR", "distill": {"blocks": 2}}),
    "distilled": ("llama", {"reconstruct": "BR+GP", "distill": {"blocks": 2}, "solver": {"micro_batch_size": 1}}),
}

COUNTS: dict[int, list[str]] = {
    2: list(RECIPES),
    4: ["BR+GP+CR", "least squares", "owl, on disk", "float16, some without a sample", "experts", "distilled"],
}
"""The recipes by the number of processes that run them: for four, one recipe for each kind of sum exchanged."""


def lay_out(root: Path) -> None:
    """Write the models of all recipes and their text.

    The text does not depend on Python's version: two of thousands of scores can be so close that the order of a sum
    decides which weight is pruned, and whether there are such scores depends on the text.
    """
    for name in {model for model, _ in RECIPES.values()}:
        tiny.save(name, root / name)
    (root / "text.txt").write_text(tiny.LICENCE, encoding="utf-8")


def job(root: Path, place: str, name: str, **more: Any) -> tuple[str, str, dict[str, Any]]:
    """A run as its model, the result's folder and the recipe."""
    model, own = RECIPES[name]
    solver = {**_COMMON["solver"], **own.get("solver", {})}
    content = {**_COMMON, "calibration": [str(root / "text.txt")], **own, "solver": solver, **more}
    return str(root / model), str(root / place / name), content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of every recipe run by one process and by two, and of some by four."""
    root = tmp_path_factory.mktemp("ranks")
    lay_out(root)
    (root / "1").mkdir()
    for model, out, content in [job(root, "1", name) for name in RECIPES]:
        prune_by_recipe(resolve_recipe(model, content), Path(out), Watcher())
    for count, names in COUNTS.items():
        jobs = [job(root, str(count), name) for name in names]
        (root / str(count)).mkdir()
        (root / f"worked-{count}").mkdir()
        for ended in [rank.wait(300) for rank in together.start(count, together.prune, jobs, root / f"worked-{count}")]:
            assert ended.code == 0, ended.err
    return root


@pytest.mark.parametrize(("count", "name"), [(count, name) for count, names in COUNTS.items() for name in names])
def test_the_result_is_that_of_one_process(folder: Path, name: str, count: int) -> None:
    one, other = tensors(folder / "1" / name), tensors(folder / str(count) / name)
    assert one.keys() == other.keys()
    off = sum(float((tensor - other[key]).double().square().sum()) for key, tensor in one.items())
    power = sum(float(tensor.double().square().sum()) for tensor in one.values())
    assert (off / power) ** 0.5 <= TOLERANCE
    records = [json.loads((folder / place / name / "reprune.json").read_text()) for place in ("1", str(count))]
    assert records[0]["sparsity"] == records[1]["sparsity"]
    for mine, theirs in zip(*(record["blocks"] for record in records), strict=True):
        for key in ("calibration_error", "heldout_error"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3)
        assert [matrix.get("tokens") for matrix in mine["matrices"]] == [
            matrix.get("tokens") for matrix in theirs["matrices"]
        ]
    assert reprune.verify(folder / str(count) / name).passed


@pytest.mark.parametrize("count", [2, 4])
def test_all_processes_have_the_same_record_and_it_says_what_they_exchanged(folder: Path, count: int) -> None:
    name = "BR+GP+CR"
    told = [json.loads((folder / f"worked-{count}" / f"{name}-{rank}.json").read_text()) for rank in range(count)]
    assert all(one["blocks"] == told[0]["blocks"] for one in told)
    assert told[0]["ranks"] == count
    for window in told[0]["windows"]:
        assert len(window["exchange"]["bytes"]) == len(window["exchange"]["seconds"]) == count
        assert min(window["exchange"]["bytes"]) > 0
    assert len(told[0]["peak_memory_bytes_by_rank"]) == count
    assert told[0]["peak_memory_bytes_by_rank"][0] == told[0]["peak_memory_bytes"]
    assert "ranks" not in json.loads((folder / "1" / name / "reprune.json").read_text())


@pytest.mark.parametrize("count", [2, 4])
def test_the_record_says_what_was_exchanged_while_blocks_were_distilled(folder: Path, count: int) -> None:
    record = json.loads((folder / str(count) / "distilled" / "reprune.json").read_text())
    exchange = record["distillation"]["exchange"]
    assert len(exchange["bytes"]) == len(exchange["seconds"]) == count
    assert min(exchange["bytes"]) > 0
    assert "exchange" not in json.loads((folder / "1" / "distilled" / "reprune.json").read_text())["distillation"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_nothing_but_the_result_is_left(folder: Path, count: int) -> None:
    for name in COUNTS.get(count, RECIPES):
        assert not (folder / str(count) / name / ".reprune").exists()


def test_processes_whose_statistics_end_with_a_batch_and_within_one_go_on_alike(tmp_path: Path) -> None:
    """Of nine samples that give statistics one process has five and the other four, which are a batch.

    A block that stays dense has none to gather.
    """
    model, half = tiny.save("llama", tmp_path / "model"), len(tiny.LICENCE) // 2
    sources = {"first.txt": tiny.LICENCE[:half], "second.txt": tiny.LICENCE[half:]}
    for name, text in sources.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    content = {
        **_COMMON,
        "samples": 18,
        "calibration": [f"{tmp_path / name}=9" for name in sources],
        "reconstruct": "LR",
        "pruner": {"name": "wanda", "statistics": "first"},
        "exclude": ["0.*"],
    }
    jobs = [(str(model), str(tmp_path / "out"), content)]
    for ended in [rank.wait(300) for rank in together.start(2, together.prune, jobs, tmp_path)]:
        assert ended.code == 0, ended.err
    assert reprune.verify(tmp_path / "out").passed


@pytest.mark.parametrize("name", ["BR+GP+CR", "least squares"])
def test_zeros_are_at_the_same_places(folder: Path, name: str) -> None:
    one, two = tensors(folder / "1" / name), tensors(folder / "2" / name)
    differ = sum(int(((tensor == 0) != (two[key] == 0)).sum()) for key, tensor in one.items())
    assert differ == 0
    assert torch.equal(one["model.embed_tokens.weight"], two["model.embed_tokens.weight"])
