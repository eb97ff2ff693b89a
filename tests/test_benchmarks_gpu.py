"""Benchmarks on a GPU: what they time is the GPU's work. There is none here, nor is one used."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.benchmark import load


def test_the_textbook_computes_in_float32_and_is_timed_until_its_gpu_is_done(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment allows, and whichever GPU is the current one."""
    textbook, seen = load("textbook"), list[Any]()
    network: Any = SimpleNamespace(model=SimpleNamespace(layers=[None]), save_pretrained=lambda _: None)
    for name in ("to", "eval", "requires_grad_"):
        setattr(network, name, lambda *_: network)
    monkeypatch.setattr(textbook, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=lambda *_, **__: network))
    monkeypatch.setattr(textbook, "draw_samples", lambda *_: SimpleNamespace(calibration=network))
    monkeypatch.setattr(textbook, "prune", lambda *_: seen.append(torch.get_float32_matmul_precision()))
    monkeypatch.setattr(textbook, "peak_memory_bytes", lambda _: {"host": 1, "device": 2})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: seen.append(device))
    given = [str(llama), "--out", str(tmp_path), "--calibration", "manual", "--device", "cuda:1"]
    monkeypatch.setattr(sys, "argv", ["textbook.py", *given])
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
    try:
        textbook.main()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "cuda:1"]
