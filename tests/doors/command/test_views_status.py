"""The status of a run names the measure of its errors, and how to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reprune.doors.command.views_status import show_status
from reprune.doors.status import Status
from reprune.errors import InputError

_RECIPE = {"model": "m", "pruner": {"name": "wanda"}, "sparsity": "0.5", "reconstruct": "auto"}


@pytest.mark.parametrize(("loss", "measure"), [("standardized", "standardized"), ("squared", "relative")])
def test_errors_are_said_to_be_of_the_measure_that_they_are_in(
    loss: str, measure: str, capfd: pytest.CaptureFixture[str]
) -> None:
    window: dict[str, Any] = {"blocks": [1, 2], "loss": loss}
    window |= {"relative_calibration_error": {"after": 0.25}, "relative_heldout_error": {"after": 0.5}}
    show_status(Status(False, 3, 2, _RECIPE, window), Path("out"))
    assert capfd.readouterr().out.splitlines() == [
        "out: m, wanda 0.5, auto",
        "2 of 3 windows finished",
        f"last: blocks [1, 2], {measure} error calibration 25.0 %, held-out 50.0 %",
        "unfinished; go on with: reprune resume out",
    ]


@pytest.mark.parametrize(("finished", "file"), [(True, r"reprune\.json"), (False, r"run\.json")])
def test_of_what_has_no_whole_recipe_the_file_that_holds_it_is_named(finished: bool, file: str) -> None:
    with pytest.raises(InputError, match=rf"out/.*{file}: damaged \(it holds no 'pruner'\); "):
        show_status(Status(finished, 3, 2, {"model": "m"}, None), Path("out"))


def test_a_number_beyond_all_floats_is_damage() -> None:
    window: dict[str, Any] = {"blocks": [0], "loss": "squared", "relative_calibration_error": {"after": 10**400}}
    with pytest.raises(InputError, match=r"out/reprune\.json: damaged \("):
        show_status(Status(True, 1, 1, _RECIPE, window), Path("out"))
