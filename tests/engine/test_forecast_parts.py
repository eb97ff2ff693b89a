"""A forecast counts a process's own part of the work, with the right blocks, and the most that it holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from reprune.engine.exchange import Crew, Network
from reprune.engine.forecast import ONE_PROCESS, Forecast, forecast
from reprune.engine.work import Group, Work
from reprune.planning.layers import resolve_recipe
from reprune.planning.schedule import windows
from tests.engine.test_forecast import _HIDDEN, _SPEED, _TOKENS, _WEIGHTS, _work

_ONE = 2.0 * _WEIGHTS * _TOKENS / _SPEED.products + 2.5 * 40 * _HIDDEN * _TOKENS / _SPEED.traffic
"""Seconds of one sample's pass through one block."""


def _forecast(
    rung: str, work: Work, *settings: str, crew: Crew = ONE_PROCESS, link: float = math.inf, **content: Any
) -> Forecast:
    content = {"reconstruct": rung, "pruner": "magnitude", **content}
    recipe = resolve_recipe("model", content, settings=("device=cpu", "precision=float32", *settings))
    return forecast(recipe, work, replace(_SPEED, link=link), 0, crew)


@pytest.mark.parametrize(
    ("rung", "settings"),
    [
        ("LR", ["pruner.name=wanda"]),
        ("LR", ["solver.start=least-squares"]),
        ("LR", ["pruner.name=wanda", "pruner.sequential=true"]),
        ("LR", ["pruner.name=sparsegpt", "pruner.sequential=true"]),  # groups cannot be solved in parallel
        ("LR", ["pruner.name=sparsegpt", "solver.start=least-squares"]),
        ("LR", ["allocation=by-error"]),
        ("LR", ["allocation=owl"]),
        ("LR", ["distill.blocks=2", "distill.epochs=3"]),
        ("BR", []),
        ("BR+GP+CR", []),
    ],
)
def test_processes_that_exchange_at_no_cost_take_what_one_takes_with_its_part(rung: str, settings: list[str]) -> None:
    """Of 10 and 4 samples, the process of three with the most has 4 and 2; one batch is all samples."""
    settings = ["solver.batch_size=10", "solver.micro_batch_size=1", *settings]
    size = 2 if rung == "BR+GP+CR" else 1
    several = Crew(3, Network("free", math.inf, 0.0))
    found = _forecast(rung, _work(calibration=10, heldout=4, size=size), *settings, crew=several)
    alone = _forecast(rung, _work(calibration=4, heldout=2, size=size), *settings)
    assert found.seconds == pytest.approx(alone.seconds)
    assert (found.memory_bytes, found.disk_bytes) == (alone.memory_bytes, alone.disk_bytes)


def test_distillation_takes_the_time_of_the_last_blocks_and_of_writing_them_again() -> None:
    work = _work()
    costly = replace(work.blocks[0], activations=1e9, parameters=9 * _WEIGHTS)

    def more(work: Work) -> float:
        both = [_forecast("LR", work, *settings).seconds for settings in ([], ["distill.blocks=2"])]
        return both[1] - both[0]

    assert more(replace(work, blocks=[costly, costly, *work.blocks[2:]])) == pytest.approx(more(work))
    sizes = [10**9] * 6 + [4 * 10**8, 8 * 10**8]
    assert more(replace(work, block_bytes=sizes)) - more(replace(work, block_bytes=[0] * 8)) == pytest.approx(3.0)


def test_a_window_without_fresh_blocks_has_no_dense_pass_that_crosses_a_link() -> None:
    """The windows [0], [0, 1], [1]: two dense passes, three each for targets and advancing, two samples for groups."""
    work = _work(blocks=2, size=2)
    near, far = (
        _forecast("LR", work, "schedule.size=2", "schedule.stride=1", "teacher=local", link=link).seconds
        for link in (math.inf, 1e9)
    )
    passes = 36 * (2 + 3 + 3) + 2
    assert far - near == pytest.approx(passes * 2 * work.blocks[0].states / 1e9)


def test_statistics_come_with_targets_of_a_block_that_is_alone_in_its_window() -> None:
    """Of eight fresh blocks, only the first is alone; the others' windows have a block pruned before."""
    work = _work(size=2)
    overlapping = ("schedule.size=2", "schedule.stride=1", "teacher=local")
    plain, found = (_forecast("LR", work, *overlapping, pruner=name).seconds for name in ("magnitude", "wanda"))
    assert found - plain == pytest.approx(7 * 32 * _ONE)


