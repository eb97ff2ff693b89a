"""What blocks hand to later ones besides the states is carried along, or refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.bare import model_class, read_config
from reprune.model.block import Block, Call
from reprune.model.decoder import Decoder
from reprune.model.forms import Beside, Form, Slot
from reprune.model.handing import find_forms, find_joined
from reprune.model.skeleton import Skeleton

from .. import odd, tiny
from .conftest import embedded, slices

FolderOf = Callable[[str], Path]
joined = pytest.mark.parametrize("name", list(tiny.JOINED))
sizes = pytest.mark.parametrize("size", [1, 3, 7])
_OF_TOKENS: tuple[odd.Quirk, ...] = (
    *("beside, of tokens", "beside, of tokens, to the end", "by name, of tokens", "by name, of its own"),
    "by name, of the first",
)


@torch.no_grad()
def _assert_streams(decoder: Decoder, whole: tf.PreTrainedModel, ids: Tensor, size: int) -> None:
    """Assert that streaming block by block, in batches, gives the states of the whole model."""
    forms, running = decoder.skeleton.forms, decoder.skeleton.running
    blocks = whole.get_submodule(decoder.skeleton.blocks_path)
    seen: list[Tensor] = []

    def saw(module: object, args: object, outputs: Tensor | tuple[Tensor, ...]) -> None:
        seen.append((outputs[0] if isinstance(outputs, tuple) else outputs).clone())

    for index in running:
        blocks[index].register_forward_hook(saw)
    whole(input_ids=ids, use_cache=False)
    batches = slices(len(ids), size)
    streams = torch.cat([states for _, states in decoder.embed(ids, batches)])
    decoder.release()
    plain = Form(forms[running[0]].samples, forms[running[0]].tokens)
    expected = iter(seen)
    for index in range(len(decoder)):
        block = decoder.load(index)
        before = streams
        streams = torch.cat([block.run(streams[one], decoder.call(index, one)) for one in batches])
        if index not in running:
            assert torch.equal(streams, before)
            continue
        wanted = plain.of(next(expected))
        torch.testing.assert_close(
            forms[index].states(streams), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max())
        )


def _whole(folder: Path) -> tf.PreTrainedModel:
    """The model as plain Transformers loads it."""
    kind = model_class(read_config(folder, False), False)
    found: tf.PreTrainedModel = kind.from_pretrained(folder, dtype=torch.float32).eval()
    return found


@sizes
@joined
def test_streaming_gives_the_states_of_the_whole_model(name: str, size: int, folder_of: FolderOf, ids: Tensor) -> None:
    whole = _whole(folder_of(name))
    _assert_streams(Decoder(folder_of(name)), whole, ids, size)


@sizes
@pytest.mark.parametrize("quirk", _OF_TOKENS)
def test_streaming_blocks_that_return_more_or_write_to_a_mapping_gives_the_states_of_the_whole_model(
    quirk: odd.Quirk, size: int, tmp_path: Path, ids: Tensor
) -> None:
    _assert_streams(Decoder(odd.save(quirk, tmp_path)), odd.build(quirk), ids, size)


@joined
def test_gradients_reach_the_weights_that_make_what_is_handed_on(name: str, folder_of: FolderOf, ids: Tensor) -> None:
    """They pass through all blocks, as in the whole model."""
    decoder = Decoder(folder_of(name))
    whole = _whole(folder_of(name))
    path, running = decoder.skeleton.blocks_path, decoder.skeleton.running
    last: list[Tensor] = []
    blocks = whole.get_submodule(path)
    blocks[running[-1]].register_forward_hook(
        lambda module, args, outputs: last.append(outputs[0] if isinstance(outputs, tuple) else outputs)
    )
    whole(input_ids=ids, use_cache=False)
    last[0].square().mean().backward()
    (_, states), *_ = list(decoder.embed(ids, [slice(0, len(ids))]))
    loaded: list[Block] = [decoder.load(index) for index in running]
    for block in loaded:
        block.module.requires_grad_(True)
        states = block.run(states, decoder.call(block.index, slice(0, len(ids))))
    decoder.skeleton.forms[running[-1]].states(states).square().mean().backward()
    compared = 0
    for block in loaded:
        expected = dict(blocks[block.index].named_parameters())
        largest = max(float(one.grad.abs().max()) for one in expected.values() if one.grad is not None)
        for key, parameter in block.module.named_parameters():
            if (wanted := expected[key].grad) is not None and parameter.grad is not None:
                atol = max(1e-4 * float(wanted.abs().max()), 1e-7 * largest)  # some are zero except for rounding
                torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=atol)
                compared += 1
    assert compared > len(running)


def test_keys_and_values_are_written_by_the_blocks_that_make_them_and_read_by_those_that_share_them(
    folder_of: FolderOf,
) -> None:
    forms = Skeleton(folder_of("gemma4")).forms
    names = [slot.place for slot in forms[0].slots]
    keys = [("shared_kv_states", kind, part) for kind in ("sliding_attention", "full_attention") for part in (0, 1)]
    assert names == keys
    assert [sorted(form.writes) for form in forms] == [[0, 1], [2, 3], [], []]
    assert [sorted(form.reads) for form in forms] == [[], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert {slot.width for slot in forms[0].slots} == {2 * 8}


@pytest.mark.parametrize(("quirk", "last"), [(_OF_TOKENS[0], []), (_OF_TOKENS[1], [0])])
def test_the_last_block_writes_what_is_read_after_it(quirk: odd.Quirk, last: list[int], tmp_path: Path) -> None:
    forms = Skeleton(odd.save(quirk, tmp_path)).forms
    assert [sorted(form.writes) for form in forms] == [[0], [0], last]


def test_samples_are_found_behind_the_streams_of_states(folder_of: FolderOf) -> None:
    form = Skeleton(folder_of("gemma3n")).forms[0]
    assert (form.samples, form.tokens, form.rest) == (1, 2, (4, 32))
    assert Skeleton(folder_of("xlnet")).forms[0] == Form(1, 0)
    assert Skeleton(folder_of("llama")).forms[0] == Form()


def test_blocks_that_text_passes_over_are_known(folder_of: FolderOf) -> None:
    skeleton = Skeleton(folder_of("mllama"))
    assert skeleton.running == (0, 2)
    assert [form.runs for form in skeleton.forms] == [True, False, True]
    assert Skeleton(folder_of("mllama-last")).running == (0, 1)


def test_more_than_half_of_the_blocks_must_run(tmp_path: Path, ids: Tensor) -> None:
    assert Skeleton(odd.save("not all", tmp_path / "most")).running == (0, 1)
    with pytest.raises(UnsupportedModelError, match="only 1 of 2 blocks"):
        embedded(Decoder(odd.save("not all", tmp_path / "half", num_hidden_layers=2)), ids)


@pytest.mark.parametrize(
    ("quirk", "reason"),
    [
        (
            "beside",
            r"block 0 hands more than the hidden states to later blocks, .* the shape \[\] for one sample of 11 tokens",
        ),
        ("beside, numbers", r"block 0 hands more than the hidden states to later blocks, .* a tensor of torch\.int64"),
        ("beside, by name", r"block 0 hands more than the hidden states to later blocks, .* the shape \[\]"),
        (
            "beside, without name",
            r"block 0 hands more than the hidden states to later blocks, .* an argument without a name",
        ),
    ],
)
def test_what_is_not_so_many_numbers_a_token_is_refused(
    quirk: odd.Quirk, reason: str, tmp_path: Path, ids: Tensor
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        embedded(Decoder(odd.save(quirk, tmp_path)), ids)


def test_blocks_with_such_hands_are_pruned_as_the_others(folder_of: FolderOf) -> None:
    """The last blocks read shared keys and values and compute none of their own."""
    decoder = Decoder(folder_of("gemma4"))
    groups = [[name for group in decoder.weightless.groups(index) for name in group.names] for index in range(4)]
    assert "self_attn.k_proj" in groups[0]
    assert "self_attn.k_proj" not in groups[2]
    assert {"self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"} <= {*groups[2]}


def test_what_is_handed_on_counts_to_what_a_stream_takes(folder_of: FolderOf) -> None:
    assert Decoder(folder_of("gemma4")).width == 32 + 4 * 16
    assert Decoder(folder_of("gemma3n")).width == 4 * 32 + 4 * 16
    assert Decoder(folder_of("llama")).width == 32
    assert Decoder(folder_of("gemma4_moe")).width == 32  # whose last keys and values no block reads


def test_a_call_is_bound_anew_each_time(folder_of: FolderOf, ids: Tensor) -> None:
    """What one batch writes does not reach another."""
    decoder = Decoder(folder_of("gemma4"))
    (_, states), *_ = list(decoder.embed(ids, [slice(0, len(ids))]))
    call = decoder.call(0, slice(0, len(ids)))
    first, second = (call.bind(states)[1]["shared_kv_states"] for _ in range(2))
    assert first is not second
    assert not first
    assert replace(call).bind(states)[1]["shared_kv_states"] is not first


Puts = Callable[[Tensor, Any, Any], Any]
"""A block's outputs, from its states, a mapping that all may share, and what the previous one returned besides."""


