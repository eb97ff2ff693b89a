"""What blocks hand to later ones besides the states is carried along, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor

from reprune.errors import UnsupportedModelError
from reprune.model.bare import model_class, read_config
from reprune.model.block import Block
from reprune.model.decoder import Decoder
from reprune.model.forms import Form
from reprune.model.skeleton import Skeleton

from .. import odd, tiny
from .conftest import embedded, slices

FolderOf = Callable[[str], Path]
joined = pytest.mark.parametrize("name", list(tiny.JOINED))
sizes = pytest.mark.parametrize("size", [1, 3, 7])
_OF_TOKENS: tuple[odd.Quirk, ...] = (
    *("beside, of tokens", "beside, of tokens, to the end", "by name, of tokens", "by name, of its own"),
    *("by name, of the first", "beside, of tokens, passed on", "beside, numbers", "beside, chosen"),
    "beside, chosen of many",
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
    assert Decoder(folder_of("gemma4")).width(24) == 32 + 4 * 16
    assert Decoder(folder_of("gemma3n")).width(24) == 4 * 32 + 4 * 16
    assert Decoder(folder_of("llama")).width(24) == 32
    assert Decoder(folder_of("gemma4_moe")).width(24) == 32  # whose last keys and values no block reads


@pytest.mark.parametrize("tokens", [5, 11, 24])
def test_so_many_whole_numbers_count_as_there_are_of_so_many_tokens(
    tokens: int, folder_of: FolderOf, tmp_path: Path
) -> None:
    assert Decoder(folder_of("glm_moe_dsa")).width(tokens) == 32 + min(16, tokens)
    assert Decoder(odd.save("beside, chosen", tmp_path)).width(tokens) == 16 + min(16, tokens)
    costs = Decoder(tmp_path).costs(tokens)
    assert {one.states for one in costs} == {4 * tokens * (16 + min(16, tokens))}


def test_a_call_is_bound_anew_each_time(folder_of: FolderOf, ids: Tensor) -> None:
    """What one batch writes does not reach another."""
    decoder = Decoder(folder_of("gemma4"))
    (_, states), *_ = list(decoder.embed(ids, [slice(0, len(ids))]))
    call = decoder.call(0, slice(0, len(ids)))
    first, second = (call.bind(states)[1]["shared_kv_states"] for _ in range(2))
    assert first is not second
    assert not first
    assert replace(call).bind(states)[1]["shared_kv_states"] is not first
