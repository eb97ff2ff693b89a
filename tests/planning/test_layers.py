"""A recipe is made of defaults, file, flags and --set, each overriding those before; errors are named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reprune.errors import InputError
from reprune.math.patterns import Unstructured
from reprune.planning.layers import parse_setting, read_recipe, resolve_recipe
from reprune.planning.recipe import Recipe
from tests.planning.recipes import FEW, read, rung


def test_a_setting_is_over_a_flag_over_the_file_over_the_default() -> None:
    file = {"samples": 10, "seed": 1, "solver": {"lr": 0.1, "epochs": 3, "batch_size": 2}}
    flags = {"seed": 2, "solver": {"epochs": 4, "batch_size": 4}}
    recipe = resolve_recipe("model", file, flags, ["seed=3", "solver.batch_size=16"])
    assert (recipe.samples, recipe.seed) == (10, 3)
    assert (recipe.solver.lr, recipe.solver.epochs, recipe.solver.batch_size) == (0.1, 4, 16)
    assert recipe.settled(8).solver.betas == (0.9, 0.95)
    assert resolve_recipe("model", file, flags).seed == 2
    assert resolve_recipe("model", file).seed == 1


def test_of_two_settings_of_one_key_the_later_holds() -> None:
    assert resolve_recipe("model", settings=["seed=1", "seed=2"]).seed == 2


def test_a_list_is_replaced_and_not_added_to() -> None:
    recipe = resolve_recipe("model", {"calibration": ["c4", "ptb"]}, {"calibration": ["wikitext2"]})
    assert recipe.calibration == ["wikitext2"]


def test_patterns_of_a_later_layer_decide_before_those_of_an_earlier_one() -> None:
    file = {"sparsity_by_name": {"mlp.*": 0.5, "q_proj": 0.4}}
    recipe = resolve_recipe("model", file, settings=['sparsity_by_name={"mlp.down_proj": 0.3, "q_proj": 0.2}'])
    sparsities = recipe.sparsities
    names = ("mlp.down_proj", "mlp.up_proj", "self_attn.q_proj")
    assert [sparsities.of(0, name) for name in names] == [Unstructured(0.3), Unstructured(0.5), Unstructured(0.2)]
    assert resolve_recipe("model", file, settings=["sparsity_by_name={}"]).sparsity_by_name == {}
    anew = resolve_recipe("model", file, settings=["sparsity_by_name={}", "sparsity_by_name={o_proj: 0.1}"])
    assert anew.sparsity_by_name == {"o_proj": "0.1"}


def test_of_a_runs_record_its_recipe_is_read(tmp_path: Path) -> None:
    """However long the record is: a mixture has more matrices than the parts that a YAML text may have."""
    recipe = {"model": "theirs", "seed": 3, "solver": {"lr": 1e-05}}
    (file := tmp_path / "reprune.json").write_text(
        json.dumps({"recipe": recipe, "model": {"name": "theirs"}, "blocks": 101_000 * [0]})
    )
    assert read_recipe(file) == recipe
    file.write_text(json.dumps({"recipe": recipe, "seed": 4}))
    with pytest.raises(InputError, match=r"recipe: unknown key"):
        resolve_recipe("model", read_recipe(file))


def test_the_layers_are_left_as_they_are() -> None:
    file: dict[str, Any] = {"reconstruct": "BR+GP+CR", "solver": {"lr": 0.1}, "pruner": "wanda"}
    flags: dict[str, Any] = {"solver": {"epochs": 2}}
    resolve_recipe("model", file, flags, ["solver.lr=0.2", "schedule.size=3"])
    assert file == {"reconstruct": "BR+GP+CR", "solver": {"lr": 0.1}, "pruner": "wanda"}
    assert flags == {"solver": {"epochs": 2}}
    assert rung(resolve_recipe("model", file)) == ("BR+GP+CR", 2, 1, "global", "adam")


def test_a_recipe_may_spell_out_what_its_rung_leaves_open() -> None:
    file = {"reconstruct": "BR", "schedule": {"size": 3}, "teacher": "global", "solver": "none"}
    assert rung(resolve_recipe("model", file)) == ("BR", 3, 1, "global", "none")


def test_a_rung_in_a_flag_replaces_what_the_file_spells_out() -> None:
    file = {
        "reconstruct": "LR",
        "schedule": {"size": 4, "stride": 4},
        "teacher": "local",
        "solver": {"name": "none", "epochs": 3},
    }
    recipe = resolve_recipe("model", file, {"reconstruct": "BR+GP+CR"})
    assert rung(recipe) == ("BR+GP+CR", 2, 1, "global", "adam")
    assert recipe.solver.epochs == 3  # no rung sets epochs
    short = resolve_recipe("model", {"solver": "none"}, {"reconstruct": "BR"})
    assert rung(short) == ("BR", 1, 1, "local", "adam")


def test_a_rung_in_a_setting_replaces_what_the_file_spells_out() -> None:
    file = {"schedule": {"size": 4, "stride": 4}, "teacher": "local", "solver": "none"}
    assert rung(resolve_recipe("model", file, settings=["reconstruct=BR+GP"])) == (
        "BR+GP",
        1,
        1,
        "global",
        "adam",
    )


def test_what_a_setting_says_is_over_the_rung_of_a_flag() -> None:
    settings_ = ["schedule.size=3", "teacher=local", "solver.name=none"]
    recipe = resolve_recipe("model", {"teacher": "global"}, {"reconstruct": "BR+GP+CR"}, settings_)
    assert rung(recipe) == ("BR+GP+CR", 3, 1, "local", "none")


def test_the_model_given_is_over_the_files() -> None:
    assert resolve_recipe("given", {"model": "file"}).model == "given"
    with pytest.raises(InputError, match=r"^model: "):
        resolve_recipe("")
    with pytest.raises(InputError, match=r"^--set model=other: the model is given by MODEL; leave this out"):
        resolve_recipe("given", settings=["model=other"])


def test_sources_in_a_recipe_file_are_those_beside_it(tmp_path: Path) -> None:
    for name in ("a.txt", "b=3.txt"):
        (tmp_path / name).touch()
    (tmp_path / "year=2024").mkdir()
    (tmp_path / "c4").mkdir()  # `c4` still means the known text
    here = {name: str(tmp_path / name) for name in ("a.txt", "a.txt=8", "b=3.txt=2", "year=2024", "year=2024=5")}
    file = tmp_path / "recipe.yaml"
    file.write_text(f"calibration: [{', '.join(here)}, c4=3, c.txt, org/name]\nheldout: [a.txt=2]\nexclude: [a.txt]\n")
    assert read_recipe(file) == {
        "calibration": [*here.values(), "c4=3", "c.txt", "org/name"],
        "heldout": [str(tmp_path / "a.txt=2")],
        "exclude": ["a.txt"],
    }
    file.write_text("calibration: a.txt\nheldout: a.txt\n")
    assert read_recipe(file) == {"calibration": [here["a.txt"]], "heldout": [here["a.txt"]]}


def test_a_path_stands_for_its_name() -> None:
    recipe = resolve_recipe("model", flags={"calibration": [Path("a.txt"), "c4"], "heldout": Path("b.txt")})
    assert (recipe.calibration, recipe.heldout) == (["a.txt", "c4"], ["b.txt"])


@pytest.mark.parametrize(
    ("setting", "place", "meant"),
    [
        ("sparcity=0.5", "sparcity", "sparsity"),
        ("seqlength=8", "seqlength", "seqlen"),
        ("pruner.blocksize=8", "pruner.blocksize", "block_size"),
        ("solver.learning_rate=1", "solver.learning_rate", None),
        ("solver.batchsize=8", "solver.batchsize", "batch_size"),
        ("schedule.strides=1", "schedule.strides", "stride"),
        ("streams.mem=1", "streams.mem", "memory"),
        ("lr=1e-3", "lr", "solver.lr or distill.lr"),  # named like a flag
        ("epochs=3", "epochs", "solver.epochs or distill.epochs"),
        ("size=3", "size", "schedule.size"),
        ("zzz=1", "zzz", None),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(setting: str, place: str, meant: str | None) -> None:
    asked = r"\." if meant is None else rf"; did you mean {meant}\?"
    with pytest.raises(InputError, match=rf"^{place}: unknown key{asked} Known here: "):
        resolve_recipe("model", settings=[setting])


@pytest.mark.parametrize(
    ("setting", "place", "meant"),
    [
        ("sparsity_by_name={down_proj:0.3}", "sparsity_by_name", "{down_proj: 0.3}"),
        ("sparsity_by_name={q_proj: 0.5, mlp.*:2:4}", "sparsity_by_name", "{mlp.*: 2:4}"),
        ("pruner={name:wanda}", "pruner", "{name: wanda}"),
    ],
)
def test_a_value_without_a_space_before_it_is_told_from_its_key(setting: str, place: str, meant: str) -> None:
    said = f"{place}: expected a space after the colon, which YAML needs between a key and its value: {meant} (got "
    with pytest.raises(InputError, match=rf"^{re.escape(said)}"):
        resolve_recipe("model", settings=[setting])


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as raised:
        resolve_recipe("model", {"samples": 0, "sparcity": 1}, settings=["solver.lr=-1"])
    assert {line.split(":")[0] for line in str(raised.value).splitlines()} == {
        "samples",
        "sparcity",
        "solver.lr",
    }


@pytest.mark.parametrize("text", ["samples", "=3", ".=3", "a..b=3", "solver.=3", ""])
def test_a_setting_without_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected key\.path=value"):
        parse_setting(text)


_NO_VALUES = ("2026-13-45", "!!bool x", "!!int x", "!!int ''", "!!float ''", "!!timestamp x", "9" * 5000)
"""Values whose form or tag makes YAML choose a type that they are not valid for."""


@pytest.mark.parametrize(
    "text",
    [
        *("exclude=[", "seed={", "model='x", "seed=!!python/name:os.system", "seed=a: b: c"),
        *(f"seed={value}" for value in _NO_VALUES),
    ],
)
def test_a_setting_whose_value_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not valid YAML"):
        parse_setting(text)


def test_a_setting_may_hold_an_equals_sign() -> None:
    assert parse_setting("calibration=texts.jsonl=20") == {"calibration": "texts.jsonl=20"}


def test_an_empty_recipe_file_says_nothing(tmp_path: Path) -> None:
    assert read("# nothing yet\n", tmp_path) == {}


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "3: 4\n", "true: 1"])
def test_a_recipe_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml: expected keys and values"):
        read(text, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "a: b: c", "\tsamples: 1", "seed: !!python/object:os.system {}", "[samples]: 1"),
        *(f"seed: {value}" for value in _NO_VALUES),
    ],
)
def test_a_recipe_file_that_is_no_yaml_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml: not valid YAML") as raised:
        read(text, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_part_of_a_recipe_file_may_be_empty(tmp_path: Path) -> None:
    file = read("pruner: wanda\nsolver:\n  # epochs: 3\nschedule:\nsamples: 8\n", tmp_path)
    assert resolve_recipe("model", file) == resolve_recipe("model", {"pruner": "wanda", "samples": 8})
    assert resolve_recipe("model", file, {"solver": {"epochs": 2}}).solver.epochs == 2
    for text in ("samples:\n", "calibration:\n", "solver:\n  epochs:\n"):
        with pytest.raises(InputError, match="input should be a valid"):
            resolve_recipe("model", read(text, tmp_path))


@pytest.mark.parametrize("text", ["samples: 8\nsamples: 16\n", "solver:\n  lr: 1\n  lr: 2\n", "solver: {lr: 1, lr: 1}"])
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected each key once, but '\w+' appears twice in line [123]"):
        read(text, tmp_path)
    with pytest.raises(InputError, match="not valid YAML"):
        parse_setting("solver={lr: 1, lr: 2}")


def test_a_key_may_be_over_one_that_is_merged_in(tmp_path: Path) -> None:
    text = "solver: &a {lr: 1, epochs: 2}\nx:\n  y: &b\n    <<: *a\n    lr: 2\ndistill:\n  <<: *b\n"
    assert read(text, tmp_path)["distill"] == {"lr": 2, "epochs": 2}


@pytest.mark.parametrize("key", ["calibration", "sparsity", "include", "x"])
@pytest.mark.parametrize(
    "value", ["&a [*a]", "&a {x: *a}", "[&a {x: [*a]}]", "&a !!pairs [x: *a]", "&a !!omap [x: *a]"]
)
def test_an_alias_to_what_it_stands_in_is_refused(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml: not valid YAML: with its aliases expanded it has more"):
        read(f"{key}: {value}\n", tmp_path)
    with pytest.raises(InputError, match="the value is not valid YAML"):
        parse_setting(f"{key}={value}")


def test_merges_of_merges_are_refused_too_as_earlier_pyyaml_writes_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flatten(self: yaml.SafeLoader, node: yaml.MappingNode) -> None:  # as PyYAML 6.0.2 does for lists of merges
        merged = [one for key, value in node.value if key.value == "<<" for one in value.value]
        for one in merged:
            self.flatten_mapping(one)
        own = [(key, value) for key, value in node.value if key.value != "<<"]
        node.value = [pair for one in merged for pair in one.value] + own

    monkeypatch.setattr(yaml.SafeLoader, "flatten_mapping", flatten)
    lines = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 7)]
    with pytest.raises(InputError, match="with its aliases expanded it has more than 100000 parts"):
        read("\n".join(["a0: &a0 {x: 1}", *lines]), tmp_path)


def test_aliases_of_aliases_that_come_to_more_than_memory_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))]
    with pytest.raises(InputError, match="with its aliases expanded it has more than 100000 parts"):
        read("\n".join(lines), tmp_path)
    assert read("\n".join(lines[:4]), tmp_path)["a3"][9][9][9] == ["x", "x"]


def test_a_recipe_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"model: \xff\xfe\n")
    for name in ("missing.yaml", "bytes.yaml", "."):
        with pytest.raises(InputError, match="cannot be read"):
            read_recipe(tmp_path / name)


_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)


_NAMES = st.sampled_from(
    ["2:4", "09", "010", "1_0", "yes", "null", "~", "1e3", "0x1f", "2024-01-01", "#a", "a: b", "="]
)


def test_what_is_wrong_between_keys_is_said_without_all_of_them() -> None:
    with pytest.raises(InputError) as caught:
        resolve_recipe("m", {"solver": {"batch_size": 8, "micro_batch_size": 9}})
    assert str(caught.value) == "solver: micro_batch_size 9 is more than batch_size 8."
    with pytest.raises(InputError, match=r"\(got \{'a': 1\}\)"):  # for a single value, it is shown
        resolve_recipe("m", {"samples": {"a": 1}})


@st.composite
def _recipes(draw: st.DrawFn) -> Recipe:
    size = draw(st.integers(1, 5))
    file = {
        "pruner": draw(st.sampled_from(["magnitude", "wanda", "sparsegpt"])),
        "sparsity": draw(st.sampled_from(["2:4", "4:8", "50%"]) | st.floats(0.001, 0.999)),
        "reconstruct": draw(st.sampled_from(["LR", "BR", "BR+GP", "BR+GP+CR"])),
        "schedule": {"size": size, "stride": draw(st.integers(1, size))},
        "solver": {"lr": draw(st.floats(1e-12, 1e3)), "betas": [0.5, draw(st.floats(0, 0.999))]},
        "calibration": draw(st.lists(_WORDS | _NAMES, min_size=1, max_size=3)),
        "exclude": draw(st.lists(_NAMES, max_size=2)),
        "seqlen": draw(st.none() | st.integers(2, 4096)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "guard": draw(st.booleans()),
        "streams": {"memory": draw(st.integers(0, 2**40))},
    }
    return resolve_recipe(draw(_WORDS | _NAMES), file)


@settings(FEW, max_examples=100)
@given(recipe=_recipes())
def test_a_recipe_written_as_yaml_reads_back_equal(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    # A source that exists beside the file is read as a path, and comes back absolute.
    assume(not any((folder / source).exists() for source in recipe.calibration))
    content = read(recipe.to_yaml(), folder)
    assert resolve_recipe(content["model"], content) == recipe
