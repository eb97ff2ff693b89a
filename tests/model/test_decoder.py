"""A decoder streamed block by block computes what the whole model does, whatever its tensors are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

from reprune.errors import InputError
from reprune.model.block import LinearGroup, Precision
from reprune.model.decoder import Decoder

from .. import tiny
from .conftest import assert_same_states, embedded, slices, states_of, streamed

FolderOf = Callable[[str], Path]
architectures = pytest.mark.parametrize("name", list(tiny.CONFIGS))

BLOCKS_PATHS = {
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    "gpt2": "transformer.h",
}


def _renamed(folder: Path, rename: Callable[[str], str]) -> Path:
    """Write the folder's tensors under other names."""
    file = folder / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def _stored_names(decoder: Decoder, index: int) -> dict[str, str]:
    """From names in the block to names in the checkpoint, for parameters that are stored unchanged."""
    path = f"{decoder.skeleton.blocks_path}.{index}."
    plain = [one for one in decoder._blocks[index] if one.rule is None]
    return {one.parameters[0].removeprefix(path): one.stored[0] for one in plain}


@architectures
def test_the_blocks_are_found(name: str, folder_of: FolderOf) -> None:
    decoder = Decoder(folder_of(name))
    assert len(decoder) == 3
    assert decoder.skeleton.blocks_path == BLOCKS_PATHS.get(name, "model.layers")
    assert decoder.vocabulary == tiny.VOCABULARY
    assert decoder.skeleton.max_positions == tiny.POSITIONS


@architectures
@pytest.mark.parametrize("size", [3, 7])
def test_streaming_gives_the_states_of_the_whole_model(name: str, size: int, folder_of: FolderOf, ids: Tensor) -> None:
    decoder = Decoder(folder_of(name))
    expected = states_of(tiny.build(name), decoder.skeleton.blocks_path, ids)
    assert_same_states(streamed(decoder, ids, size), expected)


@architectures
def test_the_groups_found_without_weights_are_those_found_with_them(
    name: str, folder_of: FolderOf, ids: Tensor
) -> None:
    decoder = Decoder(folder_of(name))
    without = [_names(decoder.weightless.groups(index)) for index in range(3)]
    states = embedded(decoder, ids)[:3]
    for index in range(3):
        groups = decoder.load(index).groups(states, decoder.call(index, slice(0, 3)))
        assert [group.names for group in groups] == without[index]
        assert sorted(name for group in groups for name in group.names) == sorted(
            linear.name for linear in decoder.load(index).linears
        )


@architectures
def test_planning_reads_no_weight_and_leaves_none_behind(
    name: str, folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(folder_of(name))
    monkeypatch.setattr(decoder.checkpoint, "tensor", lambda name: pytest.fail(f"{name} was read"))
    for index in range(3):
        decoder.weightless.groups(index)
    assert all(parameter.is_meta for parameter in decoder.skeleton.model.parameters())


@architectures
def test_a_block_has_the_weights_of_its_checkpoint_and_gives_them_back(name: str, folder_of: FolderOf) -> None:
    decoder, model = Decoder(folder_of(name)), tiny.build(name)
    for index, original in enumerate(model.get_submodule(decoder.skeleton.blocks_path)):
        block = decoder.load(index)
        assert block.index == index
        state = block.module.state_dict()
        assert state.keys() == original.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in original.state_dict().items())
        assert not block.module.training
        assert not any(parameter.requires_grad for parameter in block.module.parameters())
        stored, _ = decoder.rounded(block)
        assert stored.keys() == {n for n in decoder.checkpoint.entries if decoder.block_of(n) == index}
        assert all(torch.equal(tensor, decoder.checkpoint.tensor(n)) for n, tensor in stored.items())


def test_a_loaded_block_is_its_own_copy(folder_of: FolderOf) -> None:
    decoder = Decoder(folder_of("llama"))
    with torch.no_grad():
        for parameter in decoder.load(0).module.parameters():
            parameter.zero_()
    assert all(parameter.any() for parameter in decoder.load(0).module.parameters())
    assert all(parameter.is_meta for parameter in decoder.skeleton.blocks.parameters())


def test_changed_tensors_take_the_place_of_the_checkpoints(folder_of: FolderOf) -> None:
    decoder = Decoder(folder_of("gpt2"))
    name = "transformer.h.1.mlp.c_fc.weight"
    changed = {name: torch.zeros(32, 128, dtype=torch.bfloat16)}
    block = decoder.load(1, changed)
    state = block.module.state_dict()
    assert state["mlp.c_fc.weight"].dtype == torch.float32
    assert not state["mlp.c_fc.weight"].any()
    assert torch.equal(decoder.rounded(block)[0][name], torch.zeros(32, 128))
    assert state["mlp.c_proj.weight"].any()
    assert not changed[name].any()


