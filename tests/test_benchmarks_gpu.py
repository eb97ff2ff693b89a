"""Benchmarks on a GPU: what they time, and whose memory they compare, is the GPU. There is none here."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.benchmark import FOLDER, load


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


@pytest.mark.parametrize(("device", "memory", "forecast"), [("cpu", 2, 1), ("auto", 2, 1), ("cuda", 8, 4)])
def test_a_forecast_is_compared_with_the_memory_of_the_device_that_ran(
    device: str,
    memory: int,
    forecast: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    on_gpu = device == "cuda"  # there is none here that `auto` would be
    plan = {"seconds": 1.0, "memory_bytes": 10**9, "device_bytes": on_gpu * 4 * 10**9}
    record = {"seconds": 1.0, "peak_memory_bytes": {"host": 2 * 10**9, "device": on_gpu * 8 * 10**9}}
    benchmarks = load("forecast"), load("scale")
    made: dict[str, Any] = {"planned": lambda *_: plan, "prune": lambda *_: record}
    made |= dict.fromkeys(("like", "random_llama"), lambda folder, *_, **__: folder)
    for module in benchmarks:
        for name, instead in made.items():
            monkeypatch.setattr(module, name, instead, raising=False)
    given = ["--out", str(tmp_path), "--model", "llama", "--only", "1", "--device", device]
    monkeypatch.setattr(sys, "argv", ["forecast.py", *given])
    benchmarks[0].main()
    assert f"| {memory}.00 | {forecast}.00 (-50%) |" in capsys.readouterr().out
    found = benchmarks[1].run(benchmarks[1].BASE, tmp_path, device)
    assert (found["memory"], found["forecast_memory"]) == (memory * 10**9, forecast * 10**9)


@pytest.mark.parametrize(("rung", "others", "streams"), [("BR", 2, 3), ("BR+GP", 2, 2), ("BR+GP+CR", 1, 2)])
def test_what_the_textbook_holds_of_its_gpu_beside_a_window_is_told_apart(
    rung: str, others: int, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the whole model there, and all samples' states, of which reprune has a few batches."""
    monkeypatch.syspath_prepend(str(FOLDER))
    blocks = load("blocks")
    peak = 10**9
    monkeypatch.setattr(
        blocks, "textbook", lambda *_: {"seconds_a_block": 1.0, "peak": 5 * peak, "peak_device": peak * on_gpu}
    )
    options = Namespace(hidden=8, intermediate=16, blocks=3, samples=5, seqlen=7)
    weights = 4 * (4 * 8 * 8 + 3 * 8 * 16)
    for on_gpu, states in ((0, 0), (1, streams * 4 * 5 * 7 * 8)):
        *_, whole, window = blocks._textbook(Path("model"), Path("out"), rung, {}, options)
        assert whole * 1e9 == pytest.approx(peak if on_gpu else 5 * peak)
        assert (whole - window) * 1e9 == pytest.approx(others * weights + states, rel=1e-3)
