"""Runs on another device do the same as on the CPU, in one process and in several: no tensor is on the wrong device.

The machines that test this have no GPU, so the device is simulated; it refuses what CUDA refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import reprune
from reprune.doors.api import prune_by_recipe
from reprune.doors.generation.generate import generate
from reprune.doors.zeroshot.accuracy import zero_shot
from reprune.doors.zeroshot.rows import LAYOUTS
from reprune.engine.watcher import Watcher
from reprune.engine.window import PrunedBlock
from reprune.math import masking
from reprune.math.standardization import FeatureSums
from reprune.model.decoder import Decoder
from reprune.model.whole import load_model
from reprune.planning.generation.settings import Generation
from reprune.planning.layers import resolve_recipe
from tests import pretended, tiny
from tests.benchmark import load
from tests.doors.zeroshot.test_accuracy import lines
from tests.engine import together
from tests.engine.quick import tensors
from tests.engine.test_ranks import RECIPES, TOLERANCE, job, lay_out

_LEFT_OUT = ("LR, magnitude", "LR, SparseGPT", "BR", "no guard, in parts", "by error", "experts")
ALONE = [
    name for name in RECIPES if name not in _LEFT_OUT and not name.startswith("float16")
]  # float16: each device rounds in its own way
TOGETHER = ["BR+GP+CR", "least squares", "kept weights", "experts, as the teacher"]
PLACES = {"cpu": "cpu", "1": pretended.NAME}
"""By the folder of one process's results: its device."""
WRITING = Generation(length=16, least=8, batch_size=4, language="any", filters=())


def _prune(jobs: list[tuple[str, str, dict[str, Any]]], folder: Path) -> None:
    pretended.device()
    masking._AT_ONCE = 1000  # less than a matrix, as in large models
    together.prune(jobs, folder)


def _prune_alone(jobs: list[tuple[str, str, dict[str, Any]]]) -> None:
    pretended.device()
    masking._AT_ONCE = 1000
    for model, out, content in jobs:
        with _features_summed_on(content["device"]):
            prune_by_recipe(resolve_recipe(model, content), Path(out), Watcher())


@contextmanager
def _features_summed_on(device: str) -> Iterator[None]:
    """Fail if targets are summed over tokens on another device than this one."""
    update = FeatureSums.update

    def on_device(self: FeatureSums, targets: Tensor) -> None:
        assert targets.device.type == device
        update(self, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureSums, "update", on_device)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("devices")
    lay_out(root)
    (root / "worked").mkdir()
    alone = [[job(root, place, name, device=device) for name in ALONE] for place, device in PLACES.items()]
    _end([rank for jobs in alone for rank in together.start(1, _prune_alone, jobs)])
    _end(together.start(2, _prune, [job(root, "2", name, device=pretended.NAME) for name in TOGETHER], root / "worked"))
    return root


def _end(ranks: Sequence[together.Rank]) -> None:
    for ended in [rank.wait(300) for rank in ranks]:
        assert ended.code == 0, ended.err


@pytest.mark.parametrize(("count", "name"), [*((1, name) for name in ALONE), *((2, name) for name in TOGETHER)])
def test_the_result_is_that_of_the_cpu(folder: Path, count: int, name: str) -> None:
    one, other = tensors(folder / "cpu" / name), tensors(folder / str(count) / name)
    assert one.keys() == other.keys()
    off = sum(float((tensor - other[key]).double().square().sum()) for key, tensor in one.items())
    power = sum(float(tensor.double().square().sum()) for tensor in one.values())
    assert (off / power) ** 0.5 <= TOLERANCE
    assert json.loads((folder / str(count) / name / "reprune.json").read_text())["recipe"]["device"] == pretended.NAME
    assert reprune.verify(folder / str(count) / name).passed


