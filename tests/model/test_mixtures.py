"""Experts that are one parameter are found by a block's matrix products, whatever the architecture."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor, nn

from reprune.model.block import Block
from reprune.model.decoder import Decoder
from reprune.model.products import SlicesApart
from reprune.model.routing import Routes

from .. import tiny
from .conftest import assert_same_states, states_of, streamed

FolderOf = Callable[[str], Path]


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, tiny.VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))


mixtures = pytest.mark.parametrize("name", list(tiny.MIXTURES))


def _last(decoder: Decoder, ids: Tensor) -> tuple[Block, Tensor, Any]:
    """The last block, the states that enter it, and what else it is passed."""
    (_, states), *_ = list(decoder.embed(ids, [slice(0, len(ids))]))
    for index in range(len(decoder) - 1):
        with torch.no_grad():
            states = decoder.load(index).run(states, decoder.call(index, slice(0, len(ids))))
    return decoder.load(len(decoder) - 1), states, decoder.call(len(decoder) - 1, slice(0, len(ids)))


@mixtures
def test_streaming_gives_the_states_of_the_whole_model(name: str, folder_of: FolderOf, ids: Tensor) -> None:
    decoder = Decoder(folder_of(name))
    whole = tf.AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32).eval()
    assert_same_states(streamed(decoder, ids, 3), states_of(whole, decoder.skeleton.blocks_path, ids))


@mixtures
def test_the_matrices_of_experts_hold_all_their_weights_and_nothing_twice(
    name: str, folder_of: FolderOf, ids: Tensor
) -> None:
    block, *_ = _last(Decoder(folder_of(name)), ids)
    experts = [linear for linear in block.linears if linear.stack is not None]
    assert experts
    for parameter in {id(linear.parameter): linear.parameter for linear in experts}.values():
        seen = torch.zeros(parameter.shape)
        for linear in experts:
            if linear.parameter is parameter:
                linear.of_layout(seen).add_(1.0)
        assert (seen == 1.0).all()
    left = sum(p.numel() for p in block.module.parameters() if p.dim() > 1) - sum(
        math.prod(linear.shape) for linear in block.linears
    )
    biases = 4 * (128 + 32) if name == "gpt_oss" else 0
    assert left - biases in (0, 4 * 32, 6 * 32), "what is left is a router"


@mixtures
def test_what_reaches_an_expert_times_its_matrix_is_what_the_block_computes(
    name: str, folder_of: FolderOf, ids: Tensor
) -> None:
    """Zeroing one expert's matrix changes exactly the tokens that were seen to reach it."""
    block, states, call = _last(Decoder(folder_of(name)), ids)
    seen: dict[str, int] = {}
    tokens = ids.numel()
    with torch.no_grad(), block.watch(lambda linear, X: seen.update({linear.name: seen.get(linear.name, 0) + len(X)})):
        before = block.run(states, call)
    experts = [linear for linear in block.linears if linear.stack is not None]
    down = [linear for linear in experts if linear.stack == experts[-1].stack]
    changed = 0
    for linear in down:
        kept = linear.matrix().clone()
        linear.set_(torch.zeros(linear.shape))
        with torch.no_grad():
            after = block.run(states, call)
        linear.set_(kept)
        moved = int(((after - before).abs().amax(dim=-1) > 1e-7).sum())
        assert moved == seen.get(linear.name, 0), linear.name
        changed += moved
    assert down[0].stack is not None
    assert changed == round(down[0].stack.per_token * tokens)


@mixtures
def test_groups_are_known_without_weights(name: str, folder_of: FolderOf, ids: Tensor) -> None:
    decoder = Decoder(folder_of(name))
    block, states, call = _last(decoder, ids)
    with_weights = {group.names for group in block.groups(states, call)}
    without = {group.names for group in decoder.weightless.groups(len(decoder) - 1)}
    assert with_weights == without
    assert {name for names in without for name in names} == {linear.name for linear in block.linears}


