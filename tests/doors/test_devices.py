"""If a model cannot be computed in half precision, `auto` is float32, and a half precision given by name is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import reprune
from reprune.doors import devices
from reprune.doors.study.watcher import StudyWatcher
from reprune.engine.watcher import Watcher
from reprune.errors import HalfPrecisionError, InputError
from reprune.model.block import Precision
from tests import tiny
from tests.doors.conftest import QUICK, Cli
from tests.doors.study.runs import MEASURES, SETTINGS, quicken
from tests.engine.quick import tensors


@pytest.fixture
def dbrx(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that sums its experts' outputs in the dtype of the states; `auto` is bfloat16."""
    monkeypatch.setattr(devices, "_cpu_multiplies", lambda precision: True)
    (here / "text.txt").write_text(tiny.text())
    return tiny.save("dbrx", here / "dbrx")


PRUNE = ["prune", "dbrx", "--out", "out", "--reconstruct", "BR+GP", "--device", "cpu"]


def test_prune_goes_on_in_float32_and_tells_no_note_twice(
    cli: Cli, here: Path, dbrx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "said_of_threads", lambda: "too many threads")
    said = cli(*PRUNE, *QUICK, "--set", "precision=auto")
    assert said.code == 0
    for note in ("float32 is used instead", "note: too many threads"):
        assert " ".join(said.out.split()).count(note) == 1
    assert reprune.status("out").recipe["precision"] == "float32"
    cli(*PRUNE[:3], "plain", *PRUNE[4:], *QUICK)
    one, other = tensors(here / "out"), tensors(here / "plain")
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_a_study_goes_on_in_float32_and_so_does_the_same_command_later(
    here: Path, dbrx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    told: list[str] = []
    watcher = StudyWatcher()
    monkeypatch.setattr(watcher, "note", told.append)
    monkeypatch.setattr(watcher, "started", lambda *_: told.append("started"))
    options = {**SETTINGS, "texts": ["text.txt"], "pruners": ["magnitude"], "settings": []}
    for rungs in (["LR"], ["LR", "BR"]):
        record = reprune.study("dbrx", "s", rungs=rungs, watcher=watcher, **options)
        assert [cell["status"] for cell in record["cells"]] == ["done"] * len(rungs)
        assert record["settings"]["precision"] == record["dense"]["perplexity"]["text.txt"]["precision"] == "float32"
    assert told.count("started") == sum("text.txt is a calibration text too" in note for note in told) == 2
    assert sum("float32 is used instead" in note for note in told) == 1
    with pytest.raises(InputError, match="precision float32, now bfloat16"):
        reprune.study("dbrx", "s", **{**options, "settings": ["precision=bfloat16"]})
    with pytest.raises(HalfPrecisionError):
        reprune.study("dbrx", "other", **{**options, "settings": ["precision=bfloat16"]})


def test_a_plan_and_a_study_go_on_where_only_predictions_cannot_be_computed(
    here: Path, dbrx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that adds its logits up in the dtype of the states; a plan with distillation computes some."""
    forward, told = LlamaForCausalLM.forward, list[str]()

    def added(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> Any:
        found = forward(self, *args, **kwargs)
        rows = torch.arange(len(found.logits), device=found.logits.device)
        found.logits = found.logits.float().zero_().index_add(0, rows, found.logits)
        return found

    quicken(monkeypatch)
    monkeypatch.setattr(LlamaForCausalLM, "forward", added)
    watcher, studied = Watcher(), StudyWatcher()
    for one in (watcher, studied):
        monkeypatch.setattr(one, "note", told.append)
    options = {**SETTINGS, "texts": ["text.txt"], "settings": ["distill=1"]}
    run = {name: value for name, value in options.items() if name not in MEASURES}
    assert reprune.plan("llama", watcher=watcher, **run).recipe.precision == "float32"
    record = reprune.study("llama", "s", pruners=["magnitude"], rungs=["LR"], watcher=studied, **options)
    assert (record["settings"]["precision"], record["cells"][0]["status"]) == ("float32", "done")
    assert sum("float32 is used instead" in note for note in told) == 2
    for more in ({"settings": ["distill=1", "precision=bfloat16"]}, {"ranks": 2}):  # as `prune` refuses both
        with pytest.raises(HalfPrecisionError):
            reprune.plan("llama", **{**run, **more})


def test_it_does_so_in_an_empty_folder_that_out_is_a_link_to(here: Path, dbrx: Path) -> None:
    (here / "elsewhere").mkdir()
    (here / "out").symlink_to("elsewhere")
    reprune.prune("dbrx", "out", calibration="manual", samples=8, seqlen=24, reconstruct="LR", device="cpu")
    assert reprune.status(here / "elsewhere").recipe["precision"] == "float32"


def test_bfloat16_by_name_is_refused_and_leaves_nothing(cli: Cli, here: Path, dbrx: Path) -> None:
    said = cli(*PRUNE, *QUICK, "--set", "precision=bfloat16")
    assert said.code == 2
    assert "error: this model cannot be run with products in bfloat16" in said.err
    assert "--set precision=float32" in said.err
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, **options: reprune.evaluate(model, "text.txt", **options).perplexity,
        lambda model, **options: reprune.errors_against(model, model, "text.txt", **options).embedding,
    ],
)
def test_measures_go_on_in_float32(here: Path, dbrx: Path, measure: Callable[..., float]) -> None:
    told: list[str] = []
    options: dict[str, Any] = {"seqlen": 32, "max_windows": 4, "device": "cpu"}
    found = measure(dbrx, notify=told.append, **options)
    assert len(told) == 1
    assert "float32 is used instead" in told[0]
    assert found == measure(dbrx, precision="float32", **options)
    with pytest.raises(HalfPrecisionError):
        measure(dbrx, precision="bfloat16", **options)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda: torch.zeros(2, 2).index_add_(0, torch.tensor([0]), torch.zeros(1, 2).bfloat16()), HalfPrecisionError),
        (lambda: torch.zeros(2, 2) @ torch.zeros(3, 2), RuntimeError),
        (lambda: torch.zeros(2).index_select(0, torch.tensor([5])), IndexError),
    ],
)
def test_only_what_comes_of_dtypes_is_said_to(wrong: Callable[[], Any], expected: type[Exception]) -> None:
    with pytest.raises(expected) as found, Precision(torch.bfloat16).on(torch.device("cpu")):
        wrong()
    assert type(found.value) is expected


def test_a_result_that_windows_were_finished_of_is_kept(
    here: Path, dbrx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later block cannot be run."""
    from reprune.model.block import Block

    run = Block.run

    def later(self: Block, *args: Any, **kwargs: Any) -> Any:
        if self.index == 2 and self.precision.products == torch.bfloat16:
            raise HalfPrecisionError("block 2 cannot be run")
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Block, "run", later)
    tiny.save("llama", here / "llama")
    with pytest.raises(HalfPrecisionError):
        reprune.prune("llama", "out", calibration="manual", samples=8, seqlen=24, reconstruct="LR", device="cpu")
    assert reprune.status("out").windows_done == 2


@pytest.mark.parametrize(
    ("count", "device", "settled"),
    [
        (0, "auto", "cpu"),
        (1, "auto", "cuda"),
        (0, "cuda", None),
        (0, "cuda:0", None),
        (1, "cuda", "cuda"),
        (1, torch.device("cuda", 0), "cuda:0"),
        (1, "cuda:1", None),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_a_device_is_one_that_is_there(
    count: int, device: str | torch.device, settled: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    if settled is not None:
        assert devices.settle_device(device) == settled
        return
    with pytest.raises(
        InputError, match=f"--device {device}: this machine has {count or 'no'} CUDA devices?; use --device"
    ):
        devices.settle_device(device)


@pytest.mark.parametrize(("cuda", "hip", "has"), [("12.8", None, True), (None, "6.2", True), (None, None, False)])
def test_a_pytorch_without_cuda_says_nothing_of_the_machine(
    cuda: str | None, hip: str | None, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in {"cuda": cuda, "hip": hip}.items():
        monkeypatch.setattr(torch.version, name, version)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    why = "this machine has no CUDA devices" if has else f"PyTorch {torch.__version__} is built without CUDA, whatever"
    with pytest.raises(InputError, match=re.escape(f"--device cuda: {why}")):
        devices.settle_device("cuda")


def test_what_auto_is_on_the_first_machine_must_be_there_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: Any = SimpleNamespace(first_does=lambda settled: ["cuda:1", "bfloat16"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.settle_together("auto", "auto", ranks) == ("cuda:1", "bfloat16")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--device cuda:1: this machine has 1 CUDA device; use --device cuda:0 or cpu"):
        devices.settle_together("auto", "auto", ranks)


@pytest.mark.parametrize(
    ("cards", "device", "precision"),
    [
        ([75, 80], "cuda", "float32"),
        ([75, 80], "cuda:0", "float32"),
        ([75, 80], "cuda:1", "bfloat16"),
        ([90, 70], "cuda", "bfloat16"),
        ([90, 70], "cuda:1", "float32"),
    ],
)
def test_auto_is_what_the_gpu_that_is_asked_for_multiplies_fast(
    cards: list[int], device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def properties(of: str) -> SimpleNamespace:
        major, minor = divmod(cards[torch.device(of).index or 0], 10)
        return SimpleNamespace(major=major, minor=minor)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # true of all GPUs, as it counts emulation
    assert devices.settle_precision("auto", device) == precision
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert devices.settle_precision("auto", device) == "bfloat16", "AMD numbers its GPUs otherwise"


@pytest.mark.parametrize(
    ("precision", "device", "capabilities", "slow"),
    [
        ("float16", "cpu", {"architecture": "x86_64", "avx512_bf16": True}, True),
        ("float16", "cpu", {"architecture": "x86_64", "amx_fp16": True}, False),
        ("float16", "cuda", {"architecture": "x86_64"}, False),
        ("bfloat16", "cpu", {"architecture": "x86_64", "avx512_bf16": True}, False),
        ("bfloat16", "cpu", {"architecture": "x86_64"}, True),
        ("bfloat16", "cpu", {"architecture": "aarch64"}, False),
        ("float32", "cpu", {"architecture": "x86_64"}, False),
        ("auto", "cpu", {"architecture": "x86_64"}, False),
    ],
)
def test_it_is_known_which_precisions_are_slow_here(
    precision: str, device: str, capabilities: dict[str, Any], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_capabilities", lambda: capabilities)
    assert bool(devices.slowness(precision, device)) == slow


def test_who_asks_for_a_slow_precision_is_told_so_once(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_capabilities", lambda: {"architecture": "x86_64"})
    tiny.save("llama", here / "llama")
    (here / "text.txt").write_text(tiny.text())
    said = cli("prune", "llama", "--out", "out", "--reconstruct", "LR", *QUICK, "--set", "precision=bfloat16")
    assert said.code == 0
    line = "note: this CPU multiplies slowly in bfloat16; precision auto is faster"
    assert [one for one in said.out.splitlines() if "slowly" in one] == [line]
    told: list[str] = []
    reprune.evaluate("llama", "text.txt", seqlen=32, max_windows=2, precision="bfloat16", notify=told.append)
    assert told == [line]
