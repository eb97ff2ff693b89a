"""A forecast counts what the loop does: more work takes longer, more held at a time takes more memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from reprune.engine.exchange import Crew
from reprune.engine.footprint import _copies, _gradients, distilling_bytes, least_memory_bytes, window_bytes
from reprune.engine.forecast import Forecast, forecast
from reprune.engine.group_statistics import AT_ONCE
from reprune.engine.speed import Speed
from reprune.engine.work import Group, Work
from reprune.model.costs import BlockCosts, Flops
from reprune.model.predictor import LOGITS
from reprune.planning.layers import resolve_recipe
from reprune.planning.schedule import windows

_SPEED = Speed(1e11, 5e10, 1e10)
_WEIGHTS, _TOKENS, _HIDDEN = 10**7, 128, 1024


def _work(blocks: int = 8, calibration: int = 32, heldout: int = 4, size: int = 1) -> Work:
    flops = 2.0 * _WEIGHTS * _TOKENS
    cost = BlockCosts(_WEIGHTS, 4 * _TOKENS * _HIDDEN, Flops(flops), Flops(3 * flops), 40.0 * _HIDDEN * _TOKENS, True)
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


def test_a_gpu_picks_kept_weights_of_a_compact_fit_within_its_backward_passes() -> None:
    recipe = resolve_recipe("model", {"reconstruct": "BR+GP"}, settings=["device=cuda", "precision=bfloat16"])
    compact = recipe.model_copy(update={"solver": recipe.solver.model_copy(update={"compact": True})})
    cost = replace(_work().blocks[0], activations=1e8)  # far above the weights: the peak is in a backward pass
    weights = 4 * _WEIGHTS
    for one, picking in ((recipe, 0), (compact, 2 * weights)):
        kept = one.solver.samples_at_a_time * cost.activations
        held = (_copies(one) - _gradients(one)) * weights
        found = window_bytes(one, replace(_work(), blocks=[cost] * 8), windows(8, 1, 1)[0])
        assert found == int(held + 1.3 * kept + picking)


def test_a_run_of_passes_alone_takes_what_they_take() -> None:
    """LR with magnitude: the dense stream, local targets (and statistics), a sample for the groups, and advancing."""
    work = replace(_work(), block_bytes=[0] * 8, outside_bytes=[0])
    found = _forecast("LR", work, pruner="magnitude")
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.0 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    passes = 36 + 36 + 1 + 36
    assert found.seconds == pytest.approx(8 * (passes * one + 0.05))


def test_windows_of_several_blocks_take_what_leads_to_each_fresh_one_and_the_errors_before() -> None:
    """Of blocks that are there already the last alone is passed for the errors before, as what enters it is at hand."""
    work = replace(_work(), schedule=windows(8, 2, 2), block_bytes=[0] * 8, outside_bytes=[0])
    flops, moved = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products, 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    one, both = flops + 2 * moved, 3 * flops + 6 * moved
    side_by_side = ("schedule.size=2", "schedule.stride=2")
    found = _forecast("LR", work, *side_by_side, pruner="magnitude")
    passes = 2 * 36 + 2 * 36 + 36 + 2 * 1 + 2 * 36
    assert found.seconds == pytest.approx(4 * (passes * one + 0.05))
    fitted = _forecast("BR", work, *side_by_side, "solver.epochs=1", pruner="magnitude")
    steps = 4 * 4 * 2 * _WEIGHTS * 9 / _SPEED.traffic
    descent = 36 * one + 2 * (32 * both + 4 * one) + steps
    assert fitted.seconds - found.seconds == pytest.approx(4 * descent)
    overlapping = replace(work, schedule=windows(2, 2, 1))  # [0], [0, 1], [1]: the last has nothing fresh
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


def test_statistics_come_with_the_targets_of_a_lone_block_where_the_teacher_is_local() -> None:
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.0 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
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
    """Half of each model on average; a pruner that needs the same X'X shares it, and is then one of a group at a time.

    The weights, those of the dense model, and the largest group of each kind are held; inputs here take nothing.
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


