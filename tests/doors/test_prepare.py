"""What a run needs is checked before anything is written, and refused only if it cannot be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reprune.doors import prepare
from reprune.errors import InputError
from reprune.planning.layers import resolve_recipe
from reprune.planning.recipe import Recipe
from reprune.planning.sources import SourceSpec


class _Model:
    """A stand-in for a model with so many blocks."""

    vocabulary = 100
    name = "model"
    checkpoint = SimpleNamespace(bytes=1000, undownloaded_bytes=0)
    folder = Path("model")

    def __init__(self, limit: int | None, blocks: int) -> None:
        self.blocks = blocks
        self.skeleton = SimpleNamespace(max_positions=limit, running=list(range(blocks)))
        self.asked = 0

    def __len__(self) -> int:
        return self.blocks

    def width(self, tokens: int) -> int:
        return 8 + tokens

    def own_bytes(self, tokens: int) -> int:
        return 7 * tokens

    def check_predicts(self) -> None:
        self.asked += 1


def _model(limit: int | None = None, blocks: int = 3) -> Any:
    return _Model(limit, blocks)


def _recipe(**content: Any) -> Recipe:
    return resolve_recipe("m", {"calibration": ["manual"], "seqlen": 10, **content})


def _refused(check: Callable[[], object]) -> bool:
    return prepare.refusal(check) is not None


@pytest.mark.parametrize(
    ("asked", "limit", "settled"),
    [(None, None, 1024), (None, 2048, 1024), (None, 128, 128), (128, 128, 128), (2048, None, 2048), (129, 128, None)],
)
def test_a_sample_is_as_long_as_asked_or_as_the_model_takes(
    asked: int | None, limit: int | None, settled: int | None
) -> None:
    recipe = _recipe(seqlen=asked)
    if settled is not None:
        assert prepare.settle_seqlen(recipe, _model(limit)).seqlen == settled
        return
    with pytest.raises(InputError, match=f"--seqlen {asked}: model takes at most {limit} tokens; give that or less"):
        prepare.settle_seqlen(recipe, _model(limit))


@pytest.mark.parametrize(("blocks", "asked", "refused"), [(0, 0, False), (3, 1, False), (4, 0, True)])
def test_as_many_blocks_are_distilled_as_there_are_and_then_predict(blocks: int, asked: int, refused: bool) -> None:
    model = _model()
    recipe = _recipe(distill={"blocks": blocks})
    assert _refused(lambda: prepare.check_distillation(recipe, model)) == refused
    assert model.asked == asked


@pytest.mark.parametrize(("blocks", "refused"), [(0, False), (1, True), (2, False), (3, False)])
def test_of_the_blocks_that_are_distilled_text_passes_through_one(blocks: int, refused: bool) -> None:
    model = _model()
    model.skeleton.running = [0, 1]
    assert _refused(lambda: prepare.check_distillation(_recipe(distill={"blocks": blocks}), model)) == refused


@pytest.mark.parametrize(
    ("blocks", "size", "stride", "refused"),
    [
        *((3, 3, 1, False), (3, 3, 3, False), (3, 4, 1, True), (3, 4, 3, True), (3, 4, 4, False), (3, 900, 900, False)),
        *((1, 2, 1, False), (1, 3, 1, True)),  # windows of two blocks are those of rungs
    ],
)
def test_overlapping_windows_are_no_larger_than_the_model(blocks: int, size: int, stride: int, refused: bool) -> None:
    recipe = _recipe(schedule={"size": size, "stride": stride})
    assert _refused(lambda: prepare.check_schedule(recipe, _model(blocks=blocks))) == refused


def test_the_disk_has_room_for_the_weights_and_for_states_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "disk_bytes", lambda recipe, blocks, stream, own, files: blocks + stream + own + files)
    needed = 3 + 5 * 10 * (8 + 10) * 4 + 5 * 7 * 10 + 1000
    out = tmp_path / "not" / "there"
    usage = shutil.disk_usage(tmp_path)
    for free in (needed, needed - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert _refused(lambda: prepare.check_disk(_recipe(), _model(), 5, out)) == (free < needed)


@pytest.mark.parametrize(
    ("texts", "free", "refused"),
    [
        (0, 24, None),
        (0, 23, "--device cpu: a window"),
        (1, 50, None),
        (1, 49, "--self-generate 2: the whole model"),
        (1, None, None),
    ],
)
def test_the_memory_has_room_for_a_window_and_for_a_whole_model_that_writes(
    texts: int, free: int | None, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "least_memory_bytes", lambda recipe, schedule, parameters: sum(parameters))
    monkeypatch.setattr(prepare, "whole_bytes", lambda *_: 50)
    model = _model()
    model.shapes = lambda index: {"a": (index + 1, 2), "b": (4,)}  # 6 + 8 + 10 parameters
    recipe = _recipe(device="cpu", precision="float32", self_generate={"samples": 2})
    monkeypatch.setattr(prepare, "available_memory", lambda device: free)
    said = prepare.refusal(lambda: prepare.check_memory(recipe, model, texts))
    assert said is None if refused is None else said is not None and said.startswith(refused)


@pytest.mark.parametrize(("largest", "refused"), [(99, False), (100, True)])
def test_each_token_has_a_row_of_the_embedding(largest: int, refused: bool) -> None:
    assert _refused(lambda: prepare.check_ids("m", torch.tensor([[3, largest], [5, 0]]), 100)) == refused


@pytest.mark.parametrize(("calibration", "heldout"), [(99, 100), (100, 99), (99, 99)])
def test_samples_are_of_all_sources_and_their_tokens_are_looked_at(
    calibration: int, heldout: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def draw(tokenizer: Any, *sources: Any, **options: Any) -> Any:
        asked.append((*sources, options))
        return SimpleNamespace(calibration=torch.tensor([[calibration, 1]]), heldout=torch.tensor([[heldout, 1]]))

    monkeypatch.setattr(prepare, "draw_samples", draw)
    monkeypatch.setattr(prepare, "load_tokenizer", lambda *_: None)
    recipe = _recipe(calibration=["manual=8"], heldout=["c4=3"], self_generate={"samples": 9}, samples=12, seed=5)
    refused = _refused(lambda: prepare.draw(recipe, _model(), Path("own.jsonl")))
    assert refused == (max(calibration, heldout) > 99)
    sources = [SourceSpec("manual", 8), SourceSpec("own.jsonl", 9)], [SourceSpec("c4", 3)]
    assert asked == [(*sources, {"samples": 12, "seqlen": 10, "seed": 5, "local": False})]


def test_samples_to_calibrate_on_are_counted_before_those_held_out_with_the_models_own() -> None:
    assert prepare.count_samples(_recipe(calibration=["manual=8"], heldout=["manual=3"])) == (8, 3)
    assert prepare.count_samples(_recipe(calibration=["manual=8"], self_generate={"samples": 9})) == (17, 3)


def test_an_empty_folder_may_be_written_to_and_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "here").symlink_to("empty")
    for name in ("empty", "here", "here/below", "new/and/deep"):
        prepare.check_out(tmp_path / name)
    for name, said in (
        ("full", "is not empty"),
        ("full/notes.txt", "is a file"),
        ("full/notes.txt/below", "notes.txt is a file"),
    ):
        with pytest.raises(InputError, match=said):
            prepare.check_out(tmp_path / name)
    assert not (tmp_path / "new").exists()