def test_no_more_samples_show_which_experts_share_inputs_than_there_are() -> None:
    groups = [Group(3072, 1024), Group(512, 1024, 0.25, expert=True)]
    plain = _work(calibration=3)
    experts = replace(plain, groups=[groups] * 8)
    found, dense = (_forecast("BR+GP", work).seconds for work in (experts, plain))
    assert found - dense == pytest.approx(8 * (2 + 3) * _ONE)


def test_the_dense_models_choices_of_experts_take_a_pass_of_each_block_that_makes_any() -> None:
    experts = [Group(3072, 1024), Group(512, 1024, 0.25, expert=True)]
    work = replace(_work(), groups=[*[experts] * 3, *_work().groups[3:]])
    own, repeated = (_forecast("BR+GP", work, *more).seconds for more in ((), ("solver.routing=teacher",)))
    assert repeated - own == pytest.approx(3 * 32 * _ONE)
    none, unused = (_forecast("LR", work, "teacher=global", *more) for more in ((), ("solver.routing=teacher",)))
    assert none == unused, "where nothing is fitted, nothing repeats them"


def test_steps_that_come_before_and_after_the_windows_hold_what_is_more() -> None:
    """Here the windows hold more than the allocation (they are fitted) and than distillation (two blocks, not one)."""
    work = _work()
    gpu = ("device=cuda", "streams.memory=0")
    plain, measured = (_forecast("BR+GP", work, *gpu, *more) for more in ([], ["allocation=by-error"]))
    assert measured.device_bytes == plain.device_bytes
    work = _work(size=2)
    plain, distilled = (_forecast("BR+GP+CR", work, *gpu, *more) for more in ([], ["distill.blocks=1"]))
    assert distilled.device_bytes == plain.device_bytes
    last = replace(work, schedule=[windows(8, 1, 1)[0], *work.schedule])
    assert _forecast("BR+GP+CR", last, *gpu).device_bytes == plain.device_bytes


def test_the_largest_that_is_written_may_be_a_block() -> None:
    work = replace(_work(), outside_bytes=[10**7, 0], block_bytes=[2 * 10**7] * 7 + [5 * 10**7])
    sent = 2 * 8 * 4 * _TOKENS * _HIDDEN  # states on their way to the GPU
    assert _forecast("LR", work, "device=cuda", "streams.memory=0").memory_bytes == 11 * 10**7 + 5 * 10**7 + sent


def test_matrices_of_a_stack_that_all_tokens_pass_are_seen_in_one_pass() -> None:
    """One group after the other: half a pass on average for one by itself, a whole one for eight of a stack."""
    work = replace(_work(), groups=[[Group(3072, 1024), *[Group(64, 128, stage="heads")] * 8]] * 8)
    plain, found = (
        _forecast("BR+GP", work, *more, pruner="wanda").seconds for more in ((), ("pruner.sequential=true",))
    )
    assert found - plain == pytest.approx(8 * (1.5 - 1) * 32 * _ONE)


@pytest.mark.parametrize(
    ("rung", "settings", "more"), [("BR+GP", [], 1), ("LR", [], 2), ("BR+GP", ["allocation=by-error"], 1 + 5)]
)
def test_experts_whose_gram_matrices_take_much_memory_are_seen_in_several_passes(
    rung: str, settings: list[str], more: int
) -> None:
    """Sixteen of these take 2**32 bytes. With one pass, a local teacher's targets are made on the way.

    With several, an allocation gathers them again for each of three sparsities.
    """

    def seconds(experts: int) -> float:
        groups = [Group(64, 2**13, 0.0, expert=True)] * experts
        return _forecast(rung, replace(_work(), groups=[groups] * 8), *settings, pruner="sparsegpt").seconds

    solving = seconds(16) - seconds(15)
    assert seconds(17) - seconds(16) - solving == pytest.approx(8 * more * 32 * _ONE)


def test_experts_of_which_no_two_fit_in_a_pass_are_seen_one_by_one() -> None:
    """The statistics of one take a little more than 2**31 bytes."""
    experts = [Group(64, 3 * 2**13, 0.0, expert=True)] * 3
    works = (replace(_work(), groups=[experts[:count]] * 8) for count in (1, 2, 3))
    one, two, three = (_forecast("BR+GP", work, pruner="sparsegpt").seconds for work in works)
    assert three - two == pytest.approx(two - one)
