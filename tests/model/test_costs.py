"""A block's costs are those of its products and saved activations, measured without its weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensorMode

from reprune.model import costs, half_attention
from reprune.model.block import Block, Call, Precision
from reprune.model.costs import BlockCosts, Flops, block_costs
from reprune.model.decoder import Decoder
from reprune.model.norms import find_norms
from tests import tiny

_TOKENS = 24


def _total(flops: Flops) -> float:
    return flops.products + flops.attention


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_every_architecture_is_costed_without_reading_a_weight(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(tiny.save(name, tmp_path / "model"))
    monkeypatch.setattr(decoder.checkpoint, "tensor", lambda name: pytest.fail(f"{name} was read"))
    found = decoder.costs(_TOKENS)
    assert len(found) == 3
    for index, cost in enumerate(found):
        block = decoder.skeleton.blocks[index]
        matrices = sum(parameter.numel() for parameter in block.parameters() if parameter.dim() == 2)
        assert cost.operations
        assert cost.parameters == sum(parameter.numel() for parameter in block.parameters())
        assert _total(cost.forward) > 2 * matrices * _TOKENS, "the linears, and attention"
        # Linears that read the block's first norm compute no gradient for their inputs if it is an RMS norm.
        spared = 0.0
        if find_norms(block):
            first = decoder.weightless.groups(index)[0]
            spared = sum(2.0 * math.prod(linear.shape) * _TOKENS for linear in first.linears)
        assert 2.9 * _total(cost.forward) < _total(cost.both) + spared < 3.3 * _total(cost.forward)
        assert all(parameter.is_meta for parameter in block.parameters())


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "gpt2"])
def test_the_activations_are_those_that_a_real_pass_keeps(name: str, tmp_path: Path) -> None:
    """The twin: the block with its weights, and the bytes that autograd saves."""
    decoder = Decoder(tiny.save(name, tmp_path / "model"))
    ids = torch.arange(_TOKENS).reshape(1, -1)
    ((_, states),) = decoder.embed(ids, [slice(0, 1)])
    block = decoder.load(0)
    for parameter in block.module.parameters():
        parameter.requires_grad_(True)
    own = {parameter.untyped_storage().data_ptr() for parameter in block.module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block.run(states, decoder.call(0, slice(0, 1)))
    expected = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    # What all samples share, such as rotary angles, is not counted; a kernel may keep a copy more or less.
    assert decoder.costs(_TOKENS)[0].activations == pytest.approx(expected, rel=0.1)


def test_half_precision_keeps_less(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    full, half = (
        Decoder(folder, precision=Precision(dtype)).costs(_TOKENS)[0] for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.activations < full.activations
    assert _total(half.forward) == _total(full.forward)


@pytest.mark.parametrize(
    "name",
    [
        "opt",
        pytest.param(
            "llama",  # whose query heads share keys
            marks=pytest.mark.skipif(
                Version(torch.__version__) < Version("2.9"), reason="this PyTorch's kernel has as many keys as queries"
            ),
        ),
    ],
)
def test_what_the_fused_kernel_does_is_told_apart(name: str, tmp_path: Path) -> None:
    """Forward takes four operations for each score and feature, and backward two and a half times as many."""
    folder = tiny.save(name, tmp_path / "model")
    fused, plain = (
        Decoder(folder, precision=Precision(dtype)).costs(_TOKENS)[0] for dtype in (torch.float32, torch.bfloat16)
    )
    hidden = Decoder(folder).skeleton.config.hidden_size
    assert fused.forward.attention == 4 * _TOKENS**2 * hidden
    assert fused.both.attention == 3.5 * fused.forward.attention
    assert plain.forward.attention == plain.both.attention == 0
    of_gpu = Decoder(folder, precision=Precision(torch.bfloat16)).costs(_TOKENS, "cuda")[0]
    assert of_gpu.forward.attention == fused.forward.attention, "which is the kernel's there in any precision"


def test_of_a_mask_a_block_costs_what_it_would_of_a_causal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without values it cannot tell which keys it leaves out. Here it is that of a sliding window."""
    monkeypatch.setattr(half_attention, "_ROWS", 16)  # less than all tokens, as in long samples
    decoder = Decoder(tiny.save("gemma3", tmp_path / "model"), precision=Precision(torch.bfloat16))
    sliding, causal, _ = decoder.costs(_TOKENS)
    assert sliding.operations
    assert (sliding.forward, sliding.both) == (causal.forward, causal.both)


