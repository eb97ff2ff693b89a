"""A grid is all combinations of its axes, each once, in the paper's order; each cell's recipe is that of its axes."""

from __future__ import annotations

from pathlib import Path

import pytest

from reprune.doors.study.grid import Cell, Grid, base_recipe, cell_recipes, common, flat
from reprune.errors import InputError
from reprune.planning.axes import PARTS, PRUNERS, RUNGS
from reprune.planning.recipe import Recipe
from tests.packages import install, write_pruner


def test_the_axes_have_the_values_of_a_recipe_in_the_papers_order() -> None:
    assert PRUNERS == ("magnitude", "wanda", "sparsegpt")
    assert RUNGS == ("LR", "BR", "BR+GP", "BR+GP+CR", "auto")
    assert PARTS == ("all", "attention", "mlp")


def test_cells_come_seed_by_seed_then_as_the_ladder_goes_in_whatever_order_they_are_asked_for() -> None:
    grid = Grid.of(["wanda", "magnitude"], ["BR+GP", "LR"], ["mlp", "all"], [7, 3])
    assert [cell.name for cell in grid.cells()][:5] == [
        "magnitude-LR-seed3",
        "magnitude-BR+GP-seed3",
        "magnitude-LR-mlp-seed3",
        "magnitude-BR+GP-mlp-seed3",
        "wanda-LR-seed3",
    ]
    assert len(grid.cells()) == len(set(grid.cells())) == 16
    assert [cell.seed for cell in grid.cells()] == [3] * 8 + [7] * 8
    assert str(grid) == "2 pruners x 2 rungs x 2 parts x 2 seeds"


def test_numbers_of_self_generated_samples_come_after_each_other_as_cells_of_one_share_their_samples() -> None:
    cells = Grid.of(["sparsegpt", "wanda"], ["LR", "BR"], ["all"], [0], [8, 0]).cells()
    assert [cell.samples for cell in cells] == ["0"] * 4 + ["0+8"] * 4
    assert cells[4].name == "wanda-LR-self8-seed0"
    seeds = Grid.of(["wanda"], ["LR"], ["all"], [1, 0], [8, 0]).cells()
    assert [cell.samples for cell in seeds] == ["0", "0+8", "1", "1+8"], "seeds outside"
    assert str(Grid.of(["wanda"], ["LR"], ["all"], [0], [0, 8])) == ("1 pruner x 1 rung x 2 self-generated counts")


def test_self_generated_samples_stand_beside_the_texts_of_the_cells_without_them() -> None:
    def sources(*counts: int, **flags: object) -> list[list[str]]:
        cells = Grid.of(["wanda"], ["LR"], ["all"], [0], counts).cells()
        made = cell_recipes(cells, "m", {}, flags, [])
        assert [recipe.self_generate.samples for recipe in made.values()] == sorted(counts)
        return [recipe.calibration for recipe in made.values()]

    assert sources(0, 8) == [["c4"], ["c4"]]
    assert sources(8, 9) == [[], []]
    assert sources(8, calibration=["ptb"]) == [["ptb"]]


def test_a_value_given_twice_or_in_other_letters_is_one() -> None:
    grid = Grid.of(["Wanda", "wanda"], ["br+gp", "Auto"], ["all"], [0, 0])
    assert grid == Grid(("wanda",), ("BR+GP", "auto"), ("all",), (0,))
    assert str(grid) == "1 pruner x 2 rungs"


