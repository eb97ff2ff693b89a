"""The memory held at a time is that of the blocks that are loaded then, each with its own size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reprune.engine.footprint import (
    _copies,
    allocating_bytes,
    disk_bytes,
    distilling_bytes,
    held_bytes,
    least_memory_bytes,
    pinned_bytes,
    window_bytes,
)
from reprune.engine.forecast import forecast
from reprune.engine.work import Group, Work
from reprune.math.masking import PLACES_BYTES
from reprune.planning.layers import resolve_recipe
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import windows
from tests.engine.test_forecast import _SPEED, _work

_UNLIKE = [(1000, 5.0, 3), (4000, 7.0, 30), (2000, 70.0, 5)]
"""For each of three blocks: parameters, bytes of activations, bytes of states."""


def _blocks(calibration: int = 32, size: int = 1, groups: list[Group] | None = None) -> Work:
    """Three blocks of different sizes with the same groups."""
    cost = _work().blocks[0]
    blocks = [replace(cost, parameters=one, activations=kept, states=states) for one, kept, states in _UNLIKE]
    work = _work(blocks=3, calibration=calibration)
    return replace(work, blocks=blocks, groups=[groups or []] * 3, schedule=windows(3, size, 1))


def _recipe(rung: str, *settings: str, **content: Any) -> Recipe:
    settings = ("device=cpu", "precision=float32", *settings)
    return resolve_recipe("model", {"reconstruct": rung, "pruner": "magnitude", **content}, settings=settings)


def test_the_least_memory_is_that_of_the_largest_window_as_often_as_it_is_held() -> None:
    sizes, schedule = [100, 400, 200], windows(3, 2, 1)
    recipe = _recipe("BR+GP+CR")
    assert least_memory_bytes(recipe, schedule, sizes) == int(4 * 600 * _copies(recipe))
    assert least_memory_bytes(_recipe("LR"), schedule, sizes) == 4 * 600
    auto, distilled = _recipe("auto"), _recipe("LR", distill=1)  # which hold what a first step moves once more
    assert least_memory_bytes(auto, schedule, sizes) == int(4 * 600 * (_copies(auto) + 1))
    assert least_memory_bytes(distilled, windows(3, 1, 1), sizes) == int(4 * 200 * (_copies(distilled) + 1))


def test_a_window_that_is_not_fitted_holds_its_weights_and_a_blocks_passing_samples() -> None:
    work = _blocks(size=2)
    recipe = _recipe("LR", "solver.micro_batch_size=3")
    assert [window_bytes(recipe, work, one) for one in work.schedule] == [
        4 * 1000 + 3 * 5,
        4 * 5000 + 3 * 7,
        4 * 6000 + 3 * 70,
        4 * 2000 + 3 * 70,
    ]
    assert window_bytes(recipe, replace(work, calibration=2), work.schedule[0]) == 4 * 1000 + 2 * 5
    pruned = replace(work, groups=[[Group(6, 4), Group(2, 5)]] * 3)
    assert window_bytes(recipe, pruned, work.schedule[0]) == 4 * 1000 + 4 * (2 * 4**2 + 4 * 6 * 4), "more than passing"


def test_a_weight_update_holds_gram_matrices_and_more_copies_of_a_groups_weights() -> None:
    grouped = _blocks(groups=[Group(6, 4), Group(2, 5)])
    window = grouped.schedule[0]
    plain = _recipe("LR", "solver.micro_batch_size=1", pruner="wanda")
    found = _recipe("LR", "solver.micro_batch_size=1", "pruner.update=least-squares", pruner="wanda")
    norms, grams = 4 * (4 + 5), 4 * (4**2 + 5**2)
    assert window_bytes(found, grouped, window) - window_bytes(plain, grouped, window) == grams - norms + 4 * 4 * 6 * 4
    owl = "allocation=owl"  # measures by Wanda's norms
    assert allocating_bytes(_recipe("LR", owl, "pruner.update=least-squares"), grouped) == allocating_bytes(
        _recipe("LR", owl), grouped
    )


def test_least_squares_holds_the_largest_fresh_block_dense_too() -> None:
    """Of the windows [0], [0, 1], [1, 2] and [2] the last has no fresh block; there, all blocks of the window count."""
    work = _blocks(size=2)
    recipe = _recipe("LR", "solver.start=least-squares", "solver.micro_batch_size=1")
    plain = _recipe("LR", "solver.micro_batch_size=1")
    found = [window_bytes(recipe, work, one) - window_bytes(plain, work, one) for one in work.schedule]
    assert found == [4 * 1000, 4 * 4000, 4 * 2000, 4 * 2000]
    both = windows(3, 3, 3)[0]
    assert window_bytes(recipe, work, both) - window_bytes(plain, work, both) == 4 * 4000
    grouped = replace(work, groups=[[Group(6, 4), Group(2, 5)]] * 3)
    statistics, copies = 16 * 5**2, 4 * 7 * 6 * 4  # of the group with most columns, and of that with most weights
    assert window_bytes(recipe, grouped, both) - window_bytes(plain, grouped, both) == 4 * 4000 + statistics + copies


def test_checkpointing_keeps_the_activations_of_the_largest_block_and_what_enters_each() -> None:
    work = _blocks()
    window = windows(3, 3, 3)[0]
    for settings, kept in ((["solver.checkpointing=true"], 70 + 3 + 30 + 5), ([], 5 + 7 + 70)):
        recipe = _recipe("BR+GP", "solver.micro_batch_size=2", *settings)
        found = window_bytes(recipe, work, window)
        assert found == int(4 * 7000 * _copies(recipe) + 2 * kept + 0.3 * 2 * 70)


def test_distillation_holds_the_last_blocks_alone_and_no_more_samples_than_there_are() -> None:
    recipe = _recipe("BR+GP", "solver.micro_batch_size=8", "solver.rank=2", distill=2)
    for calibration, at_a_time in ((32, 8), (3, 3)):
        work = replace(_blocks(calibration), head=(2, 3))
        logits = 5 * 4 * 2 * work.tokens * at_a_time
        expected = 4 * 6000 * _copies(recipe) + 4 * 2 * 3 + at_a_time * 77 + logits
        assert distilling_bytes(recipe, work) == int(expected)
        without = replace(work, head=(0, 3))
        assert distilling_bytes(recipe, without) == int(4 * 6000 * _copies(recipe) + 1.3 * at_a_time * 77)


@pytest.mark.parametrize(
    ("settings", "moved"), [([], 1.0), (["sparsity=0.75", "solver.compact=true"], 0.25), (["solver.rank=2"], 0.0)]
)
def test_while_a_first_step_is_tried_what_it_moves_is_held_once_more_in_place_of_activations(
    settings: list[str], moved: float
) -> None:
    """They are gone by then; here they take less than the weights, so that this is the peak."""
    work, settings = replace(_blocks(), head=(2, 3)), ["solver.micro_batch_size=1", *settings]
    auto, distilled = _recipe("auto", *settings), _recipe("BR+GP", "distill=2", *settings)
    copies, kept = _copies(auto) + moved, [0, 0] if moved else [5 + 7 + 70, 7 + 70]
    assert window_bytes(auto, work, windows(3, 3, 3)[0]) == int(4 * 7000 * copies + kept[0] + 0.3 * 70)
    logits = 5 * 4 * 2 * work.tokens
    assert distilling_bytes(distilled, work) == int(4 * 6000 * copies + kept[1] + 4 * 2 * 3 + logits)


def test_an_allocation_holds_each_block_alone_and_by_error_dense_once_more() -> None:
    work, one = _blocks(size=3), "solver.micro_batch_size=1"
    assert allocating_bytes(_recipe("BR+GP", one, "allocation=by-error"), work) == 2 * 4 * 4000 + 7
    assert allocating_bytes(_recipe("BR+GP", one, "allocation=owl", pruner="sparsegpt"), work) == 4 * 4000 + 7
    refitted = _recipe("BR+GP", one, "allocation=by-error", "solver.start=least-squares")
    assert allocating_bytes(refitted, work) == 2 * 4 * 4000 + 7, "which measuring does not do"
    found = forecast(_recipe("LR", one, "allocation=by-error"), work, _SPEED, 0)
    plain = forecast(_recipe("LR", one), work, _SPEED, 0)
    assert found.seconds > plain.seconds


def test_states_on_their_way_to_a_gpu_are_in_pinned_memory_of_two_batches() -> None:
    """PyTorch allocates powers of two of it."""
    for device, settings, expected in (
        ("cuda:1", ["solver.batch_size=10"], 2 * 32),
        ("cuda", ["solver.batch_size=10", "solver.micro_batch_size=4"], 2 * 16),
        ("cuda", ["solver.batch_size=100"], 2 * 64),  # all 16 samples
        ("cpu", ["solver.batch_size=10"], 0),
    ):
        assert pinned_bytes(_recipe("BR+GP", f"device={device}", *settings), _blocks(calibration=16)) == expected


def test_whole_streams_are_held() -> None:
    recipe = _recipe("BR+GP", "streams.memory=2500")
    assert [held_bytes(recipe, 3, stream, 0) for stream in (1000, 800, 500, 3000)] == [2000, 2400, 3 * 500, 0]


def test_what_is_each_samples_own_comes_before_streams() -> None:
    recipe = _recipe("BR+GP", "streams.memory=2500")
    for own, held in ((0, 2000), (400, 2400), (501, 1501), (9000, 2500)):
        assert held_bytes(recipe, 3, 1000, own) == held
        assert disk_bytes(recipe, 3, 1000, own, 7) == 7 + 3000 + own - held
    plain, found = (forecast(recipe, replace(_work(), own=own), _SPEED, 0) for own in (0, 10**6))
    assert found.disk_bytes - plain.disk_bytes == 36 * 10**6 - 2500


def test_distillation_has_two_streams_more_however_many_blocks_it_fits() -> None:
    for blocks, streams in ((0, 3), (1, 5), (4, 5)):
        assert disk_bytes(_recipe("BR+GP", "streams.memory=0", distill=blocks), 8, 100, 0, 7) == 7 + 100 * streams


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_holds_gradients_or_activations_and_the_places_of_what_it_picks(device: str) -> None:
    """At low rank nothing is picked, and there are no gradients of whole matrices.

    While a pass is computed, the states of the next one are sent: what enters the window, and its targets.
    """
    cost = replace(_work().blocks[0], parameters=2 * PLACES_BYTES, activations=0.0)
    work = replace(_work(), blocks=[cost] * 8, groups=[[]] * 8)
    weights = 4 * cost.parameters
    sent = 2 * 8 * cost.states
    for settings, held, more in (
        (["guard=off"], 4.25, sent),
        ([], 4.25 + 0.25, PLACES_BYTES),  # between passes
        (["solver.compact=true"], 1.25 + 0.25 * 5, PLACES_BYTES + sent),
        (["solver.rank=2"], 2.0, sent),
    ):
        recipe = _recipe("BR+GP", f"device={device}", "sparsity=0.75", *settings)
        assert window_bytes(recipe, work, work.schedule[0]) == int(held * weights) + more
    auto = _recipe("auto", f"device={device}", "sparsity=0.75")
    assert window_bytes(auto, work, work.schedule[0]) == int((4.25 + 0.25 + 1) * weights) + sent, "a step is tried"
    busy = replace(work, blocks=[replace(cost, activations=1e12)] * 8)
    low = _recipe("BR+GP", f"device={device}", "solver.rank=2", "solver.micro_batch_size=1")
    assert window_bytes(low, busy, work.schedule[0]) == 2 * weights + int(1.3 * 1e12) + 2 * cost.states


def test_a_gpu_that_fits_nothing_holds_a_passing_batch_and_the_two_after_it() -> None:
    work = _blocks()
    for device, sent in (("cpu", 0), ("cuda", 2 * 3 * 5)):
        recipe = _recipe("LR", f"device={device}", "solver.micro_batch_size=3")
        assert window_bytes(recipe, work, work.schedule[2]) == 4 * 2000 + 3 * 70 + sent
        distilled = _recipe("BR+GP", f"device={device}", "solver.micro_batch_size=3", "solver.rank=2", distill=1)
        assert distilling_bytes(distilled, replace(work, head=(0, 3))) == 2 * 4 * 2000 + int(1.3 * 3 * 70) + sent
