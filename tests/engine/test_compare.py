"""Models with the same shapes are compared, relative to the dense one, within the memory that is allowed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reprune.engine.compare import check_alike, compare, sparsity
from reprune.errors import InputError
from reprune.model.decoder import Decoder
from tests import tiny

_IDS = torch.arange(20).view(5, 4)


class _Shaped:
    """A decoder whose blocks have tensors of these shapes."""

    def __init__(self, name: str, *blocks: dict[str, tuple[int, ...]]) -> None:
        self.name, self.vocabulary, self._blocks = name, 10, blocks
        self.skeleton = SimpleNamespace(config=SimpleNamespace(model_type="a", hidden_size=4))

    def __len__(self) -> int:
        return len(self._blocks)

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return self._blocks[index]


def test_every_block_of_both_has_to_be_alike() -> None:
    plain, wide, more = {"up": (4, 2)}, {"up": (4, 3)}, {"up": (4, 2), "bias": (4,)}
    models: dict[str, Any] = {
        "same": _Shaped("same", plain, plain),
        "dense": _Shaped("dense", plain, plain),
        "wide": _Shaped("wide", plain, wide),
        "more": _Shaped("more", plain, more),
    }
    check_alike(models["same"], models["dense"])
    for one, other, message in (
        ("wide", "dense", r"wide and dense differ in the shape of up in block 1 \(\[4, 3\] and \[4, 2\]\)"),
        ("more", "dense", r"more and dense differ in the shape of bias in block 1 \(\[4\] and none\)"),
        ("dense", "more", r"dense and more differ in the shape of bias in block 1 \(none and \[4\]\)"),
    ):
        with pytest.raises(InputError, match=message):
            check_alike(models[one], models[other])


def test_an_error_is_relative_to_the_dense_model(tmp_path: Path) -> None:
    dense, model = tiny.save("llama", tmp_path / "dense"), tiny.build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(3)
    model.save_pretrained(tmp_path / "sparse")
    (work := tmp_path / "work").mkdir()
    found = compare(Decoder(tmp_path / "sparse"), Decoder(dense), _IDS, 2, 10**9, work)
    assert found.embedding.relative == pytest.approx(4.0)
    same = compare(Decoder(dense), Decoder(dense), _IDS, 2, 10**9, work)
    assert same.embedding.relative == 0.0


@pytest.mark.parametrize(("memory", "free"), [(10**9, 0), (0, 10**9), (0, 0)])
def test_streams_that_memory_holds_need_no_disk_and_others_room_there(
    memory: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny.save("llama", tmp_path / "dense")
    (work := tmp_path / "work").mkdir()
    monkeypatch.setattr("reprune.engine.compare.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    files: list[int] = []
    told: list[tuple[int, int]] = []

    def progress(done: int, of: int) -> None:
        files.append(len(list(work.iterdir())))
        told.append((done, of))

    def measure() -> None:
        compare(Decoder(dense), Decoder(dense), _IDS, 2, memory, work, progress)

    if memory or free:
        measure()
        assert files == [0 if memory else 2] * 9
        assert told == [(number, 9) for number in range(1, 10)], "three batches a block"
    else:
        with pytest.raises(InputError, match=f"{tmp_path}: the hidden states of this text take"):
            measure()


def test_states_of_several_streams_a_token_are_compared_whole(tmp_path: Path) -> None:
    dense, model = tiny.save("deepseek_v4", tmp_path / "dense"), tiny.build("deepseek_v4")
    ids = torch.arange(32).view(2, 16)
    with torch.no_grad():
        for parameter in model.model.layers[1].parameters():
            parameter.mul_(1.1)
    model.save_pretrained(tmp_path / "other")
    found = compare(Decoder(tmp_path / "other"), Decoder(dense), ids, 2, 10**9, tmp_path)
    assert (found.embedding.relative, found.blocks[0].relative) == (0.0, 0.0)
    assert all(block.relative > 0 for block in found.blocks[1:])


def test_a_block_without_linears_has_no_zeros() -> None:
    block: Any = SimpleNamespace(linears=[])
    assert sparsity(block) == 0.0
