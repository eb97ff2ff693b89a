"""With `solver.start=least-squares`, each linear group is fitted to the dense model's outputs when it is pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import reprune
from reprune.engine.pruning import linear_groups, prune_block_
from reprune.engine.refitting import Refitting
from reprune.engine.watcher import Watcher
from reprune.engine.window import PrunedBlock
from reprune.math.least_squares import LeastSquares
from reprune.math.patterns import Unstructured
from reprune.math.pruner import Pruned
from reprune.math.ranks import ALONE
from reprune.math.statistics import Gram, SquaredNorms, Statistics
from reprune.math.wanda import Wanda
from reprune.model.block import Block, Call, LinearGroup, Precision
from reprune.planning.schedule import Window
from reprune.planning.sparsities import Sparsities
from tests import tiny
from tests.engine.quick import prune, samples_of, tensors

pytestmark = pytest.mark.usefixtures("short_manual")

REFIT = "solver.start=least-squares"
_FORMS = [name for name in tiny.CONFIGS if name not in ("qwen2", "qwen3", "mistral")]
"""Without those whose biases, norms and sliding windows are covered by others."""


@pytest.mark.parametrize(
    ("name", "pruner"),
    [*((name, "wanda") for name in _FORMS), *product(["llama", "gpt2"], ["magnitude", "sparsegpt"])],
)
def test_every_architecture_comes_nearer_to_the_dense_model(name: str, pruner: str, tmp_path: Path) -> None:
    model = tiny.save(name, tmp_path / "model")
    options = {"pruner": pruner, "reconstruct": "LR", "sparsity": "2:4", "samples": 64, "batch_size": 16}
    plain = prune(model, tmp_path / "plain", "pruner.sequential=true", **options)
    record = prune(model, tmp_path / "out", REFIT, **options)
    assert record["blocks"][-1]["calibration_error"] < plain["blocks"][-1]["calibration_error"]
    assert record["blocks"][-1]["heldout_error"] < plain["blocks"][-1]["heldout_error"]
    for block in record["blocks"]:
        assert all(matrix["sparsity"] == pytest.approx(0.5, abs=1e-3) for matrix in block["matrices"])
        fitted = [entry for window in record["windows"] for entry in window["least_squares"]]
        named = [name for entry in fitted if entry["block"] == block["index"] for name in entry["linears"]]
        assert sorted(named) == sorted(matrix["name"] for matrix in block["matrices"])


@pytest.mark.parametrize(("teacher", "before"), [("global", []), ("local", ["layers.0."])])
def test_a_linear_gets_the_weights_that_least_squares_over_whole_models_gives(
    teacher: str, before: list[str], llama: Path, tmp_path: Path
) -> None:
    """The twin: the gate of block 1, by the inputs that hooks see in a model pruned up to there and in its teacher.

    `before` names the blocks that are pruned in the teacher.
    """
    ridge = 0.1
    settings = (REFIT, f"teacher={teacher}", f"solver.ridge={ridge}")
    record = prune(llama, tmp_path / "out", *settings, pruner="magnitude", reconstruct="LR")
    ids = samples_of(llama, record).calibration
    dense, sparse = tensors(llama), tensors(tmp_path / "out")
    inputs = []
    for parts in (["layers.0.", "layers.1.self_attn."], before):
        model = AutoModelForCausalLM.from_pretrained(llama)
        weights = {key: sparse[key] if any(part in key for part in parts) else value for key, value in dense.items()}
        model.load_state_dict(weights, strict=False)
        inputs.append(_inputs_of_gate(model, ids).double())
    X, Z = inputs
    assert not torch.allclose(X, Z)
    name = "model.layers.1.mlp.gate_proj.weight"
    D, W = dense[name].double(), sparse[name].double()
    penalty = (ridge * X.square().sum(dim=0).mean()).sqrt()
    for row in range(len(D)):
        kept = W[row] != 0
        A = torch.cat([X[:, kept], penalty * torch.eye(int(kept.sum()), dtype=torch.float64)])
        b = torch.cat([Z @ D[row], penalty * D[row, kept]])
        torch.testing.assert_close(W[row, kept], torch.linalg.lstsq(A, b).solution, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def _inputs_of_gate(model: Any, ids: Tensor) -> Tensor:
    seen: list[Tensor] = []
    model.model.layers[1].mlp.gate_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(ids)
    return seen[0].flatten(0, 1)


def test_parts_of_a_linear_that_read_parts_of_its_inputs_are_fitted_too(tmp_path: Path) -> None:
    """As in DeepSeek V4."""
    record = prune(tiny.save("deepseek_v4", tmp_path / "model"), tmp_path / "out", REFIT, reconstruct="LR", samples=8)
    fitted = {name for window in record["windows"] for entry in window["least_squares"] for name in entry["linears"]}
    assert {"self_attn.o_a_proj.0", "self_attn.o_a_proj.1"} <= fitted


def test_adam_goes_on_from_there(llama: Path, tmp_path: Path) -> None:
    alone = prune(llama, tmp_path / "alone", REFIT, "solver.name=none", reconstruct="BR+GP", samples=48, batch_size=12)
    both = prune(llama, tmp_path / "both", REFIT, reconstruct="BR+GP", samples=48, batch_size=12)
    first = both["windows"][0]
    assert first["calibration_error"]["before"] == pytest.approx(alone["windows"][0]["calibration_error"]["after"])
    assert first["calibration_error"]["after"] < first["calibration_error"]["before"]


class _StopAfter(Watcher):
    def __init__(self, window: int) -> None:
        self._window = window

    def window_done(self, window: Window, record: Mapping[str, Any]) -> None:
        if window.index == self._window:
            raise KeyboardInterrupt


@pytest.mark.parametrize("rung", ["LR", "BR+GP+CR", "auto"])
def test_resume_ends_with_the_same_bits(llama: Path, rung: str, tmp_path: Path) -> None:
    whole = prune(llama, tmp_path / "whole", REFIT, reconstruct=rung)
    with pytest.raises(KeyboardInterrupt):
        prune(llama, tmp_path / "resumed", REFIT, reconstruct=rung, watcher=_StopAfter(1))
    resumed = reprune.resume(tmp_path / "resumed")
    one, two = tensors(tmp_path / "whole"), tensors(tmp_path / "resumed")
    assert all(torch.equal(one[key], two[key]) for key in one)
    ridges = [[window["least_squares"] for window in record["windows"]] for record in (whole, resumed)]
    assert ridges[0] == ridges[1]


@pytest.mark.parametrize("start", ["pruner", "least-squares"])
@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_pruner_statistics_may_be_of_the_first_source_alone(
    llama: Path, pruner: str, start: str, tmp_path: Path
) -> None:
    """Masks are then those of the first source alone, although weights are fitted to all sources if they are fitted.

    The first source does not end with a batch.
    """
    own = tmp_path / "other.txt"
    own.write_text("Whatever else there is to be read is read here, and again, and once more. " * 200)
    sources = {"calibration": ["manual=8", f"{own}=5"], "heldout": "manual=4"}
    options: dict[str, Any] = {"samples": 8, "seqlen": 24, "batch_size": 3, "device": "cpu", "pruner": pruner}
    for name, first in (("mixed", True), ("alone", False)):
        statistics = f"pruner.statistics={'first' if first else 'all'}"
        settings = [f"solver.start={start}", "precision=float32", statistics]
        chosen = sources if first else {**sources, "calibration": ["manual=8"]}
        reprune.prune(llama, tmp_path / name, reconstruct="LR", settings=settings, **options, **chosen)
    mixed, alone = tensors(tmp_path / "mixed"), tensors(tmp_path / "alone")
    key = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(mixed[key] == 0, alone[key] == 0)
    assert torch.equal(mixed[key], alone[key]) is (start == "pruner")


class _Beside(torch.nn.Module):
    """Two linears that read the same tensor, with names that are not in alphabetical order."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = (torch.nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x) + self.key(x)


