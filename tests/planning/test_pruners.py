"""A pruner of an installed package is found by its name and given its settings, or refused in one line."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from reprune.errors import InputError
from reprune.files.yaml_text import read_yaml
from reprune.math.checked import Checked
from reprune.math.magnitude import Magnitude
from reprune.planning import pruners
from reprune.planning.axes import PRUNERS, place
from reprune.planning.layers import parse_setting, resolve_recipe
from reprune.planning.recipe import PrunerRecipe, Recipe
from tests.packages import install, write_pruner

CODE = """
from reprune.math.pruner import Pruner
from reprune.math.statistics import SquaredNorms, Statistics
from reprune.math.wanda import Wanda


class Mine(Pruner):
    def __init__(self, power=1.0):
        if power < 0:
            raise ValueError("power is negative")
        self.power = power

    def statistics(self, columns, device):
        return SquaredNorms(columns, device)

    def _prune(self, weights, statistics, pattern):
        return Wanda().prune(weights, statistics, pattern)


class Sized(Statistics):
    def size(self, columns):
        return columns


class Own(Mine):
    def statistics(self, columns, device):
        return Sized(columns, device)


class Odd(Mine):
    def statistics(self, columns, device):
        return [0.0] * columns


def fail():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = {
        "mine": "Mine",
        "odd": "Odd",
        "own": "Own",
        "failing": "fail",
        "absent": "Absent",
        "text": "__name__.upper",
        "wanda": "Mine",
    }
    found = write_pruner(tmp_path / "brought", CODE, **made)
    install(found, monkeypatch)
    return found


def _build(name: str, **settings: Any) -> Any:
    return resolve_recipe("m", {"pruner": {"name": name, "settings": settings}}).pruner.build()


@pytest.mark.usefixtures("package")
def test_it_is_found_and_given_its_settings() -> None:
    made = _build("mine", power=0.5)
    assert isinstance(made, Checked)
    assert (made.name, made.pruner.power) == ("mine", 0.5)
    assert pruners.known()[:3] == PRUNERS
    assert "mine" in pruners.known()[3:]
    assert pruners.known().count("wanda") == 1  # no package can replace reprune's own
    assert not isinstance(_build("wanda"), Checked)
    assert pruners.package("mine") == {"brought": "1.0"}
    assert pruners.package("sparsegpt") == {}


