"""A plan describes the run that would be done, here or on another machine, and what would be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import reprune
from reprune.doors import planned
from reprune.doors.planned import Plan, make_crew
from reprune.engine.exchange import Crew, find_network
from reprune.engine.machines import Machine, find_machine
from reprune.errors import InputError
from reprune.model.decoder import Decoder
from tests import tiny

RUN: dict[str, Any] = {"calibration": "text.txt", "samples": 6, "seqlen": 24, "device": "cpu"}
H100 = find_machine("h100")


@pytest.mark.parametrize(
    ("ranks", "network", "machine", "count", "name"),
    [
        (None, None, None, 1, "local"),
        (16, None, None, 16, "local"),
        (8, None, H100, 8, "nvlink"),
        (9, "nvlink", H100, 9, "nvlink"),
        (9, None, H100, 9, "100g"),
        (8, "100g", H100, 8, "100g"),
        (2, "nvlink", None, 2, "nvlink"),
    ],
)
def test_processes_exchange_over_what_machines_of_eight_gpus_have(
    ranks: int | None, network: str | None, machine: Machine | None, count: int, name: str
) -> None:
    crew = make_crew(ranks, network, machine)
    assert (crew.count, crew.network) == (count, find_network(name))


@pytest.mark.parametrize(
    ("machine", "name", "bandwidth"), [("a100", "NVLink of A100", 300e9), ("4090", "PCIe 4.0", 32e9)]
)
def test_gpus_in_one_machine_exchange_over_what_such_gpus_have(machine: str, name: str, bandwidth: float) -> None:
    within = make_crew(8, None, find_machine(machine)).network
    assert (within.name, within.bandwidth) == (name, bandwidth)
    assert make_crew(9, None, find_machine(machine)).network == find_network("100g")
    assert make_crew(2, "local", find_machine(machine)).network == find_network("local")


def test_what_has_no_nvlink_is_not_forecast_with_it() -> None:
    assert make_crew(2, "nvlink", find_machine("a100")).network.name == "NVLink of A100"
    with pytest.raises(InputError, match=r"--network nvlink: one GeForce RTX 4090 \(24 GB\) has no NVLink; give 100g"):
        make_crew(2, "nvlink", find_machine("4090"))


@pytest.mark.parametrize(
    ("ranks", "network", "said"),
    [
        (0, None, "--ranks 0: expected at least 1"),
        (None, "100g", "--network 100g: only several processes exchange anything"),
        (2, "usb", r"--network usb: expected one of local, nvlink, 100g\."),
    ],
)
def test_processes_that_cannot_be_are_refused(ranks: int | None, network: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_crew(ranks, network, None)


@pytest.mark.usefixtures("here")
def test_each_process_of_a_plan_has_a_sample() -> None:
    assert reprune.plan("llama", **RUN, ranks=6, network="100g").crew == Crew(6, find_network("100g"))
    with pytest.raises(InputError, match="--ranks 7: each process needs a sample, but there are 6; give at most 6"):
        reprune.plan("llama", **RUN, ranks=7)


def test_weights_and_files_are_all_of_the_models(here: Path) -> None:
    plan = reprune.plan("llama", **RUN)
    weights = sum(one.numel() for one in tiny.build("llama").parameters())
    assert (plan.weights, plan.decoder.checkpoint.bytes) == (weights, 4 * weights)
    assert (plan.samples, plan.recipe.precision == "auto") == ((6, 1), False)


def _refusing(name: str, seen: dict[str, Any]) -> Callable[..., None]:
    def check(*given: Any) -> None:
        seen[name] = given
        raise InputError(name)

    return check


@pytest.mark.parametrize(
    ("on", "out", "expected"),
    [
        (None, None, ["check_memory", "check_texts"]),
        (None, "out", ["check_memory", "check_out", "check_disk", "check_texts"]),
        ("h100", "out", ["check_out", "check_disk", "check_texts"]),
    ],
)
def test_all_that_would_be_refused_is_said_in_order(
    on: str | None, out: str | None, expected: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of another machine is unknown here."""
    seen: dict[str, Any] = {}
    plan = reprune.plan("llama", out, **RUN, on=on, sparsity="3:5")
    for name in ("check_memory", "check_out", "check_disk", "check_texts"):
        monkeypatch.setattr(planned, name, _refusing(name, seen))
    assert plan.refusals == (*plan.survey.refusals, *expected)
    assert len(plan.survey.refusals) > 1
    if out is not None:
        assert seen["check_disk"][2:] == (7, Path(out)), "held-out samples among them"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("on", "device"), [(None, None), ("h100", "cuda")])