def test_each_matrix_of_a_group_is_fitted_to_its_own_dense_one() -> None:
    """With the dense model's inputs, no masks and a tiny ridge, it becomes the dense matrix again."""
    torch.manual_seed(0)
    block, twin = (Block(0, _Beside(), torch.device("cpu"), Precision()) for _ in range(2))
    call, states = Call((None,), {}, 0), torch.randn(6, 5, 4)
    pairs = [(slice(0, 4), states[:4], states[:4], call), (slice(4, 6), states[4:], states[4:], call)]
    refitting = Refitting(LeastSquares(1e-6, iterations=20), twin, lambda: pairs, 4, 4, True, ALONE)
    group = LinearGroup(tuple(block.linears))
    assert group.names == ("query", "key"), "or this shows nothing"
    gathered = refitting.gather(block, group, Statistics(4, torch.device("cpu")))
    assert not isinstance(gathered, str)
    left = [Pruned(linear.matrix().clone(), torch.ones(4, 4, dtype=torch.bool)) for linear in block.linears]
    fit = refitting.refit(group, left, gathered)
    for weight, dense in zip(fit.weights, (twin.module.query, twin.module.key), strict=True):
        torch.testing.assert_close(weight, dense.weight.detach(), rtol=1e-3, atol=1e-3)


class _Twice(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice = (torch.nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.once(x)))


