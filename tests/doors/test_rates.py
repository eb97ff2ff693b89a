"""A run whose learning rate is far from the size of its weights says so, early and at its end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reprune.doors.formats import percent
from reprune.doors.rates import said_of_rate, unusual_steps
from tests.doors.conftest import QUICK, Cli, record_of


@pytest.mark.parametrize(
    ("rung", "lr", "steps"),
    [
        ("BR+GP", "0.05%", "shorter"),
        ("BR+GP", "1%", None),
        ("BR+GP", "30%", "longer"),
        ("auto", "0.05%", "shorter"),  # by the rate asked for; trying first steps lowers it further
        ("auto", "1%", None),
    ],
)
def test_a_rate_far_from_the_weights_size_is_said(here: Path, cli: Cli, lr: str, steps: str | None, rung: str) -> None:
    """It is said after the first window, when one can still begin again, and at the end."""
    said = cli("prune", "llama", "--out", "rated", *QUICK, "--lr", lr, "--reconstruct", rung)
    assert (said.code, said.err) == (0, "")
    windows = record_of(here / "rated")["windows"]
    share = float(lr[:-1]) / 100
    assert [window["relative_lr"] for window in windows] == [pytest.approx(share)] * len(windows)
    begun = [window["epochs"][0]["relative_lr"] for window in windows]
    assert rung == "auto" or begun == [pytest.approx(share)] * len(windows)
    # Each window has its own, unless `auto` begins with a block that the window before left unchanged.
    states = set()
    for number, window in enumerate(windows):
        (block,) = window["epochs"][0]["blocks"]
        states.add((block, sum(block in before["reconstructed"] for before in windows[:number])))
    assert len({window["epochs"][0]["lr"] for window in windows}) == len(states) >= 3
    what = f"{percent(share)} of the kept weights' root mean square: {steps} steps"
    then = "than usual; --lr 1% scales with the weights"
    if steps is None:
        assert "root mean square" not in said.out
        return
    assert said.out.index(f"\nnote: rate {what}\n      {then}\n") < said.out.index("\nwriting the result\n")
    assert f"rate           {what}\n               {then}\n" in said.out


def test_too_long_is_a_rate_that_windows_began_with_and_too_short_one_that_was_asked_for() -> None:
    def said(asked: float | None, *epochs: float | None) -> str | None:
        windows = [{"relative_lr": asked, "epochs": [{"relative_lr": rate} for rate in epochs]}] * 2
        found = said_of_rate([*windows, {"epochs": []}])  # as with least squares only
        return None if found is None else found[0]

    assert said(0.3, 0.3, 0.001) == "30.0 % of the kept weights' root mean square: longer steps"
    assert said(0.3, 0.01, 0.3) is None
    assert said(0.001, 0.01) == "0.10 % of the kept weights' root mean square: shorter steps"
    assert said(0.01, 0.001) is None
    assert said(None, None) is None
    assert said(0.3) == "30.0 % of the kept weights' root mean square: longer steps", "no epoch went well"


@pytest.mark.parametrize("first", [0.001, 0.3])
def test_one_window_of_many_says_nothing(first: float) -> None:
    rates = (first, 0.01, 0.01)
    assert said_of_rate([{"relative_lr": rate, "epochs": [{"relative_lr": rate}]} for rate in rates]) is None
    assert said_of_rate([{"relative_lr": first, "epochs": [{"relative_lr": first}]}]) is not None


@pytest.mark.parametrize(
    ("asked", "begun", "expected"),
    [
        ([0.01], [0.01], None),
        ([], [], None),
        ([None, None], [None], None),
        ([float("nan")], [float("inf")], None),
        ([0.0025, 0.04], [0.0025, 0.04], None),
        ([0.001, None, 0.002, 0.9], [0.001, 0.002, 0.9], (0.002, "shorter")),
        ([0.05], [0.05], (0.05, "longer")),
        ([0.01], [0.001], None),  # trying first steps has lowered it, which is no mistake of the user's
        ([0.05], [0.02], None),  # the same: it was too high, and is no longer
        ([0.001], [0.0001], (0.001, "shorter")),
        ([None], [0.05], (0.05, "longer")),
        ([None], [0.001], None),
    ],
)
def test_a_rate_far_from_the_weights(
    asked: list[float | None], begun: list[float | None], expected: tuple[float, str] | None
) -> None:
    assert unusual_steps(asked, begun) == expected


@pytest.mark.parametrize(("precision", "rate"), [("float32", "1e30"), ("float16", "10")])
def test_a_fit_that_becomes_nan_under_the_guard_is_told_everywhere(
    here: Path, cli: Cli, precision: str, rate: str
) -> None:
    said = cli("prune", "llama", "--out", "failed", *QUICK, "--lr", rate, "--set", f"precision={precision}")
    assert (said.code, said.err) == (0, "")
    found = " ".join(said.out.split())
    assert re.search(r"note: window 0 \(blocks \[0\]\): the (loss|held-out error) became (nan|inf) in epoch 1; ", found)
    assert "(the learning rate, now" in found
    assert ("start again in another folder with --set precision=bfloat16" in found) == (precision == "float16")
    assert "ended 3 of 3 fits that became NaN or infinite (see notes)" in found
    assert "longer steps than usual" in found
    assert max(map(len, said.out.splitlines())) <= 80
    for window in record_of(here / "failed")["windows"]:
        (failure,) = window["guard"]["failures"]
        assert any(failure in note for note in window["notes"])
        assert (window["epochs"], window["guard"]["run_epochs"], window["guard"]["planned_epochs"]) == ([], 0, 2)
    assert cli("report", "failed").code == 0
    assert "Reconstruction failed in 3 of 3 windows" in (here / "failed" / "report.html").read_text(encoding="utf-8")
    assert cli("verify", "failed").code == 0