def test_installed_packages_are_not_looked_through_for_reprunes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be hundreds of them."""
    monkeypatch.setattr(pruners, "entry_points", lambda **_: pytest.fail("they are looked through"))
    assert [pruners.package(name) for name in PRUNERS] == [{}] * len(PRUNERS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E2", 500.0),
        ("1.5e3", 1500.0),
        ("-.5e1", -5.0),
        ("'1e3'", "1e3"),  # a commit, for example
        ("2", 2),
        ("e3", "e3"),
        ("[1e-3, {a: 2e1}]", [0.001, {"a": 20.0}]),
    ],
)
def test_a_setting_is_a_number_with_or_without_a_point_and_a_text_in_quotes(text: str, value: Any) -> None:
    given = parse_setting(f"pruner.settings.limit={text}")["pruner"]
    recipe = Recipe(model="m", pruner=PrunerRecipe(**given))
    assert recipe.pruner.settings == {"limit": value}
    assert Recipe(**read_yaml(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (".inf", "power: input should be a finite number (got inf)."),
        ("[1, {a: .nan}]", "power.1.a: input should be a finite number (got nan)."),
        ("2020-01-01", "power: input was not a valid JSON value (got datetime.date(2020, 1, 1))."),
    ],
)
def test_a_setting_that_is_refused_is_named_by_its_key(value: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_recipe("m", settings=[f"pruner.settings.power={value}"])
    assert str(caught.value) == f"pruner.settings.{said}"


@pytest.mark.usefixtures("package")
def test_settings_of_a_file_go_with_the_pruner_that_it_names() -> None:
    def found(file: dict[str, Any], pruner: str, *given: str) -> dict[str, Any]:
        recipe = resolve_recipe("m", {"pruner": file}, {"pruner": pruner}, given).pruner
        assert (recipe.name, recipe.damping) == (pruner, 0.5)
        return recipe.settings

    file = {"name": "mine", "settings": {"power": 2}, "damping": 0.5}
    assert found(file, "mine") == {"power": 2}
    assert found(file, "wanda") == {}
    unnamed = {key: value for key, value in file.items() if key != "name"}
    assert found(unnamed, "mine") == {"power": 2}
    assert found(unnamed, "wanda", "pruner.settings={}") == {}
    assert found({**file, "name": "wanda"}, "mine", "pruner.settings.power=3") == {"power": 3}
    with pytest.raises(InputError, match=r"not for wanda; it has pruner\.update"):
        found(file, "wanda", "pruner.settings.power=3")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        (
            "mine",
            {"pover": 1.0},
            "pruner mine: brought:Mine(pover=1.0) of the package brought cannot be used (TypeError: ",
        ),
        (
            "mine",
            {"power": -1.0},
            "brought:Mine(power=-1.0) of the package brought cannot be used (ValueError: power is ",
        ),
        (
            "odd",
            {},
            "pruner odd of the package brought cannot be used: its statistics are a list, not a reprune.math.stat",
        ),
        ("own", {}, "brought:Own() of the package brought cannot be used (TypeError: Sized.size() missing 1 "),
        ("failing", {}, "brought:fail() of the package brought cannot be used (RuntimeError: no luck)."),
        ("absent", {}, "brought:Absent() of the package brought cannot be used (AttributeError: "),
        ("text", {}, "pruner text of the package brought cannot be used: str is not a reprune.math.pruner.Pruner."),
        (
            "mime",
            {},
            "failing, mine, odd, own or text, or a pruner that an installed package brings (got 'mime'); did you mean",
        ),
        (
            "wanda",
            {"power": 1},
            "pruner.settings are for pruners that other packages bring, not for wanda; "
            "it has pruner.update (got power).",
        ),
        ("sparsegpt", {"a": 1}, "not for sparsegpt; it has pruner.damping and pruner.block_size (got a)"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        _build(name, **settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("package")
def test_one_that_two_packages_bring_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(write_pruner(tmp_path / "another", CODE, mine="Mine"), monkeypatch)
    with pytest.raises(InputError, match="the packages another and brought both bring a pruner mine; uninstall one"):
        _build("mine")


def test_a_name_that_no_folder_of_a_study_can_have_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a/b", "c d", "e.f")
    install(write_pruner(tmp_path / "brought", CODE, **{f'"{name}"': "Mine" for name in names}), monkeypatch)
    assert {*names}.intersection(pruners.known()) == {"e.f"}


def test_without_a_package_the_names_are_those_of_reprune() -> None:
    with pytest.raises(
        InputError, match=r"pruner\.name: expected magnitude, wanda or sparsegpt, or a pruner that"
    ) as caught:
        _build("wander")
    assert str(caught.value).endswith("(got 'wander'); did you mean wanda?")
    with pytest.raises(InputError, match=r"\(got 'SparseGPT'\); did you mean sparsegpt\?$"):
        _build("SparseGPT")
    assert isinstance(_build("magnitude"), Magnitude)


def test_names_are_ordered_as_the_papers_tables_then_by_the_alphabet() -> None:
    names = ["b", "sparsegpt", "a", "magnitude", "wanda"]
    assert sorted(names, key=lambda name: place(PRUNERS, name)) == ["magnitude", "wanda", "sparsegpt", "a", "b"]


def test_one_that_is_installed_while_python_runs_is_found_and_a_newer_version_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip_install(version: str) -> None:
        """Leave what pip would in a folder that was searched before, which changes the folder's time."""
        (tmp_path / "of_late.py").write_text(CODE)
        for older in tmp_path.glob("*.dist-info"):
            shutil.rmtree(older)
        about = tmp_path / f"late-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: late\nVersion: {version}\n")
        (about / "entry_points.txt").write_text("[reprune.pruners]\nlate = of_late:Mine\n")

    monkeypatch.syspath_prepend(tmp_path)
    os.utime(tmp_path, ns=(0, 0))
    with pytest.raises(InputError, match="expected magnitude"):
        _build("late")
    pip_install("1.0")
    assert _build("late", power=2.0).pruner.power == 2.0
    assert pruners.package("late") == {"late": "1.0"}
    os.utime(tmp_path, ns=(1, 1))
    assert "late" in pruners.known()
    pip_install("1.1")
    with pytest.raises(
        InputError,
        match=r"pruner late: version 1\.0 of the package late is imported, but 1\.1 is installed now; restart Python",
    ):
        _build("late")
    del sys.modules["of_late"]
    assert pruners.package("late") == {"late": "1.1"}
    assert _build("late").name == "late"