class _Routed(torch.nn.Module):
    """Sends only tokens with a positive first value to its linear, as to an expert."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 4)
        self.expert(flat[flat[:, 0] > 0])
        return x


@pytest.mark.parametrize(
    ("module", "linear", "as_many", "why"),
    [
        (_Twice, "twice", False, "it runs several times in a pass"),
        (_Routed, "expert", False, "it reads other tokens in the sparse model than in the dense one"),
        (_Routed, "expert", True, "it reads other tokens in the sparse model than in the dense one"),
    ],
)
def test_a_group_that_cannot_be_paired_is_left_to_the_pruner(
    module: type[torch.nn.Module], linear: str, as_many: bool, why: str
) -> None:
    torch.manual_seed(0)
    block = Block(0, module(), torch.device("cpu"), Precision())
    twin = Block(0, module(), torch.device("cpu"), Precision())
    twin.module.load_state_dict(block.module.state_dict())
    call, states = Call((None,), {}, 0), torch.randn(4, 5, 4)
    if as_many:  # equally many tokens reach the expert in both models, but different ones
        states[..., 0] = states[..., 0].abs() * torch.tensor([1.0, -1.0]).repeat(10).reshape(4, 5)
    pruned = PrunedBlock(block, linear_groups(block, states, call, ()))
    refitting = Refitting(LeastSquares(), twin, lambda: [(slice(0, 4), states, -states, call)], 4, 4, True, ALONE)
    sparsities = Sparsities(Unstructured(0.5))
    notes = prune_block_(pruned, lambda: [(states, call)], Wanda(), sparsities, False, {}, 0, ALONE, refitting)
    assert [note for note in notes if note.endswith(f"{linear}: not fitted by least squares: {why}")]
    assert (linear,) not in pruned.ridges
    matrix = next(one for one in block.linears if one.name == linear).matrix()
    assert (matrix == 0).sum() == matrix.numel() // 2


def test_gathering_feeds_the_pruner_with_its_own_samples_only() -> None:
    torch.manual_seed(0)
    block, twin = (Block(0, _Twice(), torch.device("cpu"), Precision()) for _ in range(2))
    call, states = Call((None,), {}, 0), torch.randn(7, 5, 4)
    batches = [slice(0, 3), slice(3, 5), slice(5, 7)]  # 5 calibration samples, 2 held-out ones
    pairs = [(batch, states[batch], 2 * states[batch], call) for batch in batches]
    refitting = Refitting(LeastSquares(), twin, lambda: pairs, 5, 4, True, ALONE)
    statistics = Statistics(4, torch.device("cpu"))
    group = LinearGroup((block.linears[0],))
    found = refitting.gather(block, group, statistics)
    assert not isinstance(found, str)
    assert statistics.tokens == 4 * 5
    for paired, samples in zip(found, (states[:5], states[5:]), strict=True):
        flat = samples.reshape(-1, 4)
        torch.testing.assert_close(paired.gram.matrix, flat.T @ flat)
        torch.testing.assert_close(paired.cross, 2 * flat.T @ flat)


class _Alike:
    """Two ranks whose samples are the same."""

    def add(self, values: Sequence[float]) -> list[float]:
        return [2 * value for value in values]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.mul_(2)


def test_a_group_that_cannot_be_paired_in_another_process_is_left_to_the_pruner_in_all() -> None:
    """Each takes part in the same sums, or all wait for ever."""

    class Unlike(_Alike):
        def add(self, values: Sequence[float]) -> list[float]:
            return [value + 1.0 for value in values]

    block, twin = (Block(0, _Twice(), torch.device("cpu"), Precision()) for _ in range(2))
    pairs = [(slice(0, 1), torch.ones(1, 5, 4), torch.ones(1, 5, 4), Call((None,), {}, 0))]
    ranks: Any = Unlike()
    refitting = Refitting(LeastSquares(), twin, lambda: pairs, 1, 1, True, ranks)
    found = refitting.gather(block, LinearGroup((block.linears[0],)), SquaredNorms(4, torch.device("cpu")))
    assert found == "it reads other tokens in the sparse model than in the dense one"


@pytest.mark.parametrize("kind", [SquaredNorms, Gram])
def test_what_is_gathered_is_summed_over_ranks_once(kind: type[SquaredNorms | Gram]) -> None:
    """A pruner's statistics too, be they its own or the X'X that least squares takes."""
    block, twin = (Block(0, _Twice(), torch.device("cpu"), Precision()) for _ in range(2))
    pairs = [
        (slice(start, start + 1), torch.ones(1, 5, 4), torch.ones(1, 5, 4), Call((None,), {}, 0)) for start in (0, 1)
    ]
    ranks: Any = _Alike()
    refitting = Refitting(LeastSquares(), twin, lambda: pairs, 1, 1, True, ranks)
    statistics = kind(4, torch.device("cpu"))
    found = refitting.gather(block, LinearGroup((block.linears[0],)), statistics)
    assert not isinstance(found, str)
    assert statistics.tokens == 2 * 5
    assert all(sums.eq(2 * 5).all() for sums in statistics._sums_of())
    for paired in found:
        assert paired.gram.matrix.eq(2 * 5).all() and paired.cross.eq(2 * 5).all()
