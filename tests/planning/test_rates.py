"""A learning rate is a number or a share of the weights' root mean square; anything else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reprune.errors import InputError
from reprune.planning.descents import parse_rate
from reprune.planning.layers import read_recipe, resolve_recipe


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2e-4, (2e-4, False)),
        ("2e-4", (2e-4, False)),
        (1, (1.0, False)),
        ("1%", (0.01, True)),
        (" 0.5 % ", (0.005, True)),
        ("1e-2%", (1e-4, True)),
    ],
)
def test_a_rate_is_read(given: Any, expected: tuple[float, bool]) -> None:
    assert parse_rate(given) == expected


@pytest.mark.parametrize(
    "given", ["fast", "", "%", "1%%", "1 percent", "0%", "-1%", "nan%", "inf", 0, -1e-4, True, [1]]
)
def test_what_is_no_rate_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="above 0, or a share of the weights' root mean square, such as 1%"):
        parse_rate(given)


def test_a_recipe_keeps_it_as_it_was_written(tmp_path: Path) -> None:
    recipe = resolve_recipe("model", settings=["solver.lr=0.5%"])
    assert recipe.solver.lr == recipe.settled(8).solver.lr == "0.5%"
    built: Any = recipe.solver.build(guard=True)
    assert (built.lr, built.relative) == (0.005, True)
    file = tmp_path / "recipe.yaml"
    file.write_text("solver:\n  lr: 0.5%\n", encoding="utf-8")
    assert resolve_recipe("model", read_recipe(file)) == recipe
    assert resolve_recipe("model", read_recipe(file), {"solver": {"lr": "1e-3"}}).solver.lr == 1e-3, "the flag decides"


def test_a_recipe_refuses_what_is_none() -> None:
    with pytest.raises(InputError, match=r"solver.lr: expected a number above 0, or a share .* \(got 'fast'\)"):
        resolve_recipe("model", settings=["solver.lr=fast"])
