"""A forecast of time counts what the loop does: more work takes longer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from reprune.engine.exchange import Crew, planned_epochs
from reprune.engine.footprint import window_bytes
from reprune.engine.forecast import Forecast, forecast
from reprune.engine.speed import Speed
from reprune.engine.work import Group, Work
from reprune.model.costs import BlockCosts, Flops
from reprune.planning.layers import resolve_recipe
from reprune.planning.schedule import windows

_SPEED = Speed(1e11, 5e10, 1e10)
_WEIGHTS, _TOKENS, _HIDDEN = 10**7, 128, 1024


def _work(blocks: int = 8, calibration: int = 32, heldout: int = 4, size: int = 1) -> Work:
    flops = 2.0 * _WEIGHTS * _TOKENS
    cost = BlockCosts(_WEIGHTS, 4 * _TOKENS * _HIDDEN, Flops(flops), Flops(3 * flops), 40.0 * _HIDDEN * _TOKENS)
    groups = [Group(3072, 1024), Group(1024, 1024), Group(4096, 1024), Group(1024, 2048)]
    return Work(
        [cost] * blocks, [groups] * blocks, windows(blocks, size, 1), calibration, heldout, _TOKENS,
        [2 * _WEIGHTS] * blocks, [10**8, 10**4],
    )  # fmt: skip


def _forecast(rung: str = "BR+GP", work: Work | None = None, *settings: str, **flags: Any) -> Forecast:
    settings = ("device=cpu", "precision=float32", "seqlen=128", *settings)
    recipe = resolve_recipe("model", {"reconstruct": rung, **flags}, settings=settings)
    return forecast(recipe, work or _work(size=recipe.schedule.size), _SPEED, 10**8)


def test_fused_attention_is_forecast_at_its_own_speed() -> None:
    assert _SPEED.seconds(Flops(3e11, 2e11)) == 5.0
    assert replace(_SPEED, attention=2e10).seconds(Flops(3e11, 2e11)) == 13.0


def test_a_run_of_passes_alone_takes_what_they_take() -> None:
    """LR with magnitude: the dense stream, local targets (with statistics), a sample to find groups, and advancing."""
    work = replace(_work(), block_bytes=[0] * 8, outside_bytes=[0])
    found = _forecast("LR", work, pruner="magnitude")
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.5 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    passes = 36 + 36 + 1 + 36
    assert found.seconds == pytest.approx(8 * (passes * one + 0.05))


def test_on_a_gpu_small_blocks_take_what_it_takes_to_begin_their_operations() -> None:
    work = replace(_work(), block_bytes=[0] * 8, outside_bytes=[0])
    assert work.blocks[0].operations == 0
    many = replace(work, blocks=[replace(cost, operations=60_000) for cost in work.blocks])
    gpu = ("device=cuda:0", "solver.epochs=1", "solver.batch_size=4")
    found = _forecast("BR+GP", many, *gpu, pruner="magnitude")
    passes = 36 + 1 + 36 + 4 + 36  # the dense stream, to find groups, the errors before, of the epoch, and advancing
    adam = 8 * 4 * _WEIGHTS * 9 / _SPEED.traffic
    begun = (passes / 4 * 2e4 + 32 / 4 * 6e4) * 1e-5
    assert found.seconds == pytest.approx(8 * (begun + adam + 0.05))
    assert _forecast("BR+GP", work, *gpu, pruner="magnitude").seconds < found.seconds
    cpu = ("device=cpu", *gpu[1:])
    assert (
        _forecast("BR+GP", many, *cpu, pruner="magnitude").seconds
        == _forecast("BR+GP", work, *cpu, pruner="magnitude").seconds
    ), "a CPU begins them as it does them"


def test_windows_of_several_blocks_take_what_leads_to_each_fresh_one_and_the_errors_before() -> None:
    """For the errors before, only the last block of a window is run, as the states that enter it are at hand."""
    work = replace(_work(), schedule=windows(8, 2, 2), block_bytes=[0] * 8, outside_bytes=[0])
    flops, moved = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products, 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    one, both = flops + 2.5 * moved, 3 * flops + 7.5 * moved
    side_by_side = ("schedule.size=2", "schedule.stride=2")
    found = _forecast("LR", work, *side_by_side, pruner="magnitude")
    passes = 2 * 36 + 2 * 36 + 36 + 2 * 1 + 2 * 36
    assert found.seconds == pytest.approx(4 * (passes * one + 0.05))
    fitted = _forecast("BR", work, *side_by_side, "solver.epochs=1", pruner="magnitude")
    steps = 4 * 4 * 2 * _WEIGHTS * 9 / _SPEED.traffic
    descent = 36 * one + 2 * (32 * both + 4 * one) + steps
    assert fitted.seconds - found.seconds == pytest.approx(4 * descent)
    overlapping = replace(work, schedule=windows(2, 2, 1))  # [0], [0, 1], [1]: the last has no fresh block
    found = _forecast("BR+GP+CR", overlapping, "solver.epochs=1", pruner="magnitude")
    passes = 2 * (36 + 1) + 3 * 36 + 4 * (36 + 4)
    left_open = 5 * 2 * _WEIGHTS / 4e8
    assert found.seconds == pytest.approx(passes * one + 4 * 32 * both + 2 * steps + 3 * 0.05 + left_open)


def test_auto_with_one_epoch_takes_the_two_that_it_makes_of_two_blocks() -> None:
    pairs = replace(_work(), schedule=windows(8, 2, 2))
    one, two, three = (_forecast("auto", pairs, f"solver.epochs={epochs}").seconds for epochs in (1, 2, 3))
    assert one == two < three
    lone = _work()
    assert _forecast("auto", lone, "solver.epochs=1").seconds < _forecast("auto", lone, "solver.epochs=2").seconds


def test_windows_without_an_error_take_no_epochs_and_dense_blocks_no_statistics() -> None:
    """With the dense model's own states a dense block has an error once any block before it has been pruned."""
    work = replace(_work(), block_bytes=[0] * 8)
    flops, moved = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products, 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    one, both = flops + 2.5 * moved, 3 * flops + 7.5 * moved
    descent = 10 * (32 * both + 4 * one + 4 * 4 * _WEIGHTS * 9 / _SPEED.traffic)
    for rung, dense, saved in (
        ("BR+GP", (0, 1), 2 * (32 * one + descent)),
        ("BR+GP", (4, 5), 2 * 32 * one),
        ("BR", (4, 5), 2 * descent),
        ("LR", (4, 5), 0.0),
    ):
        some = replace(work, groups=[[] if index in dense else groups for index, groups in enumerate(work.groups)])
        all_, found = (_forecast(rung, each, pruner="wanda").seconds for each in (work, some))
        assert all_ - found == pytest.approx(saved), (rung, dense)
    pairs = replace(work, schedule=windows(8, 2, 1), groups=[[], [], *work.groups[2:]])
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP+CR"}, settings=["device=cpu"])
    for teacher in ("global", "local"):
        settled = recipe.model_copy(update={"teacher": teacher})
        assert [planned_epochs(settled, pairs, window) for window in pairs.schedule] == [0, 0, *[10] * 7]
        once = replace(pairs, groups=[work.groups[0], *[[]] * 7])
        assert [planned_epochs(settled, once, window) for window in pairs.schedule] == [10] * 9, "the fit goes on"