class _Hands(nn.Module):
    def __init__(self, puts: Puts) -> None:
        super().__init__()
        self.puts = puts

    def forward(self, x: Tensor, side: Any = None, beside: Any = None) -> Any:
        return self.puts(x, side, beside)


def _forms(*blocks: tuple[Puts, dict[str, Any]], passed_over: int | None = None) -> list[Form]:
    """The forms of blocks, each with the keyword arguments that it is passed; one of them may be passed over."""
    calls = [Call((None,), kwargs, 0, Form(runs=index != passed_over)) for index, (_, kwargs) in enumerate(blocks)]
    modules = nn.ModuleList(_Hands(puts) for puts, _ in blocks).to("meta")
    return find_forms("Model", modules, calls, torch.zeros(1, 11, 4), Form(), lambda returned: set())


def _reads_and_writes(forms: list[Form]) -> list[tuple[list[int], list[int]]]:
    return [(sorted(form.reads), sorted(form.writes)) for form in forms]


def _returns(x: Tensor, side: Any, beside: Any) -> Any:
    return x, x[..., :2]


def _alone(x: Tensor, side: Any, beside: Any) -> Any:
    return x


def _reads(x: Tensor, side: Any, beside: Any) -> Any:
    return x + sum(part.sum() for value in side.values() for part in ([value] if isinstance(value, Tensor) else value))


