"""Arguments in all forms that callers have become the contents of one recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reprune
from reprune import InputError
from reprune.doors.evaluation.protocols import Cut, open_text
from reprune.doors.given import nested_flags, recipe_contents, whole_numbers
from reprune.doors.study.grid import Cell
from reprune.engine.watcher import Watcher
from reprune.math.wanda import Wanda
from reprune.planning.layers import resolve_recipe
from reprune.planning.recipe import Recipe


def test_what_is_given_alone_or_in_lists_has_its_place_in_a_recipe() -> None:
    found = nested_flags(
        epochs=3,
        pruner="wanda",
        calibration=Path("a.txt"),
        heldout=["b.txt", Path("c.txt")],
        include="*.mlp.*",
        exclude=[],
        device=torch.device("cuda", 1),
        samples=4,
        seqlen=None,
    )
    assert found == {
        "pruner": {"name": "wanda"},
        "solver": {"epochs": 3},
        "calibration": ["a.txt"],
        "heldout": ["b.txt", "c.txt"],
        "include": ["*.mlp.*"],
        "device": "cuda:1",
        "samples": 4,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pruner": Wanda()}, "pruner: expected the name of a pruner .*, got Wanda"),
        (
            {"calibration": ["a.txt", torch.zeros(8, dtype=torch.long)]},
            "calibration: expected a source.* got list of str",
        ),
        ({"calibration": ({"input_ids": [one]} for one in count())}, "calibration: expected a source.* got generator"),
        ({"heldout": (f"Text {one}." for one in count())}, "heldout: expected a source.* got more than 10,000"),
        ({"heldout": {"text": ["one", "two"]}}, "heldout: expected a source.* got dict"),
        ({"include": 0}, "include: expected a name, or several, got int"),
    ],
)
def test_what_is_in_memory_in_place_of_a_name_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}.*$"):
        nested_flags(**given)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: reprune.prune(model, "out"),
        lambda model: reprune.plan(model),
        lambda model: reprune.study(model, "out"),
        lambda model: reprune.evaluate(model, "manual"),
        lambda model: reprune.errors_against("folder", model, "manual"),
    ],
    ids=["prune", "plan", "study", "evaluate", "errors_against"],
)
def test_of_a_model_in_memory_it_is_said_how_to_give_it(
    call: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reprune.doors.found.locate_model", lambda name, **_: Path(name))
    with pytest.raises(InputError, match=r"^model: expected a folder.* got Linear; .* save_pretrained"):
        call(torch.nn.Linear(2, 2))


def test_settings_given_as_a_dict_are_refused_with_the_way_to_give_one() -> None:
    with pytest.raises(InputError, match=r"^settings: expected .*recipe=.*, got dict"):
        reprune.prune("folder", "out", settings={"solver.loss": "standardized"})


def test_a_text_in_memory_is_no_text_to_evaluate_on() -> None:
    texts: Any = ["It was a bright cold day in April."]
    with pytest.raises(InputError, match=r"^text: expected a source, such as a file .*, got list of str"):
        open_text(texts)


@pytest.mark.parametrize("name", ["seqlen", "max_windows"])
@pytest.mark.parametrize("given", ["64", 64.0, True, [64]])
def test_a_length_that_is_no_whole_number_is_refused(name: str, given: Any) -> None:
    flag = {"seqlen": "--seqlen", "max_windows": "--windows"}[name]
    with pytest.raises(InputError, match=rf"^{flag}: expected a whole number, got "):
        reprune.evaluate("folder", "manual", **{name: given})


def test_a_length_may_be_of_numpy() -> None:
    assert Cut.of(None, np.int64(64), np.int32(2)) == Cut(None, 64, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, 3, ["out"]])
def test_an_output_that_is_no_path_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"^out: expected a path, got "):
        reprune.prune("folder", given)
    with pytest.raises(InputError, match=r"^out: expected a path, got "):
        reprune.resume(given)


@pytest.mark.parametrize("given", [3, print, Watcher, object()])
def test_what_cannot_receive_the_events_is_refused(given: Any) -> None:
    for call in (reprune.prune, reprune.plan):
        with pytest.raises(InputError, match=r"^watcher: expected an object of a subclass of Watcher, got "):
            call("folder", "out", watcher=given)


@pytest.mark.parametrize("given", [[0, 2], range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2]), iter((0, 2))])
def test_whole_numbers_are_given_in_whatever_holds_them(given: Any) -> None:
    found = whole_numbers("seeds", given)
    assert found == [0, 2]
    assert {type(one) for one in found} == {int}


@pytest.mark.parametrize("given", [0, 3, [0, 1.5], [True], ["0"], np.linspace(0, 1, 2), range(1_000_000)])
def test_of_what_holds_no_whole_numbers_it_is_said_what_is_expected(given: Any) -> None:
    with pytest.raises(InputError, match=r"^seeds: expected a list of whole numbers, such as \[0, 1\], got "):
        whole_numbers("seeds", given)


def test_the_axes_of_a_study_are_whole_numbers(tmp_path: Path) -> None:
    for axis in ("seeds", "self_generate"):
        given: dict[str, Any] = {axis: 0}
        with pytest.raises(InputError, match=f"^{axis}: expected a list of whole numbers"):
            reprune.study(tmp_path, tmp_path / "out", **given)


def test_a_recipe_of_another_form_is_refused() -> None:
    given: Any = [("sparsity", 0.5)]
    with pytest.raises(InputError, match=r"^recipe: expected a file, its contents as a dict, .*, got list of tuple\.$"):
        recipe_contents(given)


_FLAGS: dict[str, Any] = {
    "sparsity": "2:4",
    "calibration": "text.txt",
    "heldout": "manual",
    "samples": 5,
    "seqlen": 24,
    "epochs": 7,
    "lr": "3%",
    "batch_size": 4,
    "include": ["mlp.*"],
    "exclude": ["up_proj"],
    "device": "cpu",
    "trust_remote_code": True,
}
"""Of all that make recipes, each with a value that is not the default."""
_AXES = {"pruner": "wanda", "reconstruct": "BR", "seed": 3, "self_generate": 9, "only": "mlp"}


def test_each_argument_of_prune_and_of_study_gets_into_the_recipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recipe] = []
    monkeypatch.setattr("reprune.doors.api.prune_by_recipe", lambda recipe, *_, **__: made.append(recipe))
    reprune.prune("llama", "out", **_FLAGS, **_AXES)
    own = {"model", "out", "recipe", "settings", "watcher", "ranks"}
    assert {*_FLAGS, *_AXES} == signature(reprune.prune).parameters.keys() - own, "all of them"
    assert made[0] == resolve_recipe("llama", {}, nested_flags(**_FLAGS, **_AXES))

    def begin(model: str, recipes: Mapping[Cell, Recipe], *_: Any) -> None:
        made.extend(recipes.values())
        raise InputError("enough")

    monkeypatch.setattr("reprune.doors.study.run.begin", begin)
    axes = {"pruners": "wanda", "rungs": "BR", "seeds": [3], "self_generate": [9], "only": "mlp"}
    with pytest.raises(InputError, match="enough"):
        reprune.study("llama", "out", **_FLAGS, **axes)
    assert made[-1] == made[0]
