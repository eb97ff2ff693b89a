"""A forecast counts how processes divide work and what they exchange: less work for each, but more to send."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprune.engine.exchange import Crew, Network, exchanges, find_network
from reprune.engine.forecast import Forecast, forecast
from reprune.engine.speed import Speed
from reprune.engine.work import Group
from reprune.planning.layers import resolve_recipe
from tests.engine.test_forecast import _SPEED, _work


def _forecast(count: int, network: str, *settings: str, speed: Speed = _SPEED) -> Forecast:
    settings = ("device=cpu", "precision=float32", "seqlen=128", *settings)
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP"}, settings=settings)
    return forecast(recipe, _work(calibration=64, heldout=8), speed, 10**8, Crew(count, find_network(network)))


@given(st.integers(1, 12), st.integers(1, 200), st.integers(1, 32))
def test_an_epoch_takes_each_no_less_than_its_part_and_no_more_than_all(count: int, samples: int, batch: int) -> None:
    assert Crew(count).part(samples) == max(len(range(number, samples, count)) for number in range(count))
    found = Crew(count).per_epoch(samples, batch)
    assert samples / count - 1e-6 <= found <= samples + 1e-6
    assert Crew(1).per_epoch(samples, batch) == samples


def test_the_larger_part_of_a_batch_is_what_a_binomial_gives() -> None:
    """With two processes, the larger part of a batch of 8 has 4 + E|X - 4| samples: 4 + 1.09 for a binomial X."""
    assert Crew(2).per_epoch(1024, 8) == pytest.approx(1024 / 8 * (4 + 1.09), rel=0.03)


def test_jobs_are_dealt_out_in_turn() -> None:
    assert Crew(2).longest([1.0, 5.0, 2.0, 1.0]) == 6.0
    assert Crew(1).longest([1.0, 5.0]) == 6.0
    assert Crew(3).longest([]) == 0.0


def test_one_process_exchanges_nothing() -> None:
    assert Crew(1).seconds(1e9, 1e9, 1000) == Crew(1).bytes(1e9, 1e9) == 0.0
    assert _forecast(1, "100g").exchanged_bytes == 0
    assert _forecast(1, "100g") == _forecast(1, "nvlink")


def test_a_sum_is_sent_nearly_twice_and_what_one_tells_once() -> None:
    assert Crew(2).bytes(100.0, 7.0) == 107.0
    assert Crew(8).bytes(100.0, 0.0) == 175.0
    assert Crew(8).bytes(0.0, 7.0) == 7.0
    network = Network("", 100.0, 0.5)
    assert Crew(2, network).seconds(70.0, 0.0, 2) == pytest.approx(1.0 + 1.0)


def test_more_processes_take_less_time_and_memory_for_streams_each() -> None:
    one, two, four = (_forecast(count, "nvlink") for count in (1, 2, 4))
    assert one.seconds > two.seconds > four.seconds > one.seconds / 4
    assert one.memory_bytes > four.memory_bytes
    assert 0 < two.exchanged_bytes < four.exchanged_bytes


def test_a_slow_network_takes_back_what_processes_gain() -> None:
    fast = Speed(1e15, 1e14, 1e13)
    assert _forecast(8, "100g", speed=fast).seconds > _forecast(8, "nvlink", speed=fast).seconds


def test_of_kept_weights_alone_there_are_fewer_gradients() -> None:
    full, compact = (_forecast(2, "local", "sparsity=0.75", f"solver.compact={on}") for on in ("false", "true"))
    assert full.exchanged_bytes - compact.exchanged_bytes == 8 * 64 // 8 * 10 * 4 * 0.75 * _work().blocks[0].parameters


def test_a_window_exchanges_what_it_prunes_and_what_it_fits() -> None:
    """Of the windows [0], [0, 1] and [1] the last prunes nothing; each takes three epochs of three batches."""
    cost, groups = _work().blocks[0], _work().groups[0]
    work = replace(_work(blocks=2, calibration=20, size=2), blocks=[cost, replace(cost, parameters=10**6)])
    settings = ["device=cpu", "solver.epochs=3", "solver.batch_size=8"]
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP+CR", "pruner": "wanda"}, settings=settings)
    norms, pruned = 4 * sum(one.columns for one in groups), 5 * sum(one.rows * one.columns for one in groups)
    first, second = (block.parameters for block in work.blocks)
    assert exchanges(recipe, work) == [
        (norms + 9 * 4 * first, pruned + 4 * first, 4 * 4 + 2 * 9 + 2 * 3),
        (norms + 9 * 4 * (first + second), pruned + 4 * (first + second), 4 * 4 + 2 * 9 + 2 * 3),
        (9 * 4 * second, 4 * second, 2 * 9 + 2 * 3),
    ]
    auto = resolve_recipe("model", {"reconstruct": "auto"}, settings=["device=cpu", "solver.epochs=1"])
    assert [often for _, _, often in exchanges(auto, work)] == [4 * 4 + 8, 4 * 4 + 16, 8], "of both two epochs"


@pytest.mark.parametrize(
    ("pruner", "start", "expected"),
    [
        ("magnitude", "pruner", 0),
        ("wanda", "pruner", 4 * 32),
        ("sparsegpt", "pruner", 4 * 32**2),
        ("magnitude", "least-squares", 4 * 4 * 32**2),
        ("wanda", "least-squares", 4 * 4 * 32**2),
    ],
)
def test_statistics_are_exchanged_as_far_as_any_are_gathered(pruner: str, start: str, expected: int) -> None:
    work = replace(_work(blocks=1), groups=[[Group(64, 32)]])
    settings = ["device=cpu", f"solver.start={start}"]
    recipe = resolve_recipe("model", {"reconstruct": "LR", "pruner": pruner}, settings=settings)
    weights = 4 * work.blocks[0].parameters  # the first process's, with which all continue
    assert exchanges(recipe, work) == [(expected, 5 * 64 * 32 + weights, 4)]


def test_the_last_batch_is_a_step_though_it_be_small() -> None:
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP"}, settings=["device=cpu"])
    assert exchanges(recipe, _work(calibration=57)) == exchanges(recipe, _work(calibration=64))


def test_least_squares_exchanges_both_pairs_of_all_but_experts() -> None:
    plain, expert = Group(64, 32), Group(64, 16, 0.5, expert=True)
    work = replace(_work(blocks=1), groups=[[plain, expert]])
    recipe = resolve_recipe("model", {"reconstruct": "LR"}, settings=["device=cpu", "solver.start=least-squares"])
    assert exchanges(recipe, work)[0][0] == 4 * (4 * 32**2 + 16**2), "X'X and X'Z, calibrated on and held out"


def test_gradients_of_factors_are_rank_times_rows_and_columns() -> None:
    """The matrices are of 3072, 1024 and 4096 rows by 1024 columns, and of 1024 by 2048, in 8 blocks."""
    saved = (3072 + 1024 + 4096) * 1024 + 1024 * 2048 - 4 * ((3072 + 1024 + 4096) + 3 * 1024 + 1024 + 2048)
    steps = 64 // 8 * 10
    full, factors = _forecast(2, "local"), _forecast(2, "local", "solver.rank=4")
    assert full.exchanged_bytes - factors.exchanged_bytes == 8 * steps * 4 * saved


def test_each_matrix_of_a_group_has_factors_of_its_own() -> None:
    """A matrix that is no larger than its factors has none."""
    group = Group.of([(64, 32), (16, 32)])
    assert group == Group(80, 32, 1.0, False, 2)
    assert Group.of([(8, 4)], 0.5) == Group(8, 4, 0.5, True, 1)
    work = replace(_work(blocks=1), groups=[[group, Group(8, 4)]])
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP", "pruner": "magnitude"}, settings=["device=cpu"])
    low = recipe.model_copy(update={"solver": recipe.solver.model_copy(update={"rank": 4})})
    full, factors = (exchanges(one, work)[0][0] for one in (recipe, low))
    assert full - factors == 10 * 4 * 4 * (80 * 32 - 4 * (80 + 2 * 32))


def test_distillation_exchanges_its_gradients_and_both_states_of_its_blocks() -> None:
    work = _work(calibration=64, heldout=8)
    steps, parameters = 64 // 8 * 3, work.blocks[0].parameters
    more = 2 * (steps * 4 * parameters + 4 * parameters + work.block_bytes[0])
    found = _forecast(2, "local", "distill.blocks=2", "distill.epochs=3")
    assert found.exchanged_bytes - _forecast(2, "local").exchanged_bytes == more
    recipe = resolve_recipe("model", {"distill": {"blocks": 2, "epochs": 3}}, settings=["device=cpu"])
    sizes = {"blocks": [replace(work.blocks[0], parameters=10**7 + i) for i in range(8)], "block_bytes": [*range(8)]}
    last = 2 * 10**7 + 6 + 7
    assert exchanges(recipe, replace(work, **sizes))[-1] == (steps * 4 * last, 4 * last + 6 + 7, 2 * steps + 2 * 3)


@pytest.mark.parametrize("start", ["pruner", "least-squares"])  # an allocation measures without least squares
@pytest.mark.parametrize(("name", "squares", "times"), [("by-error", True, 3), ("owl", False, 0)])
def test_an_allocation_exchanges_statistics_once_and_what_is_pruned_each_time(
    name: str, squares: bool, times: int, start: str
) -> None:
    start = f"solver.start={start}"
    groups = _work().groups[0]
    statistics = sum(4 * (group.columns**2 if squares else group.columns) for group in groups)
    pruned = sum(5 * group.rows * group.columns for group in groups)
    found, plain = _forecast(2, "local", start, f"allocation={name}"), _forecast(2, "local", start)
    assert found.exchanged_bytes - plain.exchanged_bytes == 8 * (statistics + times * pruned)
    recipe = resolve_recipe("model", {"reconstruct": "LR"}, settings=["device=cpu", f"allocation={name}"])
    assert [often for _, _, often in exchanges(recipe, _work())[8:]] == [4 * max(times, 1) * len(groups)] * 8


@pytest.mark.parametrize(("experts", "times"), [(16, 1), (17, 3)])
def test_statistics_that_several_passes_gather_are_exchanged_for_each_sparsity(experts: int, times: int) -> None:
    """Sixteen of these take 2**32 bytes, as much as one pass gathers, and then all three sparsities use them."""
    work = replace(_work(blocks=1), groups=[[Group(64, 2**13, expert=True)] * experts])
    recipe = resolve_recipe("model", {"reconstruct": "LR"}, settings=["device=cpu", "allocation=by-error"])
    assert exchanges(recipe, work)[-1][0] == times * experts * 4 * 2**26