def test_what_is_returned_is_for_the_next_block_alone() -> None:
    after = {"beside": Beside(1)}
    assert _reads_and_writes(_forms((_returns, {}), (_alone, after), (_alone, {}))) == [([], [0]), ([0], []), ([], [])]


def test_what_is_none_in_truth_is_not_handed_on() -> None:
    forms = _forms((lambda x, side, beside: (x, None), {}), (_alone, {"beside": Beside(1)}))
    assert _reads_and_writes(forms) == [([], []), ([], [])]


def test_what_is_returned_to_a_block_that_reads_a_mapping_is_handed_on_only_if_it_is_used() -> None:
    """As the tokens that an indexer of Mistral Large 4 has chosen, where later blocks read the keys of earlier ones."""

    def writes(x: Tensor, side: Any, beside: Any) -> Any:
        side["key"] = x[..., :2]
        return x, x.argmax(-1)

    def reads(x: Tensor, side: Any, beside: Any) -> Any:
        return x + side["key"].sum(), x.argmax(-1)

    def uses(x: Tensor, side: Any, beside: Any) -> Any:
        return reads(x + beside, side, beside)

    shared: dict[str, Tensor] = {}
    first = Call((None,), {"side": shared}, 0)
    after = replace(first, kwargs={"side": shared, "beside": Beside(1)})
    for blocks, expected in (((writes, reads, reads), set()), ((writes, reads, uses, reads), {2})):
        modules = nn.ModuleList(map(_Hands, blocks)).to("meta")
        calls = [first, *[after] * (len(blocks) - 1)]
        assert find_joined(modules, calls, range(len(blocks)), torch.zeros(1, 11, 4)) == expected
        assert shared == {}


@pytest.mark.parametrize("kind", [tuple, list])
def test_parts_of_an_entry_are_handed_one_by_one(kind: Callable[[list[Tensor]], Any]) -> None:
    def puts(x: Tensor, side: Any, beside: Any) -> Any:
        side["key"] = kind([x[..., :2], x[..., :3]])
        return x

    shared: dict[str, Any] = {}
    forms = _forms((puts, {"side": shared}), (_reads, {"side": shared}))
    assert [(slot.place, slot.width) for slot in forms[0].slots] == [(("side", "key", 0), 2), (("side", "key", 1), 3)]
    assert _reads_and_writes(forms) == [([], [0, 1]), ([0, 1], [])]