def test_statistics_come_with_the_targets_of_a_lone_block_where_the_teacher_is_local() -> None:
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.5 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    two = replace(_work(), schedule=windows(8, 2, 2))
    for work, settings, passes in (
        (_work(), ["teacher=local"], 0),
        (_work(), ["teacher=global"], 32),
        (two, ["schedule.size=2", "schedule.stride=2"], 32),
    ):
        plain, found = (_forecast("LR", work, *settings, pruner=name) for name in ("magnitude", "wanda"))
        assert found.seconds - plain.seconds == pytest.approx(8 * passes * one)


@pytest.mark.parametrize(("pruner", "gram"), [("magnitude", 0.625 * 36), ("sparsegpt", 0.625 * 4)])
def test_least_squares_takes_both_models_to_each_group_and_sums_two_products(pruner: str, gram: float) -> None:
    """Each group takes half a pass of each model on average; a pruner that needs the same X'X shares it.

    Held are the weights, the dense block's, and the largest group of each kind; activations take nothing here.
    """
    work = replace(_work(), blocks=[replace(_work().blocks[0], activations=0.0)] * 8)
    groups, one = work.groups[0], 2.0 * _WEIGHTS * _TOKENS / _SPEED.products
    plain, found = (_forecast("LR", work, *more, pruner=pruner) for more in ((), ("solver.start=least-squares",)))
    fitting = sum(
        2 * (gram + 36) * _TOKENS * group.columns**2 + 24 * 2 * group.rows * group.columns**2 for group in groups
    )
    assert found.seconds - plain.seconds == pytest.approx(8 * (4 * 36 * one + fitting / _SPEED.full))
    recipe = resolve_recipe(
        "model", {"reconstruct": "LR", "pruner": pruner}, settings=["solver.start=least-squares", "device=cpu"]
    )
    squares, largest = [group.columns**2 for group in groups], max(group.rows * group.columns for group in groups)
    pruning = max(4 * (2 * group.columns**2 + 4 * group.rows * group.columns) for group in groups)
    grams = 4 * sum(squares) if pruner == "sparsegpt" else 0
    expected = 2 * 4 * _WEIGHTS + grams + pruning + 16 * max(squares) + 7 * 4 * largest
    assert window_bytes(recipe, work, work.schedule[0]) == expected


