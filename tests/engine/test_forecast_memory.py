"""A forecast of memory and disk counts what a run holds at a time: weights, what a fit adds to them, streams."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reprune.engine.footprint import _copies, _gradients, distilling_bytes, least_memory_bytes, window_bytes
from reprune.engine.forecast import Forecast, forecast
from reprune.engine.group_statistics import AT_ONCE
from reprune.engine.work import Group
from reprune.model.predictor import LOGITS, LOGITS_OF_GPU
from reprune.planning.layers import resolve_recipe
from reprune.planning.schedule import windows
from tests.engine.test_forecast import _HIDDEN, _SPEED, _TOKENS, _WEIGHTS, _forecast, _work

_WORKSPACES = 2 * 32 * 2**20  # cuBLAS's, for the forward and the backward pass


def test_a_gpu_picks_kept_weights_of_a_compact_fit_within_its_backward_passes() -> None:
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP"}, settings=["device=cuda", "precision=bfloat16"])
    compact = recipe.model_copy(update={"solver": recipe.solver.model_copy(update={"compact": True})})
    cost = replace(_work().blocks[0], activations=1e8)  # far more than the weights: the peak is in a backward pass
    weights = 4 * _WEIGHTS
    for one, picking in ((recipe, 0), (compact, 2 * weights)):
        kept = one.solver.samples_at_a_time * cost.activations
        held = (_copies(one) - _gradients(one)) * weights
        found = window_bytes(one, replace(_work(), blocks=[cost] * 8), windows(8, 1, 1)[0])
        assert found == int(held + 1.3 * kept + picking) + 2 * 8 * cost.states, "those of the next batch"


def test_an_allocation_by_error_holds_a_block_twice_and_owl_no_gram_matrices() -> None:
    plain, by_error, owl = (
        _forecast("LR", None, "streams.memory=0", *more, pruner="sparsegpt")
        for more in ((), ("allocation=by-error",), ("allocation=owl",))
    )
    assert by_error.memory_bytes - plain.memory_bytes == pytest.approx(1.1 * 4 * _WEIGHTS, abs=1)
    assert owl.memory_bytes == plain.memory_bytes


def test_an_allocation_has_two_streams_more_than_the_start() -> None:
    plain, found = (_forecast("BR+GP", None, "streams.memory=0", *more) for more in ((), ("allocation=owl",)))
    assert found.disk_bytes - plain.disk_bytes == 4 * 36 * _TOKENS * _HIDDEN, "four, not three"


@pytest.mark.parametrize(
    ("rung", "settings", "count"),
    [("BR+GP", [], 3), ("BR", [], 4), ("BR+GP+CR", [], 5), ("BR+GP", ["distill=1"], 5)],
)
def test_streams_are_the_students_those_a_window_looks_back_on_and_local_targets(
    rung: str, settings: list[str], count: int
) -> None:
    """Windows of several blocks add the outputs of their open blocks, and distillation a copy of both streams."""
    stream = 36 * 4 * _TOKENS * _HIDDEN
    held, filed = (_forecast(rung, None, f"streams.memory={memory}", *settings) for memory in ("1e12", "0"))
    assert filed.disk_bytes - held.disk_bytes == count * stream


def test_a_window_looks_back_on_no_more_streams_than_there_are_blocks() -> None:
    found = [
        _forecast("BR+GP", _work(blocks=3, size=3), "streams.memory=0", f"schedule.size={size}", "schedule.stride=3")
        for size in (3, 1000)
    ]
    assert found[0].disk_bytes == found[1].disk_bytes


def test_the_least_memory_is_that_of_distillation_where_it_holds_more_blocks() -> None:
    recipes = [resolve_recipe("model", {"reconstruct": "LR", "distill": blocks}) for blocks in (0, 1, 4)]
    schedule = windows(8, 1, 1)
    least = [least_memory_bytes(recipe, schedule, [100] * 8) for recipe in recipes]
    assert least[0] == 400
    assert least[2] == pytest.approx(4 * least[1], abs=4)
    assert least[1] > 4 * least[0]


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (_forecast("LR"), _forecast("BR+GP")),
        (_forecast("BR+GP"), _forecast("BR+GP+CR")),
        (_forecast("BR+GP", None, "solver.micro_batch_size=1"), _forecast("BR+GP")),
        (_forecast("BR+GP", None, "solver.rank=8"), _forecast("BR+GP")),
        (_forecast("BR+GP", None, "guard=off"), _forecast("BR+GP")),
        (_forecast("BR+GP", None, "solver.compact=true"), _forecast("BR+GP")),
        (
            _forecast("BR+GP", None, "solver.compact=true"),
            _forecast("BR+GP", None, "solver.compact=true", sparsity=0.2),
        ),
        (_forecast("BR+GP+CR", None, "solver.checkpointing=true"), _forecast("BR+GP+CR")),
        (_forecast("LR", None, pruner="wanda"), _forecast("LR", None, pruner="sparsegpt")),
        (_forecast("LR", None, "streams.memory=0"), _forecast("LR")),
        (_forecast("BR+GP", None, "distill=3"), _forecast("BR+GP", None, "distill=6")),
        (_forecast("LR", None, "distill=3"), _forecast("LR", replace(_work(), head=(10**5, _HIDDEN)), "distill=3")),
    ],
)
def test_more_at_a_time_takes_more_memory(less: Forecast, more: Forecast) -> None:
    assert less.memory_bytes < more.memory_bytes


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        (["guard=off"], 1 + 0.25 + 1 + 2),
        (["guard=on"], 1 + 0.25 + 1 + 2 + 1),
        (["guard=off", "solver.compact=true"], 1 + 0.25 + 0.5 * (1 + 1 + 2)),
        (["guard=on", "solver.compact=true"], 1 + 0.25 + 0.5 * (1 + 1 + 2 + 1)),
        (["guard=on", "solver.rank=4"], 2),
    ],
)
def test_weights_that_are_fitted_are_held_with_masks_gradients_moments_and_the_guards_copy(
    settings: list[str], copies: float
) -> None:
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP", "sparsity": 0.5}, settings=["device=cpu", *settings])
    work = replace(_work(), blocks=[replace(_work().blocks[0], activations=0.0)] * 8, groups=[[]] * 8)
    assert window_bytes(recipe, work, work.schedule[0]) == copies * 4 * _WEIGHTS


def test_distillation_holds_the_head_and_some_logits() -> None:
    words = 5000
    work = replace(_work(), head=(words, _HIDDEN))
    for settings, kept in (
        ([], 2 * 40 * _HIDDEN * _TOKENS),
        (["solver.checkpointing=true"], 40 * _HIDDEN * _TOKENS + 2 * 4 * _HIDDEN * _TOKENS),
    ):
        recipe = resolve_recipe(
            "model", {"reconstruct": "BR+GP", "distill": 2}, settings=["device=cpu", "guard=off", *settings]
        )
        logits = 5 * 4 * words * _TOKENS * 8
        assert logits > 0.3 * 8 * kept
        most = max(8 * kept, 4 * 2 * _WEIGHTS)  # or, while the first step is tried, the weights before it
        expected = 4.25 * 4 * 2 * _WEIGHTS + 4 * words * _HIDDEN + most + logits
        assert distilling_bytes(recipe, work) == expected
        many = distilling_bytes(recipe, replace(work, head=(10**6, _HIDDEN)))
        assert many == expected + 4 * (10**6 - words) * _HIDDEN - logits + 5 * 4 * LOGITS, "not of all tokens at once"
        long = replace(work, head=(10**6, _HIDDEN), tokens=2**14)
        of_gpu, of_cpu = (distilling_bytes(recipe.model_copy(update={"device": on}), long) for on in ("cuda", "cpu"))
        assert of_gpu - of_cpu == 5 * 4 * (LOGITS_OF_GPU - LOGITS) + 2 * 8 * 4 * _TOKENS * _HIDDEN
        half = recipe.model_copy(update={"precision": "bfloat16"})
        assert expected - distilling_bytes(half, work) == 2 * words * _HIDDEN, "the head is held as it is multiplied by"


def test_gram_matrices_of_many_experts_are_held_in_parts() -> None:
    recipe = resolve_recipe("model", {"reconstruct": "LR", "pruner": "sparsegpt"}, settings=["device=cpu"])
    expert, plain = Group(64, 4096, 0.1, expert=True), Group(64, 2048)
    work = replace(_work(), blocks=[replace(_work().blocks[0], activations=0.0)] * 8)
    pruning = 4 * (2 * 4096**2 + 4 * 64 * 4096)
    for count, experts in ((3, 3 * 4 * 4096**2), (100, AT_ONCE)):
        found = window_bytes(recipe, replace(work, groups=[[plain, *[expert] * count]] * 8), work.schedule[0])
        assert found == 4 * _WEIGHTS + 4 * 2048**2 + experts + pruning


def test_a_model_that_writes_texts_before_is_held_as_a_whole() -> None:
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP"}, settings=["device=cpu", "seqlen=128"])
    none, small, large = (forecast(recipe, _work(), _SPEED, 0, writer_bytes=writer) for writer in (0, 10**6, 10**12))
    assert none == small
    assert large.memory_bytes == 10**12 + 11 * 10**7
    on_gpu = recipe.model_copy(update={"device": "cuda"})
    assert forecast(on_gpu, _work(), _SPEED, 0, writer_bytes=10**12).device_bytes == 10**12 + _WORKSPACES


def test_memory_does_not_grow_with_the_number_of_blocks() -> None:
    assert _forecast(work=_work(blocks=4)).memory_bytes == _forecast(work=_work(blocks=32)).memory_bytes


def test_streams_that_memory_does_not_hold_go_to_disk() -> None:
    held, filed = _forecast(), _forecast("BR+GP", None, "streams.memory=0")
    assert held.disk_bytes == 8 * 2 * _WEIGHTS + 10**8 + 10**4
    assert filed.disk_bytes == held.disk_bytes + 3 * 4 * 36 * _TOKENS * _HIDDEN


def test_a_gpu_holds_the_windows_and_the_host_the_streams() -> None:
    recipe = resolve_recipe(
        "model", {"reconstruct": "BR+GP"}, settings=["device=cuda", "precision=bfloat16", "guard=off"]
    )
    found, on_cpu = forecast(recipe, _work(), _SPEED, 10**8), _forecast()
    assert on_cpu.device_bytes == 0
    assert found.memory_bytes < on_cpu.memory_bytes
    sent = 2 * 8 * 4 * _TOKENS * _HIDDEN
    beside = 10**8 + 11 * 10**7 + sent  # a process, its surroundings, and states on their way to the GPU
    assert found.memory_bytes == beside + 10**8, "and a tensor that is written"
    no_tensors = forecast(recipe, replace(_work(), outside_bytes=[0]), _SPEED, 10**8)
    assert no_tensors.memory_bytes == int(beside + 1.1 * 3 * 36 * 4 * _TOKENS * _HIDDEN), "or the streams"
    # At the peak, besides weights, masks and moments, either all activations are held or all gradients.
    kept = 8 * 40 * _HIDDEN * _TOKENS
    assert found.device_bytes == int(3.25 * 4 * _WEIGHTS + kept + 0.3 * kept) + sent + _WORKSPACES
    few = forecast(recipe, replace(_work(), calibration=1), _SPEED, 10**8)
    assert few.device_bytes == int(4.25 * 4 * _WEIGHTS + 0.3 * kept / 8) + sent // 8 + _WORKSPACES
    # The guard adds a copy of the kept weights, which are half of them, and the places of what it copies.
    guarded = forecast(recipe.model_copy(update={"guard": True}), _work(), _SPEED, 10**8)
    assert guarded.device_bytes == int(4.75 * 4 * _WEIGHTS + 8 * _WEIGHTS) + _WORKSPACES