def test_a_block_that_is_passed_over_neither_runs_nor_reads() -> None:
    def fails(*_: Any) -> Any:
        raise AssertionError

    forms = _forms((_returns, {}), (fails, {}), (_alone, {"beside": Beside(1)}), passed_over=1)
    assert _reads_and_writes(forms) == [([], [0]), ([], []), ([0], [])]
    assert [form.runs for form in forms] == [True, False, True]


def _writes(width: int) -> Puts:
    def put(x: Tensor, side: Any, beside: Any) -> Any:
        side["key"] = x[..., :width]
        return x

    return put


def test_what_is_written_to_a_mapping_is_for_all_later_blocks_and_the_models_own_stays_empty() -> None:
    shared: dict[str, Tensor] = {}
    forms = _forms(*((puts, {"side": shared}) for puts in (_writes(2), _alone, _reads)))
    assert _reads_and_writes(forms) == [([], [0]), ([0], []), ([0], [])]
    assert forms[0].slots == (Slot(("side", "key", None), (2,), 1),)
    assert shared == {}


def test_what_is_written_to_a_mapping_and_read_by_no_later_block_is_not_carried_along() -> None:
    """As the last keys and values of a Gemma 4 that shares none."""

    def writes_more(x: Tensor, side: Any, beside: Any) -> Any:
        side["more"] = x[..., :3]
        return _reads(x, side, beside)

    def puts_out(x: Tensor, side: Any, beside: Any) -> Any:
        side["more"] = side["key"]
        return x

    def reads(key: str) -> Puts:
        return lambda x, side, beside: x + side[key].sum()

    for puts, expected in (
        ((_writes(2), _alone, writes_more), [([], [0]), ([0], []), ([0], [])]),
        ((_writes(2), _writes(2)), [([], []), ([], [])]),
        ((writes_more, _writes(2), reads("key")), [([], [0]), ([0], [1]), ([0, 1], [])]),
        ((writes_more, reads("more"), _writes(2)), [([], [0]), ([0], []), ([0], [])]),
        ((_writes(2), puts_out, reads("more")), [([], [0]), ([0], [1]), ([0, 1], [])]),
    ):
        shared: dict[str, Tensor] = {}
        assert _reads_and_writes(_forms(*((one, {"side": shared}) for one in puts))) == expected


def test_what_a_block_writes_to_a_mapping_of_its_own_is_handed_to_nobody() -> None:
    def counts(x: Tensor, side: Any, beside: Any) -> Any:
        side["tokens"] = x.shape[1]
        return x

    assert _reads_and_writes(_forms((counts, {"side": {}}), (counts, {"side": {}}))) == [([], [])] * 2


@pytest.mark.parametrize("number", [2, 3])
def test_several_mappings_under_one_name_are_not_taken_for_one(number: int) -> None:
    sides: list[dict[str, Tensor]] = [{} for _ in range(number)]
    passed = [*sides, *sides[:2]]
    with pytest.raises(
        UnsupportedModelError, match=r"block 0 hands .*, and it does so in one of several mappings of the same name"
    ):
        _forms(*((_writes(2), {"side": side}) for side in passed))
    assert _reads_and_writes(_forms(*((_alone, {"side": side}) for side in passed))) == [([], [])] * len(passed)


def test_an_entry_that_is_written_once_more_is_of_one_shape() -> None:
    shared: dict[str, Tensor] = {}
    forms = _forms(*((puts, {"side": shared}) for puts in (_writes(2), _writes(2), _reads)))
    assert _reads_and_writes(forms) == [([], [0]), ([0], [0]), ([0], [])]
    with pytest.raises(
        UnsupportedModelError,
        match=r"block 1 hands more than .* to later blocks, and that has different shapes in different blocks",
    ):
        _forms(*((puts, {"side": shared}) for puts in (_writes(2), _writes(3))))


@pytest.mark.parametrize("shape", [(3, 11, 2), (1, 11, 11), (1, 7, 2), (11, 2), (11,)])
def test_numbers_are_of_the_tokens_of_one_sample(shape: tuple[int, ...]) -> None:
    def returns(x: Tensor, side: Any, beside: Any) -> Any:
        return x, torch.zeros(shape)

    with pytest.raises(UnsupportedModelError, match=rf"has the shape {re.escape(str([*shape]))} for one sample of 11"):
        _forms((returns, {}), (_alone, {"beside": Beside(1)}))