@pytest.mark.parametrize("pruner", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("precision", ["auto", "float32", "float16"])
def test_a_weight_update_takes_gram_matrices_and_a_product_for_each_iteration_and_one_before(
    pruner: str, precision: str
) -> None:
    """A pass for statistics comes with them if the pruner needs none by itself; float16 holds no sums of squares."""
    work = replace(_work(), blocks=[replace(_work().blocks[0], activations=0.0)] * 8)
    groups, one = work.groups[0], 2.0 * _WEIGHTS * _TOKENS / _SPEED.products
    set_up = "teacher=global", f"precision={precision}"
    plain, found = (
        _forecast("LR", work, *set_up, *more, pruner=pruner) for more in ((), ("pruner.update=least-squares",))
    )
    rate = _SPEED.products if precision == "auto" else _SPEED.full
    expected = sum((1 + 5) * 2 * group.rows * group.columns**2 for group in groups) / rate
    if pruner != "sparsegpt":
        expected += sum(2 * 0.625 * 32 * _TOKENS * group.columns**2 for group in groups) / _SPEED.full
    expected += 32 * one * (pruner == "magnitude")
    assert found.seconds - plain.seconds == pytest.approx(8 * expected)


def test_experts_take_passes_of_their_own_and_their_share_of_the_tokens() -> None:
    """A batch to find the groups; statistics in one pass, or two for experts if sequential; these are not refitted."""
    groups = [Group(3072, 1024), Group(512, 1024, 0.25, expert=True)]
    work = replace(_work(), groups=[groups] * 8)
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.5 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    dense = _forecast("BR+GP", pruner="magnitude").seconds
    sequential, refit = "pruner.sequential=true", "solver.start=least-squares"
    square = 1024**2 / _SPEED.full
    fitting = 2 * (0.625 * 36 + 36) * _TOKENS * square + 24 * 2 * 3072 * square
    for settings, passes, more in (
        ([], 7 + 32, 0.0),
        ([sequential], 7 + 32 * 2, 0.0),
        ([refit], 7 + 36 + 32 * 2, fitting),
    ):
        found = _forecast("BR+GP", work, *settings, pruner="magnitude").seconds
        assert found - dense == pytest.approx(8 * (passes * one + more))
    fewer = replace(work, groups=[[groups[0], replace(groups[1], share=0.125)]] * 8)
    more_tokens = _forecast("BR+GP", work).seconds - _forecast("BR+GP", fewer).seconds
    assert more_tokens == pytest.approx(8 * 2 * 0.625 * 32 * _TOKENS * 0.125 * square)


def test_processes_prune_groups_at_once_unless_each_is_to_see_what_those_before_became() -> None:
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP"}, settings=["device=cpu", "precision=float32"])
    in_turn = recipe.model_copy(update={"pruner": recipe.pruner.model_copy(update={"sequential": True})})
    found = [forecast(one, _work(), _SPEED, 0, Crew(2)).seconds for one in (recipe, in_turn)]
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.5 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    solving = [
        (1.5 * group.columns**3 + group.rows * group.columns**2) / _SPEED.full + 3e-5 * group.columns
        for group in _work().groups[0]
    ]
    other = min(sum(solving[::2]), sum(solving[1::2]))
    assert found[1] - found[0] == pytest.approx(8 * (16 * one + other))


def test_what_is_written_takes_its_time() -> None:
    """That is retired blocks, tensors outside them, and the block that each window of two but the last leaves open."""
    nothing = replace(_work(size=2), block_bytes=[0] * 8, outside_bytes=[0])
    kept_open = 8 * 5 * _WEIGHTS / 4e8
    for work, expected in (
        (replace(nothing, block_bytes=[10**8] * 8), 8 / 4),
        (replace(nothing, outside_bytes=[6 * 10**8, 6 * 10**8]), 2),
    ):
        assert _forecast("BR+GP+CR", work).seconds - _forecast("BR+GP+CR", nothing).seconds == pytest.approx(expected)
    none_open = [replace(window, retired=range(window.blocks[0], window.blocks[-1] + 1)) for window in nothing.schedule]
    assert _forecast("BR+GP+CR", nothing).seconds - _forecast(
        "BR+GP+CR", replace(nothing, schedule=none_open)
    ).seconds == pytest.approx(kept_open)


def test_distillation_takes_its_passes_its_products_of_the_head_and_its_steps() -> None:
    """Held-out errors before, after each epoch and after rounding; steps; and both streams once more."""
    work = replace(_work(), block_bytes=[0] * 8, head=(5000, _HIDDEN))
    without = _forecast("LR", work, pruner="magnitude")
    found = _forecast("LR", work, "distill.blocks=2", "distill.epochs=3", pruner="magnitude")
    flops, moved = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products, 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    forward, both = 2 * (flops + 2.5 * moved), 2 * (3 * flops + 7.5 * moved)
    product, pass_ = 2.0 * 5000 * _HIDDEN * _TOKENS / (0.5 * _SPEED.products), 4.0 * 5000 * _TOKENS / _SPEED.traffic
    expected = 5 * 4 * (forward + 2 * product + 10 * pass_)
    expected += 3 * 32 * (both + 3 * product + 15 * pass_)
    expected += 3 * 4 * 4 * 2 * _WEIGHTS * 9 / _SPEED.traffic
    expected += 36 * 2 * forward
    assert found.seconds - without.seconds == pytest.approx(expected)


def test_an_allocation_takes_its_walk_and_each_blocks_prunings() -> None:
    """Each sample once through each block, one to find groups; then statistics, or prunings and held-out errors."""
    work = replace(_work(), outside_bytes=[0])
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.5 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    plain = _forecast("LR", work, pruner="magnitude")
    for name, passes in (("owl", 36 + 1 + 32), ("by-error", 36 + 1 + 3 * 4)):
        found = _forecast("LR", work, f"allocation={name}", pruner="magnitude")
        assert found.seconds - plain.seconds == pytest.approx(8 * passes * one)
    columns = [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 2048)]
    gram = sum(2 * 0.625 * 32 * _TOKENS * column**2 for _, column in columns) / _SPEED.full
    solving = sum((1.5 * c**3 + r * c**2) / _SPEED.full + 3e-5 * c for r, c in columns)
    plain, found = (_forecast("LR", work, *more, pruner="sparsegpt") for more in ((), ("allocation=by-error",)))
    allocating = 8 * ((36 + 1 + 32 + 3 * 4) * one + gram + 3 * solving)
    assert found.seconds - plain.seconds == pytest.approx(allocating)
    in_turn = ("pruner.sequential=true",)  # which does not apply to the allocation
    plain, found = (
        _forecast("LR", work, *in_turn, *more, pruner="sparsegpt") for more in ((), ("allocation=by-error",))
    )
    assert found.seconds - plain.seconds == pytest.approx(allocating)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (_forecast("LR"), _forecast("BR+GP")),
        (_forecast("BR+GP"), _forecast("BR")),  # a local teacher's targets take a pass of their own
        (_forecast("BR"), _forecast("BR+GP+CR")),
        (_forecast("LR", None, pruner="wanda"), _forecast("LR", None, pruner="sparsegpt")),
        (_forecast("BR+GP", None, pruner="magnitude"), _forecast("BR+GP", None, pruner="wanda")),  # gathers statistics
        (_forecast("BR+GP"), _forecast("BR+GP", None, "pruner.sequential=true")),
        (_forecast("LR"), _forecast("LR", None, "solver.start=least-squares")),
        (_forecast(), _forecast(work=_work(blocks=9))),
        (_forecast(), _forecast(work=_work(calibration=40))),
        (_forecast(), _forecast(work=_work(heldout=8))),
        (_forecast("BR+GP", None, "solver.epochs=9"), _forecast("BR+GP", None, "solver.epochs=10")),
        (_forecast("BR+GP+CR"), _forecast("BR+GP+CR", None, "solver.checkpointing=true")),
        (_forecast("LR"), _forecast("LR", None, "distill=1")),
        (_forecast("LR", None, "distill=1"), _forecast("LR", None, "distill=2")),
    ],
)
def test_more_work_takes_longer(less: Forecast, more: Forecast) -> None:
    assert less.seconds < more.seconds


def test_what_crosses_a_link_takes_its_time() -> None:
    """LR with magnitude: as many passes as above; in each, states go to the device and come back."""
    work = _work()
    recipe = resolve_recipe("model", {"reconstruct": "LR", "pruner": "magnitude"}, settings=["device=cuda"])
    near, far = (forecast(recipe, work, replace(_SPEED, link=link), 10**8) for link in (math.inf, 1e9))
    passes = 36 + 36 + 1 + 36
    assert far.seconds - near.seconds == pytest.approx(8 * passes * 2 * 4 * _TOKENS * _HIDDEN / 1e9)
    recipe = resolve_recipe("model", {"reconstruct": "BR", "pruner": "magnitude"}, settings=["device=cuda"])
    fitted = [forecast(recipe, work, replace(_SPEED, link=link), 10**8) for link in (math.inf, 1e9)]
    passes += 36 + 10 * 36  # the errors before, and ten epochs, each with the held-out error
    assert fitted[1].seconds - fitted[0].seconds == pytest.approx(8 * passes * 2 * 4 * _TOKENS * _HIDDEN / 1e9)