def test_experts_take_passes_of_their_own_and_their_share_of_the_tokens() -> None:
    """A batch for the groups; statistics in a pass, or two where each group is reached; they are not refitted."""
    groups = [Group(3072, 1024), Group(512, 1024, 0.25, expert=True)]
    work = replace(_work(), groups=[groups] * 8)
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.0 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    dense = _forecast("BR+GP", pruner="magnitude").seconds
    sequential, refit = "pruner.sequential=true", "solver.start=least-squares"
    square = 1024**2 / _SPEED.full
    fitting = 2 * (0.625 * 36 + 36) * _TOKENS * square + 24 * 2 * 3072 * square
    for settings, passes, more in (
        ([], 7 + 32, 0.0),
        ([sequential], 7 + 32 * 2.5, 0.0),
        ([refit], 7 + 36 * 3, fitting),
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
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.0 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    solving = [
        (1.5 * group.columns**3 + group.rows * group.columns**2) / _SPEED.full + 3e-5 * group.columns
        for group in _work().groups[0]
    ]
    other = min(sum(solving[::2]), sum(solving[1::2]))
    assert found[1] - found[0] == pytest.approx(8 * (16 * one + other))


def test_what_is_written_takes_its_time() -> None:
    """Retired blocks, what lies outside them, and of windows of two what each but the last leaves open."""
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
    """Held-out errors before, between and after; steps; and both models once more through the blocks."""
    work = replace(_work(), block_bytes=[0] * 8, head=(5000, _HIDDEN))
    without = _forecast("LR", work, pruner="magnitude")
    found = _forecast("LR", work, "distill.blocks=2", "distill.epochs=3", pruner="magnitude")
    flops, moved = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products, 40 * _HIDDEN * _TOKENS / _SPEED.traffic
    forward, both = 2 * (flops + 2 * moved), 2 * (3 * flops + 6 * moved)
    product, pass_ = 2.0 * 5000 * _HIDDEN * _TOKENS / (0.5 * _SPEED.products), 4.0 * 5000 * _TOKENS / _SPEED.traffic
    expected = 5 * 4 * (forward + 2 * product + 10 * pass_)
    expected += 3 * 32 * (both + 3 * product + 15 * pass_)
    expected += 3 * 4 * 4 * 2 * _WEIGHTS * 9 / _SPEED.traffic
    expected += 36 * 2 * forward
    assert found.seconds - without.seconds == pytest.approx(expected)


def test_an_allocation_takes_its_walk_and_each_blocks_prunings() -> None:
    """Every sample once through each block and one for its groups; then statistics, or prunings and held-out errors."""
    work = replace(_work(), outside_bytes=[0])
    one = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.0 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
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
    in_turn = ("pruner.sequential=true",)  # which measuring is not
    plain, found = (
        _forecast("LR", work, *in_turn, *more, pruner="sparsegpt") for more in ((), ("allocation=by-error",))
    )
    assert found.seconds - plain.seconds == pytest.approx(allocating)


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
    """A window of several blocks has what its open ones put out, too, and distillation both streams once more."""
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
        (_forecast("BR+GP"), _forecast("BR")),  # targets of its own
        (_forecast("BR"), _forecast("BR+GP+CR")),
        (_forecast("LR", None, pruner="wanda"), _forecast("LR", None, pruner="sparsegpt")),
        (_forecast("BR+GP", None, pruner="magnitude"), _forecast("BR+GP", None, pruner="wanda")),  # no statistics
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
        expected = 4.25 * 4 * 2 * _WEIGHTS + 4 * words * _HIDDEN + 8 * kept + logits
        assert distilling_bytes(recipe, work) == expected
        many = distilling_bytes(recipe, replace(work, head=(10**6, _HIDDEN)))
        assert many == expected + 4 * (10**6 - words) * _HIDDEN - logits + 5 * 4 * LOGITS, "not of all tokens at once"


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
    assert 10**12 < large.memory_bytes < 10**12 + 10**8
    on_gpu = recipe.model_copy(update={"device": "cuda"})
    assert forecast(on_gpu, _work(), _SPEED, 0, writer_bytes=10**12).device_bytes == 10**12


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
    assert found.memory_bytes == 10**8 + 9 * 10**7 + 10**8, "a process, its surroundings, and a tensor that is written"
    no_tensors = forecast(recipe, replace(_work(), outside_bytes=[0]), _SPEED, 10**8)
    assert no_tensors.memory_bytes == int(10**8 + 9e7 + 1.1 * 3 * 36 * 4 * _TOKENS * _HIDDEN), "or the streams"
    # At the peak either all activations are there or all gradients: of weights beside moments and masks.
    kept = 8 * 40 * _HIDDEN * _TOKENS
    assert found.device_bytes == int(3.25 * 4 * _WEIGHTS + kept + 0.3 * kept)
    few = forecast(recipe, replace(_work(), calibration=1), _SPEED, 10**8)
    assert few.device_bytes == int(4.25 * 4 * _WEIGHTS + 0.3 * kept / 8)
    # Half a copy more with the guard, and the places of what it copies.
    guarded = forecast(recipe.model_copy(update={"guard": True}), _work(), _SPEED, 10**8)
    assert guarded.device_bytes == int(4.75 * 4 * _WEIGHTS + 8 * _WEIGHTS)


def test_what_crosses_a_link_takes_its_time() -> None:
    """LR with magnitude: as many passes as above, of which each has states that enter and states that come out."""
    work = _work()
    recipe = resolve_recipe("model", {"reconstruct": "LR", "pruner": "magnitude"}, settings=["device=cuda"])
    near, far = (forecast(recipe, work, replace(_SPEED, link=link), 10**8) for link in (math.inf, 1e9))
    passes = 36 + 36 + 1 + 36
    assert far.seconds - near.seconds == pytest.approx(8 * passes * 2 * 4 * _TOKENS * _HIDDEN / 1e9)
    recipe = resolve_recipe("model", {"reconstruct": "BR", "pruner": "magnitude"}, settings=["device=cuda"])
    fitted = [forecast(recipe, work, replace(_SPEED, link=link), 10**8) for link in (math.inf, 1e9)]
    passes += 36 + 10 * 36  # the errors before, and ten epochs each with the held-out error after it
    assert fitted[1].seconds - fitted[0].seconds == pytest.approx(8 * passes * 2 * 4 * _TOKENS * _HIDDEN / 1e9)
