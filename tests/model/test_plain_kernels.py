"""If packages of GPU kernels are installed, models on the CPU or without values run without them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.integrations import hub_kernels
from transformers.models.lfm2 import modeling_lfm2

import reprune
from reprune.model.block import Precision
from reprune.model.gguf import convert_gguf
from reprune.model.plain_kernels import plain_kernels
from reprune.model.whole import load_model
from reprune.model.without_weights import run_without_weights

from .. import tiny
from ..doors.demo.test_model import write_gguf

REFUSAL = "Expected x.is_cuda() to be true, but got false."


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The function that LFM2 calls for its convolutions if causal-conv1d is installed."""

    def causal_conv1d_fn(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        raise RuntimeError(REFUSAL)

    def plain(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        seq_idx: Tensor | None = None,
    ) -> Tensor:
        assert activation is None
        assert seq_idx is None
        return nn.functional.conv1d(x, weight[:, None], bias, padding=weight.shape[-1] - 1, groups=len(weight))[
            ..., : x.shape[-1]
        ]

    package = ModuleType("causal_conv1d")
    vars(package)["causal_conv1d_fn"] = causal_conv1d_fn
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    # Transformers 5.25 knows itself which devices this package supports.
    monkeypatch.setattr(hub_kernels, "_PACKAGE_SUPPORTED_DEVICES", {}, raising=False)
    chosen = hub_kernels.use_kernel_func_from_hub_with_fallback("causal_conv1d_fn", "causal_conv1d")(plain)
    monkeypatch.setattr(modeling_lfm2, "causal_conv1d_fn", chosen)
    return chosen


def test_a_model_that_would_call_them_is_pruned_and_measured_on_the_cpu(kernel: Any, tmp_path: Path) -> None:
    del kernel
    config = tf.Lfm2Config(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model, out = tmp_path / "lfm2", tmp_path / "out"
    tf.Lfm2ForCausalLM(config).save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    (text := tmp_path / "text.txt").write_text(tiny.text(6_000))
    cut: dict[str, Any] = {"seqlen": 32, "device": "cpu"}
    planned = reprune.plan(model, calibration=text, samples=4, **cut)
    assert planned.refusals == ()
    assert all(costs.operations for costs in planned.decoder.costs(32)), "found by running it on no values"
    reprune.prune(model, out, calibration=text, samples=4, reconstruct="LR", **cut)
    assert reprune.verify(out).passed
    assert reprune.evaluate(out, text, max_windows=2, **cut).perplexity > 1


class _Convolved(nn.Module):
    def __init__(self, kernel: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3, device="meta"))
        self.kernel = kernel

    def forward(self, states: Tensor) -> Tensor:
        convolved: Tensor = self.kernel(states, self.weight)
        return convolved


def test_a_block_without_its_weights_is_run_without_them(kernel: Any) -> None:
    assert run_without_weights(_Convolved(kernel), (torch.ones(1, 4, 5),), {}).shape == (1, 4, 5)


def test_a_gpu_has_them_and_afterwards_so_has_all(kernel: Any) -> None:
    states, weight = torch.ones(1, 4, 5), torch.ones(4, 3)
    with plain_kernels(torch.device("cuda")), pytest.raises(RuntimeError, match="is_cuda"):
        kernel(states, weight)
    with pytest.raises(ZeroDivisionError), plain_kernels(torch.device("cpu")):
        kernel(states, weight)
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="is_cuda"):
        kernel(states, weight)


def test_threads_that_are_in_and_out_in_turn_leave_nothing_behind(kernel: Any) -> None:
    states, weight = torch.ones(1, 4, 5), torch.ones(4, 3)
    before = vars(hub_kernels)["is_torchdynamo_exporting"]
    first, second = (plain_kernels(torch.device("cpu")) for _ in range(2))
    with ThreadPoolExecutor(1) as other:
        first.__enter__()
        with pytest.raises(RuntimeError, match="is_cuda"):
            other.submit(kernel, states, weight).result()
        other.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        with pytest.raises(RuntimeError, match="is_cuda"):
            kernel(states, weight)
        assert other.submit(kernel, states, weight).result().shape == states.shape
        other.submit(second.__exit__, None, None, None).result()
    assert vars(hub_kernels)["is_torchdynamo_exporting"] is before


def test_no_load_of_a_whole_model_asks_for_kernels_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers 5.25 downloads them by default."""
    given = []
    load = vars(tf.PreTrainedModel)["from_pretrained"].__func__

    def from_pretrained(kind: Any, *arguments: Any, **options: Any) -> Any:
        given.append(options.get("use_kernels"))
        return load(kind, *arguments, **options)

    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tf.PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
    model, out = tiny.save("llama", tmp_path / "llama"), tmp_path / "out"
    load_model(model, torch.device("cpu"))
    load_model(model, torch.device("cpu"), precision=Precision(torch.bfloat16))
    reprune.prune(model, out, calibration="manual", samples=2, seqlen=16, reconstruct="LR", device="cpu")
    assert reprune.verify(out).passed
    assert given == [False] * 3
    write_gguf(tmp_path / "tiny.gguf")
    given.clear()
    convert_gguf(tmp_path / "tiny.gguf", print)
    assert given == [False]
