"""A recipe is one valid combination of all that can be chosen, and builds what it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from reprune.errors import InputError
from reprune.math.patterns import Unstructured
from reprune.math.widening import Widening
from reprune.planning.descents import DistillRecipe, SolverRecipe
from reprune.planning.layers import resolve_recipe
from tests.planning.recipes import read, rung


def test_without_a_word_the_recipe_is_the_papers() -> None:
    recipe = resolve_recipe("model")
    assert rung(recipe) == ("BR+GP", 1, 1, "global", "adam")
    assert (recipe.pruner.name, recipe.pruner.damping, recipe.pruner.block_size) == ("sparsegpt", 0.01, 128)
    solver = recipe.settled(8).solver
    assert solver.loss == "squared"
    assert (solver.lr, solver.epochs, solver.batch_size, solver.betas) == (2e-4, 10, 8, (0.9, 0.95))
    assert (recipe.samples, recipe.calibration, recipe.pattern) == (256, ["c4"], Unstructured(0.5))


@pytest.mark.parametrize(
    "expected",
    [
        ("LR", 1, 1, "local", "none"),
        ("BR", 1, 1, "local", "adam"),
        ("BR+GP", 1, 1, "global", "adam"),
        ("BR+GP+CR", 2, 1, "global", "adam"),
        ("auto", 2, 1, "global", "widening"),
    ],
)
def test_a_rung_of_the_ladder_is_a_point_on_three_axes(expected: tuple[Any, ...]) -> None:
    assert rung(resolve_recipe("model", flags={"reconstruct": expected[0]})) == expected
    assert rung(resolve_recipe("model", {"reconstruct": expected[0]})) == expected
    assert rung(resolve_recipe("model", settings=[f"reconstruct={expected[0]}"])) == expected


def test_the_first_key_of_a_part_given_alone_may_be_a_number_of_numpy() -> None:
    found = resolve_recipe("model", {"self_generate": np.int64(8), "distill": np.int32(1)})
    assert (found.self_generate.samples, found.distill.blocks) == (8, 1)


def test_of_many_values_that_are_wrong_the_first_are_told() -> None:
    rows = [{"text": f"{number}"} for number in range(1000)]
    with pytest.raises(InputError, match=r"^calibration\.0: input should be a valid string .*") as refused:
        resolve_recipe("model", {"calibration": rows})
    lines = str(refused.value).splitlines()
    assert lines[-1] == "And 990 more."
    assert len(lines) == 11


@pytest.mark.parametrize("one", ["a text", {"text": "a row"}])
def test_sources_without_end_are_not_read_on_and_on(one: Any) -> None:
    read = 0

    def endless() -> Iterator[Any]:
        nonlocal read
        while read < 20_000:
            read += 1
            yield one

    with pytest.raises(InputError, match=r"^calibration: expected a name, or several, got more than 10,000\.$"):
        resolve_recipe("model", {"calibration": endless()})
    assert read < 20_000


@pytest.mark.parametrize("text", ["off", "no", "false", "False"])
def test_the_guard_can_be_set_off(text: str, tmp_path: Path) -> None:
    assert not resolve_recipe("model", settings=[f"guard={text}"]).guard
    assert not resolve_recipe("model", read(f"guard: {text}", tmp_path)).guard
    assert resolve_recipe("model").guard


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("2GB", 2 * 10**9), ("2GiB", 2**31), ("500 MB", 500 * 10**6), ("1000", 1000), ("0", 0), ("1.5kb", 1500)),
        *(("8e9", 8 * 10**9), ("8.0e+9", 8 * 10**9), ("2G", 2 * 10**9)),
    ],
)
def test_memory_is_given_in_bytes_or_with_a_unit(text: str, expected: int, tmp_path: Path) -> None:
    assert resolve_recipe("model", settings=[f"streams.memory={text}"]).streams.memory == expected
    assert resolve_recipe("model", read(f"streams: {{memory: {text}}}", tmp_path)).streams.memory == expected


@pytest.mark.parametrize(("text", "expected"), [("1e-4", 1e-4), ("2.5e-4", 2.5e-4), ("1", 1.0)])
def test_a_learning_rate_may_be_written_with_an_exponent(text: str, expected: float, tmp_path: Path) -> None:
    assert resolve_recipe("model", settings=[f"solver.lr={text}"]).solver.lr == expected
    assert resolve_recipe("model", read(f"solver:\n  lr: {text}\n", tmp_path)).solver.lr == expected


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("12", 12), ("+3", 3), ("010", 10), ("09", 9)])
def test_a_whole_number_is_decimal_however_it_is_written(text: str, expected: int, tmp_path: Path) -> None:
    assert resolve_recipe("model", settings=[f"seed={text}"]).seed == expected
    assert resolve_recipe("model", read(f"seed: {text}", tmp_path)).seed == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("exclude=down_proj", ["down_proj"]),
        ('exclude=["mlp.*", "o_proj"]', ["mlp.*", "o_proj"]),
        ("exclude=[]", []),
    ],
)
def test_one_name_stands_for_a_list_of_one(setting: str, expected: list[str]) -> None:
    recipe = resolve_recipe("model", settings=[setting])
    assert recipe.exclude == expected
    assert recipe.choice.exclude == tuple(expected)


def test_a_pruner_or_solver_may_be_named_alone() -> None:
    recipe = resolve_recipe("model", {"pruner": "wanda"}, settings=["solver=none"])
    assert (recipe.pruner.name, recipe.solver.name) == ("wanda", "none")
    both = resolve_recipe("model", {"pruner": {"name": "wanda", "block_size": 64}}, {"pruner": "sparsegpt"})
    assert (both.pruner.name, both.pruner.block_size) == ("sparsegpt", 64)


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("samples=many", "samples"),
        ("samples=0", "samples"),
        ("samples=1.5", "samples"),
        ("samples=9223372036854775808", "samples"),
        ("solver.batch_size=9223372036854775808", "solver.batch_size"),
        ("self_generate.batch_size=2147483648", "self_generate.batch_size"),
        ("self_generate.samples=9223372036854775808", "self_generate.samples"),
        ("solver.epochs=9223372036854775808", "solver.epochs"),
        ("distill.epochs=9223372036854775808", "distill.epochs"),
        ("samples=yes", "samples"),
        ("seqlen=true", "seqlen"),
        ("sparsity=yes", "sparsity"),
        ("solver.rank=yes", "solver"),
        ("distill=yes", "distill"),
        ("seqlen=1", "seqlen"),
        ("seqlen=2147483648", "seqlen"),
        ("seed=-1", "seed"),
        ("seed=9223372036854775808", "seed"),
        ("solver.lr=0", "solver.lr"),
        ("solver.lr=.inf", "solver.lr"),
        ("solver.lr=.nan", "solver.lr"),
        ("solver.lr=fast", "solver.lr"),
        ("solver.epochs=0", "solver.epochs"),
        ("solver.betas=[0.9, 1.0]", "solver.betas"),
        ("solver.betas=[0.9]", "solver.betas"),
        ("solver.name=sgd", "solver.name"),
        ("solver=3", "solver"),
        ("solver=", "solver"),
        ("solver.lr.x=3", "solver.lr"),
        ("pruner=oracle", "pruner.name"),
        ("pruner.damping=0", "pruner.damping"),
        ("pruner.block_size=0", "pruner.block_size"),
        ("pruner.ridge=0", "pruner.ridge"),
        ("pruner.update=none", "pruner.update"),
        ("schedule=2", "schedule"),
        ("schedule.size=0", "schedule.size"),
        ("schedule.stride=2", "schedule"),
        ("teacher=none", "teacher"),
        ("reconstruct=GP", "reconstruct"),
        ("reconstruct=[LR]", "reconstruct"),
        ("guard=perhaps", "guard"),
        ("calibration=[]", "calibration"),
        ("calibration=3", "calibration"),
        ("calibration=[3]", "calibration.0"),
        ("exclude=3", "exclude"),
        ("device=tpu", "device"),
        ("device=cuda:x", "device"),
        ("device=cuda:00", "device"),
        ("precision=float8", "precision"),
        ("streams.memory=much", "streams.memory"),
        ("streams.memory=-1", "streams.memory"),
        ("streams.memory=50%", "streams.memory"),
        ("streams.memory=on", "streams.memory"),
        ("streams.memory=2:4", "streams.memory"),
        ("streams.memory=1e-4", "streams.memory"),
        ("streams.memory=0.5", "streams.memory"),
        ("streams.memory=.inf", "streams.memory"),
        ("streams.memory=2 apples", "streams.memory"),
        ("streams.memory=[8GB]", "streams.memory"),
        (f"streams.memory={'9' * 400}", "streams.memory"),
        ("self_generate.language=xx", "self_generate.language"),
        ("self_generate.filters=[repetition, languge]", "self_generate.filters"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_place(setting: str, place: str) -> None:
    with pytest.raises(InputError, match=rf"^{place}(\.\d)?: [a-z]"):
        resolve_recipe("model", settings=[setting])


@pytest.mark.parametrize(
    "setting",
    [
        *("samples=1", f"samples={2**63 - 1}", "seqlen=2", "seed=0", f"seed={2**63 - 1}"),
        *("pruner.block_size=1", "pruner.min_tokens=0", "schedule.size=1", "schedule.stride=1", "distill.blocks=0"),
        *("solver.epochs=1", "solver.batch_size=1", "solver.micro_batch_size=1", "solver.micro_batch_size=8"),
        *("solver.rank=1", "solver.patience=1", "solver.betas=[0, 0]", "solver.teacher_forcing=0"),
        *("solver.teacher_forcing=1", "distill.epochs=1", "allocation.spread=0.499", "allocation.outlier=1.001"),
        *("self_generate.samples=0", "self_generate.length=6", "self_generate.top_p=0.999", "self_generate.top_k=1"),
        *("self_generate.batch_size=1", f"self_generate.batch_size={2**31 - 1}"),
    ],
)
def test_the_least_and_the_most_that_a_setting_may_be_are_taken(setting: str) -> None:
    key, value = setting.split("=")
    made: Any = resolve_recipe("model", settings=[setting])
    for part in key.split("."):
        made = getattr(made, part)
    expected = yaml.safe_load(value)
    assert made == (tuple(expected) if isinstance(expected, list) else expected)


def test_norwegian_is_a_language() -> None:
    """YAML reads an unquoted no as false."""
    recipe = resolve_recipe("model", settings=["self_generate.language=no"])
    assert recipe.self_generate.language == "no"
    assert "language: 'no'\n" in recipe.to_yaml()


def test_a_language_is_taken_as_it_is_where_none_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as when another machine's record is read
    assert resolve_recipe("model", settings=["self_generate.language=xx"]).self_generate.language == "xx"


_PAPERS = ("squared", 2e-4, (0.9, 0.95))
_OWN = ("standardized", "1%", (0.5, 0.95))


@pytest.mark.parametrize(
    ("rung", "said", "expected"),
    [
        ("BR+GP", {}, _PAPERS),
        ("BR+GP", {"loss": "standardized"}, _OWN),
        ("BR+GP", {"loss": "standardized", "lr": 0.1}, ("standardized", 0.1, (0.5, 0.95))),
        ("BR+GP", {"loss": "standardized", "betas": [0, 0.9]}, ("standardized", "1%", (0, 0.9))),
        ("LR", {"loss": "standardized"}, ("standardized", 2e-4, (0.9, 0.95))),  # LR uses none of them
        ("auto", {}, _OWN),
        ("auto", {"loss": "squared"}, _PAPERS),
        ("auto", {"loss": "squared", "betas": [0, 0.9]}, ("squared", 2e-4, (0, 0.9))),
        ("auto", {"lr": 0.1}, ("standardized", 0.1, (0.5, 0.95))),
        ("auto", {"name": "adam"}, _PAPERS),
    ],
)
def test_the_loss_is_the_papers_but_for_auto_and_rate_and_betas_go_with_it(
    rung: str, said: dict[str, Any], expected: tuple[str, float | str, tuple[float, float]]
) -> None:
    recipe = resolve_recipe("model", {"reconstruct": rung, "solver": said})
    settled = recipe.settled(8).solver
    assert (settled.loss, settled.lr, settled.betas) == expected
    standardizes = expected[0] == "standardized" and settled.name != "none"
    assert recipe.solver.standardizes == settled.standardizes == standardizes
    assert settled.settled(10**6) == settled
    left = recipe.solver.model_copy(update={"betas": settled.betas})
    assert settled.name == "none" or settled.build(guard=True) == left.build(guard=True)
    assert (recipe.solver.loss, recipe.solver.lr) == (said.get("loss"), said.get("lr")), "left to the rung till a run"
    assert (recipe.solver.betas is None) == ("betas" not in said)


@pytest.mark.parametrize(
    ("samples", "epochs", "batch_size", "first_beta"),
    [(32, 3, 8, 0.5), (128, 1, 1, 0.5), (129, 1, 1, 0.9), (255, 4, 8, 0.5), (257, 4, 8, 0.9), (256, 10, 8, 0.9)],
)
def test_with_more_steps_than_were_measured_to_gain_the_betas_are_the_papers(
    samples: int, epochs: int, batch_size: int, first_beta: float
) -> None:
    settled = SolverRecipe(loss="standardized", epochs=epochs, batch_size=batch_size).settled(samples)
    assert settled.betas == (first_beta, 0.95)
    assert DistillRecipe(blocks=1).build(settled, guard=True).betas == (first_beta, 0.95), "distillation has them too"


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 10, 100])
def test_auto_takes_no_more_epochs_than_a_fixed_rung(epochs: int) -> None:
    """An epoch on one block of two costs half of one on both."""
    solver = resolve_recipe("model", {"reconstruct": "auto"}, {"solver": {"epochs": epochs}}).solver.build(guard=True)
    assert isinstance(solver, Widening)
    assert solver.last_part.epochs / 2 + solver.whole.epochs <= max(0.85 * epochs, 1.5)
    assert solver.last_part.epochs >= 1
    assert solver.whole.epochs >= 1


def test_auto_without_the_guard_is_refused() -> None:
    with pytest.raises(InputError, match="leave the guard on, or choose another rung"):
        resolve_recipe("model", {"reconstruct": "auto", "guard": False})


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve_recipe("model").samples = 3


def test_a_recipe_has_samples_from_sources_or_from_the_model_itself() -> None:
    assert resolve_recipe("model").calibration == ["c4"]
    own = resolve_recipe("model", {}, {"self_generate": 8})
    assert (own.calibration, own.self_generate.samples) == ([], 8)
    assert resolve_recipe("model", yaml.safe_load(own.to_yaml())) == own
    both = resolve_recipe("model", {"calibration": ["c4"], "self_generate": 8}, {}, ["self_generate.top_k=5"])
    assert (both.calibration, both.self_generate.samples, both.self_generate.top_k) == (["c4"], 8, 5)
    with pytest.raises(InputError, match="calibration: expected at least one source, or self_generate: N"):
        resolve_recipe("model", {"calibration": []})
    with pytest.raises(InputError, match="self_generate"):
        resolve_recipe("model", {"self_generate": -1})


@pytest.mark.parametrize(
    ("asked", "tokens", "most", "length", "least"),
    [
        ({}, 31, None, 62, 31),  # twice a sample
        ({}, 31, 127, 62, 31),
        ({}, 31, 50, 50, 31),  # at most what the model takes
        ({"length": 40}, 31, 127, 40, 31),
        ({"length": 20}, 31, 127, 31, 31),  # at least a sample
        ({}, 3, None, 6, 6),  # more than a prefix
        ({}, 2, None, 6, 6),
    ],
)
def test_generated_texts_are_as_long_as_samples_at_least(
    asked: dict[str, Any], tokens: int, most: int | None, length: int, least: int
) -> None:
    rest = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "language": "any", "filters": ["code"], "batch_size": 3}
    recipe = resolve_recipe("model", {"self_generate": {"samples": 2, **asked, **rest}})
    made = recipe.self_generate.build(tokens, most, 9).model_dump(mode="json")
    assert made == {**rest, "length": length, "least": least, "seed": 9}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["solver.routing=teacher"], "solver.routing teacher needs the dense model's own states"),
        (["solver.teacher_forcing=0.5"], "solver.teacher_forcing needs the dense model's own states"),
        (
            ["allocation=owl", "sparsity=2:4"],
            "allocation owl shares out a fraction such as 0.6 over the blocks, but 2:4 is",
        ),
        (
            ["allocation=by-error", "sparsity=4:8"],
            "allocation by-error shares out a fraction such as 0.6 over the blocks",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        resolve_recipe("model", {"reconstruct": "BR"}, settings=settings)
    resolve_recipe("model", {"reconstruct": "BR+GP"}, settings=[settings[0]])


def test_only_a_recipe_with_blocks_to_distill_has_a_descent_for_them() -> None:
    assert resolve_recipe("model").build_distillation() is None
    assert resolve_recipe("model", settings=["distill=1"]).build_distillation() is not None