def test_a_scan_over_many_tokens_is_costed_on_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tf.MambaConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=1, state_size=4)
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    decoder, ran = Decoder(tmp_path), []
    plain = costs._run

    def run(module: torch.nn.Module, shape: torch.Size, *others: Any) -> Any:
        found = plain(module, shape, *others)
        ran.append(shape[1])
        return found

    monkeypatch.setattr(costs, "_run", run)
    expected = decoder.costs(20)
    assert ran == [20, 20]
    ran.clear()
    monkeypatch.setattr(costs, "MANY", 500)
    monkeypatch.setattr(costs, "FEW", (4, 8, 12))
    assert decoder.costs(20) == expected
    assert ran == [4, 4, 8, 8, 12, 12]


def test_where_a_tensor_is_may_be_asked_when_there_were_too_many_operations() -> None:
    with FakeTensorMode():
        tensor = torch.empty(2)
        with costs._Counted(0):
            assert torch.ops.prim.device(tensor).type == "cpu"
            with pytest.raises(costs.TooManyError):
                tensor + 1


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_few_tokens_tell_what_attention_over_many_costs(name: str, tmp_path: Path) -> None:
    decoder = Decoder(tiny.save(name, tmp_path))
    few = [decoder.costs(some) for some in costs.FEW]
    assert [costs.extrapolated(block, 100) for block in zip(*few, strict=True)] == decoder.costs(100)


def test_what_goes_by_chunks_is_costed_on_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens are padded to one chunk, so their operations and activations do not depend on their number."""

    class Chunked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 8, device="meta")

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            tokens = states.shape[1]
            padded = torch.nn.functional.pad(states, (0, 0, 0, -tokens % 64))
            chunks = [self.linear(chunk).sigmoid() for chunk in padded.split(64, 1)]
            return torch.cat(chunks, 1)[:, :tokens]

    def cost(tokens: int, most: int | None) -> costs.BlockCosts:
        one, two = ((torch.empty(samples, tokens, 8), Call((None,), {}, 0)) for samples in (1, 2))
        return block_costs(Chunked(), one, two, Precision(), most=most)

    expected = cost(256, None)
    monkeypatch.setattr(costs, "MANY", 10)
    assert costs.costs_of_many(cost, 256) == expected


class _Choosing(torch.nn.Module):
    """Depends on values, as a router of experts does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (torch.nn.Linear(*shape) for shape in ((8, 32), (8, 32), (32, 8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 0).all()):
            return x
        return x + self.down(self.gate(x) * self.up(x))


def test_a_block_that_needs_values_is_estimated_by_its_linears() -> None:
    with torch.device("meta"):
        module = _Choosing()
    call = Call((None,), {}, 0)
    found = block_costs(module, (torch.zeros(1, 5, 8), call), (torch.zeros(2, 5, 8), call), Precision())
    assert not found.operations, "it is an estimate"
    assert found.forward == Flops(2 * (2 * 8 * 32 + 32 * 8) * 5)
    assert found.both.products == 3 * found.forward.products
    assert found.activations == 8 * (8 + 32 + 32 + 8) * 5
    assert found.states == 4 * 8 * 5
    assert Block(0, module, torch.device("meta"), Precision()).linears


def test_what_few_tokens_tell_is_carried_on_as_a_square() -> None:
    def cost(tokens: int) -> BlockCosts:
        square = 3.0 * tokens**2 + 5.0 * tokens + 7.0
        flops = Flops(square, 2 * square)
        return BlockCosts(9, 128 * tokens, flops, Flops(4 * square, square), 5 * square, 6 * tokens + 1)

    assert costs.extrapolated([cost(tokens) for tokens in costs.FEW], 1000) == cost(1000)


@pytest.mark.parametrize(
    ("operations", "scan"),
    [((5, 9, 13), True), ((5, 5), False), ((5, 9, 14), False), ((0, 0), True)],
)
def test_a_scan_takes_as_many_more_operations_for_each_more_tokens(operations: tuple[int, ...], scan: bool) -> None:
    few = [BlockCosts(1, 1, Flops(1.0), Flops(1.0), 1.0, count) for count in operations]
    assert costs._may_scan(few) is scan