def test_every_tensor_belongs_to_one_block_or_to_none(folder_of: FolderOf) -> None:
    for name in tiny.CONFIGS:
        decoder = Decoder(folder_of(name))
        of_blocks = [stored for index in range(3) for stored in _stored_names(decoder, index).values()]
        assert len(set(of_blocks)) == len(of_blocks)
        for stored in decoder.checkpoint.entries:
            assert (decoder.block_of(stored) is not None) == (stored in of_blocks), stored
    assert decoder.block_of("transformer.h.3.ln_1.weight") is None
    assert decoder.block_of("transformer.h.x.ln_1.weight") is None


def test_the_shapes_of_a_blocks_tensors_are_known_by_their_names_in_it(folder_of: FolderOf) -> None:
    decoder = Decoder(folder_of("llama"))
    shapes = {name: tuple(tensor.shape) for name, tensor in decoder.load(2).module.state_dict().items()}
    assert decoder.shapes(2) == shapes


# --- What the model does before its blocks


def test_only_the_rows_of_the_embedding_that_are_used_are_read(
    folder_of: FolderOf, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, model = Decoder(folder_of("llama")), tiny.build("llama")
    monkeypatch.setattr(torch, "empty", torch.zeros)  # so that rows that are not read are known
    whole = model.model.embed_tokens.weight
    seen: set[int] = set()
    for batch, _ in decoder.embed(ids, slices(len(ids), 3)):
        seen |= set(ids[batch].flatten().tolist())
    rows = decoder.skeleton.model.get_input_embeddings().weight
    assert len(seen) < tiny.VOCABULARY
    for row in range(tiny.VOCABULARY):
        assert torch.equal(rows[row], whole[row] if row in seen else torch.zeros(32)), row


def test_no_more_than_one_block_is_ever_made_real(folder_of: FolderOf, ids: Tensor) -> None:
    decoder = Decoder(folder_of("llama"))
    for _ in streamed(decoder, ids, 3):
        assert all(parameter.is_meta for parameter in decoder.skeleton.blocks.parameters())
        assert decoder.skeleton.model.lm_head.weight.is_meta
        assert decoder.skeleton.model.model.norm.weight.is_meta


@architectures
def test_released_weights_are_read_again_when_needed(name: str, folder_of: FolderOf, ids: Tensor) -> None:
    decoder = Decoder(folder_of(name))
    first = embedded(decoder, ids)
    decoder.release()
    assert all(parameter.is_meta for parameter in decoder.skeleton.model.parameters())
    assert torch.equal(embedded(decoder, ids), first)


def test_planning_first_changes_nothing_of_the_run(folder_of: FolderOf, ids: Tensor) -> None:
    expected = embedded(Decoder(folder_of("gemma3")), ids)
    decoder = Decoder(folder_of("gemma3"))
    decoder.weightless.groups(0)
    assert torch.equal(embedded(decoder, ids), expected)


def test_a_single_sample_and_a_single_token_pass(folder_of: FolderOf, ids: Tensor) -> None:
    for name in ("llama", "gemma3", "gpt2", "opt"):
        decoder = Decoder(folder_of(name))
        for some in (ids[:1], ids[:, :1]):
            expected = states_of(tiny.build(name), decoder.skeleton.blocks_path, some)
            assert_same_states(streamed(decoder, some, 7), expected)


# --- Names of tensors and files, and dtypes


@pytest.mark.parametrize("name", ["llama-tied-bias", "opt", "gpt_neox", "gpt2"])
def test_a_checkpoint_without_the_base_models_prefix_is_read(name: str, tmp_path: Path, ids: Tensor) -> None:
    prefix = BLOCKS_PATHS.get(name, "model.layers").split(".")[0] + "."
    folder = _renamed(tiny.save(name, tmp_path), lambda stored: stored.removeprefix(prefix))
    decoder = Decoder(folder)
    assert not any(stored.startswith(prefix) for stored in _stored_names(decoder, 0).values())
    expected = states_of(tiny.build(name), decoder.skeleton.blocks_path, ids)
    assert_same_states(streamed(decoder, ids, 3), expected)
    block = decoder.load(1)
    assert decoder.rounded(block)[0].keys() == set(_stored_names(decoder, 1).values())


def test_a_checkpoint_with_one_more_prefix_is_read(tmp_path: Path, ids: Tensor) -> None:
    decoder = Decoder(_renamed(tiny.save("llama", tmp_path), lambda stored: f"model.{stored}"))
    assert _stored_names(decoder, 0)["mlp.up_proj.weight"] == "model.model.layers.0.mlp.up_proj.weight"
    assert decoder.block_of("model.model.layers.2.mlp.up_proj.weight") == 2
    assert_same_states(streamed(decoder, ids, 3), states_of(tiny.build("llama"), "model.layers", ids))


def test_a_model_in_many_files_is_read(tmp_path: Path, ids: Tensor) -> None:
    decoder = Decoder(tiny.save("qwen3", tmp_path, max_shard_size="20KB"))
    assert len({entry.file for entry in decoder.checkpoint.entries.values()}) > 3
    assert_same_states(streamed(decoder, ids, 3), states_of(tiny.build("qwen3"), "model.layers", ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama-tied-bias", "gemma2", "gpt2"])
def test_low_precision_weights_are_run_in_float32_and_given_back_as_they_were(
    name: str, dtype: torch.dtype, tmp_path: Path, ids: Tensor
) -> None:
    decoder = Decoder(tiny.save(name, tmp_path, dtype))
    whole = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_states(streamed(decoder, ids, 3), states_of(whole, decoder.skeleton.blocks_path, ids))
    block = decoder.load(1)
    assert {parameter.dtype for parameter in block.module.parameters()} == {torch.float32}
    for stored, tensor in decoder.rounded(block)[0].items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, decoder.checkpoint.tensor(stored))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_products_in_bfloat16_leave_weights_and_states_in_float32(name: str, folder_of: FolderOf, ids: Tensor) -> None:
    decoder = Decoder(folder_of(name), precision=Precision(torch.bfloat16))
    expected = states_of(tiny.build(name), decoder.skeleton.blocks_path, ids)
    assert_same_states(streamed(decoder, ids, 3), expected, tolerance=0.03)
    exact = Decoder(folder_of(name))
    low, high = list(streamed(decoder, ids, 3)), list(streamed(exact, ids, 3))
    assert not torch.equal(low[-1], high[-1])
    assert {parameter.dtype for parameter in decoder.load(0).module.parameters()} == {torch.float32}


# --- Errors, attention and gradients


def test_ids_beyond_the_vocabulary_are_an_error(folder_of: FolderOf) -> None:
    with pytest.raises((IndexError, InputError)):
        embedded(Decoder(folder_of("llama")), torch.tensor([[1, tiny.VOCABULARY]]))


def test_the_config_of_a_folder_is_not_changed_by_reading_it(folder_of: FolderOf, ids: Tensor) -> None:
    folder = folder_of("mistral")
    before: Mapping[str, bytes] = {path.name: path.read_bytes() for path in folder.iterdir()}
    for _ in streamed(Decoder(folder), ids, 3):
        pass
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@architectures
def test_in_bfloat16_blocks_do_without_the_fused_kernel(
    name: str, folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reprune.model.half_attention.scaled_dot_product_attention", _no_kernel)
    decoder = Decoder(folder_of(name), precision=Precision(torch.bfloat16))
    ids = torch.arange(2 * 16).reshape(2, 16)
    ((_, states),) = decoder.embed(ids, [slice(0, 2)])
    for index in range(len(decoder)):
        states = decoder.load(index).run(states, decoder.call(index, slice(0, 2)))
    full = Decoder(folder_of(name))
    ((_, exact),) = full.embed(ids, [slice(0, 2)])
    for index in range(len(full)):
        exact = full.load(index).run(exact, full.call(index, slice(0, 2)))
    assert (states - exact).norm() < 0.02 * exact.norm()


@architectures
@pytest.mark.parametrize(("products", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_block_that_is_fitted_has_the_gradients_of_its_own_module(
    name: str, products: torch.dtype, tolerance: float, folder_of: FolderOf, ids: Tensor
) -> None:
    """The twin: the module as its model runs it, in float32."""
    decoder = Decoder(folder_of(name), precision=Precision(products))
    ((_, states),) = decoder.embed(ids, [slice(0, len(ids))])
    block, call = decoder.load(0), decoder.call(0, slice(0, len(ids)))
    block.module.requires_grad_(True)
    args, kwargs = call.bind(states)
    outputs = block.module(*args, **kwargs)
    expected = outputs[0] if isinstance(outputs, tuple) else outputs
    outer = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected.backward(outer)
    twins = {key: parameter.grad for key, parameter in block.module.named_parameters()}
    largest = max(twin.norm() for twin in twins.values() if twin is not None)
    block.module.zero_grad()
    block.run(states, call).backward(outer)
    for key, parameter in block.module.named_parameters():
        twin = twins[key]
        assert (parameter.grad is None) == (twin is None), key
        if parameter.grad is not None and twin is not None:
            # Some gradients, such as that of a bias of keys, are zero except for rounding.
            assert (parameter.grad - twin).norm() <= tolerance * (twin.norm() + 0.1 * largest), key


def _no_kernel(*_: object, **__: object) -> None:
    pytest.fail("the fused kernel was asked")


def _names(groups: list[LinearGroup]) -> list[tuple[str, ...]]:
    return [group.names for group in groups]
