"""A forecast counts what the loop does: more work takes longer, more held at a time takes more memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from reprune.engine.footprint import _copies, _gradients, least_memory_bytes, window_bytes
from reprune.engine.forecast import Forecast, forecast
from reprune.engine.machines import MACHINES, Machine, find_machine
from reprune.engine.speed import Speed, _size, measure_speed, resident_bytes
from reprune.engine.work import Group, Work
from reprune.errors import InputError
from reprune.model.costs import BlockCosts, Flops
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
    assert found.seconds - plain.seconds == pytest.approx(8 * ((36 + 1 + 32 + 3 * 4) * one + gram + 3 * solving))


def test_an_allocation_has_two_streams_more_than_the_start() -> None:
    plain, found = (_forecast("BR+GP", None, "streams.memory=0", *more) for more in ((), ("allocation=owl",)))
    assert found.disk_bytes - plain.disk_bytes == 4 * 36 * _TOKENS * _HIDDEN, "four, not three"


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


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_machine_does_a_part_of_what_its_maker_says(machine: Machine) -> None:
    half, full = machine.speed("bfloat16"), machine.speed("float32")
    assert full.products == full.full == half.full < half.products < machine.bfloat16
    assert half.traffic < machine.bandwidth and half.link < machine.link < half.traffic


def test_an_unknown_machine_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"--on tpu: expected one of h100, a100, 4090"):
        find_machine("tpu")


@pytest.mark.parametrize(("free", "size"), [(80e9, 8192), (11e9, 8192), (8e9, 4096), (1e9, 2048), (1e6, 1024)])
def test_what_a_gpu_is_measured_by_fits_it(free: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    assert _size(torch.device("cuda", 0)) == size


def test_the_machine_is_measured() -> None:
    speed = measure_speed(torch.device("cpu"), torch.float32)
    assert speed.products == speed.full > 1e8
    assert speed.traffic > 1e7 and speed.link == math.inf
    assert speed.attention is not None and speed.attention > 1e7
    assert resident_bytes() > 10**7