@mixtures
def test_routers_are_told_from_what_is_pruned(name: str, folder_of: FolderOf, ids: Tensor) -> None:
    block, *_ = _last(Decoder(folder_of(name)), ids)
    expected = {
        "qwen2_moe": {"mlp.shared_expert_gate"},
        "llama4": {"feed_forward.router"},
        "dbrx": {"ffn.router.layer"},
        "jetmoe": {"mlp.router.layer", "self_attention.experts.router.layer"},
        "gemma4_moe": {"router.proj"},
    }
    assert block.routers == expected.get(name, set())


@mixtures
def test_a_block_is_given_back_under_the_names_and_in_the_form_of_its_checkpoint(
    name: str, folder_of: FolderOf
) -> None:
    decoder = Decoder(folder_of(name))
    stored = load_file(folder_of(name) / "model.safetensors")
    seen: set[str] = set()
    for index in range(len(decoder)):
        for key, tensor in decoder.rounded(decoder.load(index))[0].items():
            assert torch.equal(tensor, stored[key]), key
            seen.add(key)
    assert {key for key in stored if decoder.block_of(key) is not None} == seen
    assert decoder.block_bytes(0) > 0


def test_mixtral_is_stored_matrix_by_matrix_and_held_in_two_parameters(folder_of: FolderOf) -> None:
    decoder = Decoder(folder_of("mixtral"))
    assert "model.layers.0.block_sparse_moe.experts.3.w3.weight" in decoder.checkpoint.entries
    assert decoder.shapes(0)["mlp.experts.gate_up_proj"] == (4, 128, 32)


@mixtures
def test_gradients_are_the_same_where_experts_are_taken_apart_once(
    name: str, folder_of: FolderOf, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reprune.model.block.find_norms", lambda _: [])  # their gradients are summed in another order
    decoder = Decoder(folder_of(name))
    block, states, call = _last(decoder, ids)
    block.module.requires_grad_(True)

    def gradients(run: Any) -> list[Tensor]:
        block.module.zero_grad()
        run().square().sum().backward()
        return [p.grad if p.grad is not None else torch.zeros_like(p) for p in block.module.parameters()]

    args, kwargs = call.bind(states)

    def plain() -> Tensor:
        outputs = block.module(*args, **kwargs)
        found = outputs[0] if isinstance(outputs, tuple) else outputs
        assert isinstance(found, Tensor)
        return found

    for one, other in zip(gradients(plain), gradients(lambda: block.run(states, call)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_parameter_that_is_indexed_matrix_by_matrix_has_one_gradient() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 3))
    with SlicesApart([weight]):
        parts = [weight[number] for number in (torch.tensor(2), 0, torch.tensor(2))]
        views = weight.view(-1, 3)
    assert all(part.grad_fn is parts[0].grad_fn for part in parts)
    assert views.shape == (12, 3)
    with SlicesApart([weight]):
        viewed = weight.view(4, 9)
        assert viewed[1].grad_fn is viewed[3].grad_fn
        assert weight[1:3].shape == (2, 3, 3)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "jetmoe"])
def test_a_model_routes_as_another_did(name: str, folder_of: FolderOf, ids: Tensor) -> None:
    decoder = Decoder(folder_of(name))
    block, states, call = _last(decoder, ids)
    routes = Routes()
    with torch.no_grad():
        plain = block.run(states, call, routes.recording(*ids.shape))
        torch.testing.assert_close(block.run(states, call, routes.repeating(torch.arange(3))), plain)
        turned = states.flip(0)
        torch.testing.assert_close(
            block.run(turned, call, routes.repeating(torch.tensor([2, 1, 0]))), block.run(turned, call)
        )
        # Other tokens with the first ones' routes: as many reach each expert.
        counts: list[dict[str, int]] = []
        for some, routing in ((states, None), (torch.randn_like(states), routes.repeating(torch.arange(3)))):
            seen: dict[str, int] = {}
            with block.watch(lambda linear, X, seen=seen: seen.update({linear.name: len(X)})):  # type: ignore[misc]
                block.run(some, call, routing)
            counts.append({key: value for key, value in seen.items() if "expert" in key})
    assert counts[0] == counts[1]