def test_what_blocks_take_is_that_on_the_machine_of_the_run(
    on: str | None, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    costs = Decoder.costs
    monkeypatch.setattr(Decoder, "costs", lambda self, *given: asked.append(given) or costs(self, *given))
    monkeypatch.setattr(planned, "resident_bytes", lambda: 10**9)
    plan = reprune.plan("llama", **RUN, on=on)
    assert plan.memory_bytes == plan.forecast.memory_bytes > 10**9
    assert asked == [(24, device)]


def test_matrices_of_a_stack_are_one_stage_of_the_work(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save("deepseek_v4", here / "v4")
    monkeypatch.setattr(planned, "forecast", lambda recipe, work, *_: work)
    work: Any = reprune.plan("v4", **RUN, on="h100").forecast
    for groups in work.groups:
        stages = [group.stage for group in groups if not group.expert]
        assert stages.count("self_attn.o_a_proj.weight") == 2
        assert {*stages} == {None, "self_attn.o_a_proj.weight"}


def test_a_forecast_is_of_the_samples_and_of_what_blocks_are_passed_for_each(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save("gemma3n", here / "gemma")
    monkeypatch.setattr(planned, "forecast", lambda recipe, work, *_: work)
    plan = reprune.plan("gemma", **RUN, on="h100")
    work: Any = plan.forecast
    assert (work.calibration, work.heldout, work.tokens) == (6, 1, 24)
    assert work.own == plan.decoder.own_bytes(24) > 0


@pytest.mark.usefixtures("here")
def test_products_of_another_machine_are_as_asked_or_as_its_gpu_multiplies_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planned, "slowness", lambda *_: pytest.fail("it runs elsewhere"))
    held: dict[str, int] = {}
    names = ("bfloat16", "float16", "float32")
    for asked, products in (("auto", "bfloat16"), *zip(names, names, strict=True)):
        plan = reprune.plan("llama", **RUN, on="h100", settings=[f"precision={asked}", "distill=1"])
        assert (plan.recipe.precision, plan.products) == (asked, products)
        held[asked] = plan.forecast.device_bytes
    assert held["auto"] == held["bfloat16"] < held["float32"], "the head is held as it is multiplied by"


def _bytes(plan: Plan) -> tuple[bool, bool]:
    """Whether the forecast's memory includes a whole model that writes texts, and whether the plan's own does."""
    plan = replace(plan)  # without cached properties
    return plan.forecast.memory_bytes > 10**15, plan.memory_bytes > 10**15


def test_a_model_that_writes_counts_where_texts_are_not_in_the_cache_of_this_machine(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned, "whole_bytes", lambda *_: 10**16)
    own = {**RUN, "self_generate": 4}
    plan, elsewhere, without = (
        reprune.plan("llama", **asked) for asked in (own, {**own, "on": "h100"}, {**RUN, "self_generate": 0})
    )
    assert (plan.texts, elsewhere.texts, without.texts) == (5, 5, 0), "one more is held out"
    assert (_bytes(plan), _bytes(without)) == ((True, True), (False, False))
    monkeypatch.setattr(planned, "unwritten", lambda *_: 0)
    assert (replace(plan).texts, replace(elsewhere).texts) == (0, 5)
    assert _bytes(plan) == (False, True), "what a study asks of a node does not go by a cache"