def _run_models(root: str, device: str) -> None:
    """Do everything else that runs a model, in all precisions."""
    pretended.device()
    folder, found = Path(root), {}
    text, model = str(folder / "text.txt"), folder / "llama"
    for precision in ("float32", "bfloat16", "float16"):
        options: dict[str, Any] = {"device": device, "precision": precision}
        cut: dict[str, Any] = {"seqlen": 32, "max_windows": 20, **options}
        pruned = folder / f"pruned-{device}-{precision}"
        settings = [f"precision={precision}"]
        reprune.prune(model, pruned, calibration=text, samples=8, seqlen=24, epochs=2, device=device, settings=settings)
        texts = folder / f"own-{device}-{precision}.jsonl"
        generate(model, texts, samples=4, settings=WRITING, **options)
        asked = zero_shot(pruned, ["boolq", "arc_easy"], data=folder / "rows", **options)
        found[precision] = {
            "zero-shot": [task.accuracy for task in asked.tasks],
            "perplexity": reprune.evaluate(pruned, text, **cut).perplexity,
            "against": reprune.errors_against(pruned, model, text, **cut).blocks[-1].relative,
        }
    (folder / f"{device}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The figures of `_run_models`, by device and precision."""
    root = tmp_path_factory.mktemp("measured")
    tiny.save("llama", root / "llama")
    (root / "text.txt").write_text(tiny.LICENCE)  # as in `lay_out`, so that masks do not depend on Python's version
    (root / "rows").mkdir()
    for task in ("boolq", "arc_easy"):
        (root / "rows" / LAYOUTS[task].file).write_text("\n".join(json.dumps(line) for line in lines(task)))
    _end([rank for device in PLACES.values() for rank in together.start(1, _run_models, str(root), device)])
    found = {device: json.loads((root / f"{device}.json").read_text()) for device in ("cpu", pretended.NAME)}
    for precision in found["cpu"]:
        texts = [(root / f"own-{device}-{precision}.jsonl").read_text() for device in ("cpu", pretended.NAME)]
        assert [len(text.splitlines()) for text in texts] == [4, 4]
        assert texts[0] == texts[1] or precision != "float32"
    return found


@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-4), ("bfloat16", 0.1), ("float16", 0.1)])
def test_a_model_is_evaluated_there_as_on_the_cpu(
    measured: dict[str, dict[str, Any]], precision: str, near: float
) -> None:
    here, there = measured["cpu"][precision], measured[pretended.NAME][precision]
    for what in ("perplexity", "against"):
        assert there[what] == pytest.approx(here[what], rel=near)
    if precision == "float32":
        assert there["zero-shot"] == here["zero-shot"]


def _textbook(root: str) -> None:
    """Run the textbook baseline, with which a GPU is to be compared."""
    pretended.device()
    textbook = load("textbook")
    network = load_model(Path(root) / "llama", pretended.device()).requires_grad_(False)
    ids = torch.arange(4 * 24).view(4, 24).remainder(tiny.VOCABULARY).to(pretended.NAME)
    textbook.prune(network, ids, "BR+GP+CR", 0.5, 2, 0)
    zeros = network.model.layers[0].mlp.up_proj.weight == 0
    assert abs(float(zeros.float().mean()) - 0.5) < 0.01


def test_the_textbook_script_of_the_benchmarks_runs_on_the_device(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "llama")
    _end(together.start(1, _textbook, str(tmp_path)))


class _Crossing(TorchDispatchMode):
    """Counts the bytes that CUDA would send to a device, and back: if a copy converts, the host does it."""

    def __init__(self) -> None:
        super().__init__()
        self.there = self.back = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("_to_copy", "copy_"):
            source = args[1] if func.overloadpacket.__name__ == "copy_" else args[0]
            way = source.device.type, found.device.type
            self.there += found.nbytes * (way == ("cpu", pretended.NAME))
            self.back += source.nbytes * (way == (pretended.NAME, "cpu"))
        return found


def _carry(root: str) -> None:
    """Load a block and round it: what crosses, and that it comes back as it was."""
    decoder = Decoder(Path(root) / "llama", device=pretended.device())
    with _Crossing() as crossing:
        block = decoder.load(0)
        tensors = PrunedBlock(block).round_(decoder)
    assert (crossing.there, crossing.back) == (decoder.block_bytes(0), decoder.block_bytes(0))
    for name, tensor in tensors.items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, decoder.checkpoint.tensor(name))


def test_a_block_goes_there_and_back_as_it_is_stored(tmp_path: Path) -> None:
    """In float32, it would be twice as much that crosses a GPU's link."""
    tiny.save("llama", tmp_path / "llama", torch.bfloat16)
    _end(together.start(1, _carry, str(tmp_path)))


def _mix() -> None:
    pretended.device()
    here, there = torch.ones(3, 3), torch.ones(3, 3).to(pretended.NAME)
    refused: list[Callable[[], Any]] = [
        lambda: there + here,
        lambda: here.add_(there),
        lambda: there @ here.T,
        lambda: torch.cat([there, here]),
        lambda: there.index_select(0, torch.tensor([0])),
        lambda: there.numpy(),
        lambda: torch.rand(2, device=there.device, generator=torch.Generator()),
    ]
    for number, work in enumerate(refused):
        try:
            work()
        except (RuntimeError, TypeError):
            continue
        raise AssertionError(f"operation {number} was done")
    assert (there[torch.tensor([0])] + torch.tensor(1.0)).device.type == pretended.NAME
    assert torch.equal(here.copy_(there * 2), torch.full((3, 3), 2.0))


def test_the_pretended_device_refuses_what_cuda_refuses() -> None:
    _end(together.start(1, _mix))