def test_a_package_whose_pruner_differs_only_in_capitals_does_not_replace_one_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(write_pruner(tmp_path / "brought", "", Wanda="Mine"), monkeypatch)
    assert Grid.of([*PRUNERS, "Wanda"], ["LR"], ["all"], [0]).pruners == (*PRUNERS, "Wanda")
    assert Grid.of(["WANDA"], ["LR"], ["all"], [0]).pruners == ("wanda",)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            (["wander"], ["LR"], ["all"], [0]),
            "--pruners: expected magnitude, wanda or sparsegpt, or a pruner .* did you mean wanda",
        ),
        ((["wanda"], ["GP"], ["all"], [0]), "--rungs GP: expected LR, BR, BR[+]GP, BR[+]GP[+]CR or auto"),
        ((["wanda"], ["LR"], ["ffn"], [0]), "--only ffn: expected all, attention or mlp[.]$"),
        ((["wanda"], ["LR"], ["all"], [0], []), "--self-generate: expected at least one value"),
        (([], ["LR"], ["all"], [0]), "--pruners: expected at least one value"),
        ((["wanda"], ["LR"], ["all"], []), "--seeds: expected at least one value"),
    ],
)
def test_a_value_that_is_not_known_is_refused_with_those_that_are(axes: tuple[list[str], ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid.of(*axes)


def test_a_cells_recipe_is_the_common_one_with_the_cells_own_values() -> None:
    file = {"pruner": {"name": "magnitude", "damping": 0.5}, "schedule": {"size": 3, "stride": 3}, "teacher": "local"}
    cells = [Cell("sparsegpt", "BR+GP+CR", "mlp", 4), Cell("wanda", "LR", "all", 0)]
    first, second = cell_recipes(cells, "m", file, {"samples": 9}, ["solver.lr=0.5"]).values()
    assert (first.pruner.name, first.reconstruct, first.only, first.seed) == ("sparsegpt", "BR+GP+CR", "mlp", 4)
    assert (first.schedule.size, first.schedule.stride, first.teacher) == (2, 1, "global")
    assert (second.pruner.name, second.reconstruct, second.only, second.seed) == ("wanda", "LR", "all", 0)
    assert (second.schedule.size, second.teacher, second.solver.name) == (1, "local", "none")
    for recipe in (first, second):
        assert (recipe.model, recipe.samples, recipe.solver.lr, recipe.pruner.damping) == ("m", 9, 0.5, 0.5)


def test_what_is_common_to_all_cells_leaves_out_only_what_they_differ_in() -> None:
    cells = Grid.of(PRUNERS, RUNGS, PARTS, [0, 1]).cells()
    shared = [common(recipe) for recipe in cell_recipes(cells, "m", {}, {}, []).values()]
    assert all(each == shared[0] for each in shared)
    everything = flat(Recipe(model="m").model_dump(mode="json"))
    assert set(everything) - set(flat(shared[0])) == {
        *("model", "pruner.name", "reconstruct", "schedule.size", "schedule.stride", "teacher", "solver.name"),
        *("only", "seed", "self_generate.samples"),
    }


def test_a_text_is_called_by_its_own_name_also_where_it_is_given_as_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts" / "more").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "texts" / "more")
    recipe = Recipe(model="m", calibration=[".", "..::train=8"], heldout=[str(tmp_path / "texts")])
    shared = common(recipe)
    assert (shared["calibration"], shared["heldout"]) == (["more", "texts::train=8"], ["texts"])


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ("seed=3", "--seeds"),
        ("pruner=wanda", "--pruners"),
        ("pruner.name=wanda", "--pruners"),
        ("reconstruct=LR", "--rungs"),
        ("schedule.size=3", "--rungs"),
        ("schedule={size: 3, stride: 3}", "--rungs"),
        ("teacher=local", "--rungs"),
        ("solver=none", "--rungs"),
        ("solver.name=none", "--rungs"),
        ("only=mlp", "--only"),
        ("self_generate=8", "--self-generate"),
        ("self_generate.samples=8", "--self-generate"),
    ],
)
def test_a_setting_cannot_go_over_an_axis(setting: str, flag: str) -> None:
    with pytest.raises(InputError, match=f"^--set .*: in a study, {flag} decides that"):
        base_recipe("m", {}, {}, [setting])


def test_a_cell_whose_recipe_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match=r"^cell wanda-auto-seed0: .*guard"):
        cell_recipes([Cell("wanda", "auto", "all", 0)], "m", {"guard": False}, {}, [])


def test_settings_go_to_the_pruners_that_packages_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from reprune.math.wanda import Wanda\n\n\ndef mine(power):\n    return Wanda()\n"
    install(write_pruner(tmp_path / "brought", code, mine="mine"), monkeypatch)
    cells = [Cell(pruner, "LR", "all", 0) for pruner in ("wanda", "mine", "sparsegpt")]
    for file, given in (
        ({}, ["pruner={settings: {power: 2}, damping: 0.5}"]),
        ({"pruner": {"damping": 0.5}}, ["pruner.settings.power=2"]),
    ):
        base_recipe("m", file, {}, given)
        made = [recipe.pruner for recipe in cell_recipes(cells, "m", file, {}, given).values()]
        assert [pruner.settings for pruner in made] == [{}, {"power": 2}, {}]
        assert [pruner.damping for pruner in made] == [0.5] * 3
    with pytest.raises(
        InputError, match=r"^cell mine-LR-seed0: pruner mine: brought:mine\(\) of the package brought cannot"
    ):
        cell_recipes(cells, "m", {}, {}, [])
    with pytest.raises(InputError, match=r"^cell wanda-LR-seed0: pruner\.settings are for pruners that other packages"):
        cell_recipes(cells[:1], "m", {}, {}, ["pruner.settings.power=2"])


def test_settings_of_a_recipe_file_go_to_the_pruner_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from reprune.math.wanda import Wanda\n\n\ndef mine(power):\n    return Wanda()\n"
    code += "\n\ndef yours(**given):\n    return Wanda()\n"
    install(write_pruner(tmp_path / "brought", code, mine="mine", yours="yours"), monkeypatch)
    file = {"pruner": {"name": "mine", "settings": {"power": 2}, "damping": 0.5}}
    for pruners, expected in (
        (("wanda",), [{}]),
        (("wanda", "mine", "yours"), [{}, {"power": 2}, {}]),
    ):
        made = cell_recipes([Cell(pruner, "LR", "all", 0) for pruner in pruners], "m", file, {}, []).values()
        assert [recipe.pruner.settings for recipe in made] == expected
        assert {recipe.pruner.damping for recipe in made} == {0.5}
