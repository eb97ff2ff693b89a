"""Blocks are passed what their model passes them, with each sample's own values; other dependencies are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from reprune.errors import UnsupportedModelError
from reprune.model.block import Call
from reprune.model.decoder import Decoder
from reprune.model.passing import Passing, to_device
from reprune.model.streams import StreamStore

from .. import odd, tiny
from .conftest import embedded, slices, states_of


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("quirk", ["per sample, a number", "per sample, a number in an object"])
def test_blocks_that_are_passed_a_number_of_each_batch_are_refused(
    quirk: odd.Quirk, size: int, tmp_path: Path, ids: Tensor
) -> None:
    decoder = Decoder(odd.save(quirk, tmp_path))
    with pytest.raises(UnsupportedModelError, match=r"block 0 is passed .*, which differs from sample to sample"):
        embedded(decoder, ids, size)


@pytest.mark.parametrize("in_memory", [0, 2**30])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize(
    "quirk", ["per sample", "per sample, nested", "per sample, in an object", "per sample, in its own object"]
)
def test_blocks_are_passed_what_is_each_samples_own(
    quirk: odd.Quirk, size: int, in_memory: int, tmp_path: Path, ids: Tensor
) -> None:
    decoder, whole = Decoder(odd.save(quirk, tmp_path / "model")), odd.build(quirk)
    states = embedded(decoder, ids, size, StreamStore(in_memory, tmp_path / "streams").tensor)
    assert (tmp_path / "streams").exists() is (in_memory == 0)
    expected = states_of(whole, "model.layers", ids)
    some = torch.tensor([4, 0, 6])[: min(size, 3)]
    for index in range(len(decoder)):
        block = decoder.load(index)
        with torch.no_grad():
            if len(some) == size:
                torch.testing.assert_close(
                    block.run(states[some], decoder.call(index, some)), expected[index + 1][some]
                )
            states = torch.cat([block.run(states[one], decoder.call(index, one)) for one in slices(len(ids), size)])
        torch.testing.assert_close(states, expected[index + 1])
    turned = embedded(decoder, ids.flip(0), size)  # other samples have other values
    first = slice(0, size)
    with torch.no_grad():
        again = decoder.load(0).run(turned[first], decoder.call(0, first))
    torch.testing.assert_close(again, states_of(whole, "model.layers", ids.flip(0))[1][first])


def test_blocks_that_are_passed_what_earlier_blocks_make_are_refused(tmp_path: Path, ids: Tensor) -> None:
    decoder = Decoder(odd.save("handed on", tmp_path))
    with pytest.raises(UnsupportedModelError, match=r"block 1 is passed .*, which depends on the blocks before it"):
        embedded(decoder, ids)


def test_a_cache_that_is_passed_although_none_is_to_be_kept_is_refused(tmp_path: Path, ids: Tensor) -> None:
    decoder = Decoder(odd.save("cache", tmp_path))
    with pytest.raises(UnsupportedModelError, match="block 0 is passed a DynamicCache though use_cache is False"):
        embedded(decoder, ids)


@pytest.mark.parametrize("name", [*tiny.CONFIGS, *tiny.PARALLEL, *tiny.MIXTURES, *tiny.JOINED])
def test_the_bytes_of_what_is_each_samples_own_are_known_without_weights(
    name: str, tmp_path: Path, ids: Tensor
) -> None:
    """Gemma 3n and 4 have an embedding of each token for each of four blocks; DeepSeek-V4's blocks see its id."""
    decoder = Decoder(tiny.save(name, tmp_path))
    each = decoder.own_bytes(ids.shape[1])
    embedded(decoder, ids)
    assert sum(own.nbytes for own in decoder._passing._own.values()) == len(ids) * each
    assert each == {"gemma3n": 4 * 4 * 8, "gemma4": 4 * 4 * 8, "deepseek_v4": 3 * 8}.get(name, 0) * ids.shape[1]


@pytest.mark.parametrize("quirk", ["per sample", "per sample, nested", "per sample, in its own object"])
def test_so_are_those_of_values_in_others(quirk: odd.Quirk, tmp_path: Path) -> None:
    decoder = Decoder(odd.save(quirk, tmp_path))
    assert decoder.own_bytes(30) == 4 * 30 * len(decoder)


def _calls(*values: Tensor) -> list[Call]:
    return [Call((None, value), {}, 0) for value in values]


def test_each_block_is_passed_what_is_the_own_of_some_samples() -> None:
    for samples in (2, 5, 3):
        own = [torch.randn(samples, samples + 3) for _ in range(3)]  # such as an embedding for each block
        passing = Passing("model", samples)
        for batch in slices(samples, 2):
            others = _calls(*(each.roll(1, 0)[batch] for each in own))
            passing.take(batch, _calls(*(each[batch] for each in own)), lambda others=others: others)
        passing.finish(torch.device("cpu"))
        some = torch.tensor([samples - 1, 0])
        for index, each in enumerate(own):
            assert torch.equal(passing.call(index, some).args[1], each[some])
            assert torch.equal(passing.call(index, slice(0, 2)).args[1], each[:2])


@pytest.mark.parametrize(
    ("shape", "differs"),
    [((2, 4), 1), ((3,), 0), ((1, 4), 0), ((4, 2), 0)],
    ids=["of later samples only", "of tokens", "of all samples", "samples second"],
)
def test_what_differs_and_is_not_each_samples_own_is_refused(shape: tuple[int, ...], differs: int) -> None:
    passing = Passing("model", 4)
    with pytest.raises(UnsupportedModelError, match="block 0 is passed 'argument 1', which differs from sample to"):
        for number, batch in enumerate(slices(4, 2)):
            value = torch.full(shape, float(number >= differs))
            passing.take(batch, _calls(value), lambda: _calls(torch.zeros(shape)))


def test_what_has_other_parts_for_other_samples_is_refused() -> None:
    passing, value = Passing("model", 2), torch.zeros(2, 4)
    with pytest.raises(UnsupportedModelError, match="block 0 is passed 'more', which differs from sample to sample"):
        passing.take(slice(0, 2), _calls(value), lambda: [Call((None, value), {"more": value}, 0)])


def test_a_tensor_that_several_blocks_are_passed_is_moved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, moved = Tensor.to, list[Tensor]()

    def to(tensor: Tensor, device: torch.device) -> Tensor:
        moved.append(tensor)
        return plain(tensor, device)

    monkeypatch.setattr(Tensor, "to", to)
    mask = torch.ones(2, 4)
    calls = to_device(_calls(mask, mask, mask), torch.device("meta"))  # stands for a GPU
    assert len(moved) == 1
    assert calls[0].args[1].is_meta
    assert all(call.args[1] is calls[0].args[1] for call in calls)


def test_a_mask_that_is_expanded_to_all_samples_is_expanded_on_the_device_too() -> None:
    mask = torch.ones(1, 1, 5, 5).expand(8, 1, 5, 5)
    [call, *_] = to_device(_calls(mask, mask), torch.device("meta"))
    assert call.args[1].shape == mask.shape
    assert call.args[1].untyped_storage().nbytes() == 4 * 25
