"""The sparsity of a recipe: a fraction or N:M, written in YAML or given from Python; anything else is refused."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprune.errors import InputError
from reprune.math.patterns import NM, Unstructured
from reprune.planning.layers import resolve_recipe
from tests.planning.recipes import FEW, read


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", NM(2, 4)),
        ("4:8", NM(4, 8)),
        ("10:59", NM(10, 59)),
        ('"2:4"', NM(2, 4)),
        ("0.5", Unstructured(0.5)),
        (".6", Unstructured(0.6)),
        ("'0.5'", Unstructured(0.5)),
        ("50%", Unstructured(0.5)),
        ("0.12345678", Unstructured(0.12345678)),
    ],
)
def test_sparsity_is_read_from_yaml_as_it_is_written(text: str, pattern: Unstructured | NM, tmp_path: Path) -> None:
    assert resolve_recipe("model", read(f"sparsity: {text}\n", tmp_path)).pattern == pattern
    assert resolve_recipe("model", read(f"{{sparsity: {text}, seed: 1}}", tmp_path)).pattern == pattern
    assert resolve_recipe("model", settings=[f"sparsity={text}"]).pattern == pattern


@pytest.mark.parametrize("text", ["1.5", "0", "4:2", "half", "true", "[2, 4]", "null", "2:4:8"])
def test_any_other_sparsity_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^sparsity: "):
        resolve_recipe("model", settings=[f"sparsity={text}"])


@pytest.mark.parametrize("value", [True, [0.5, 0.6], {"q_proj": 0.5}, torch.tensor(0.5)])
def test_what_is_neither_a_number_nor_a_text_is_no_sparsity(value: Any) -> None:
    expected = "sparsity: expected a fraction such as 0.5, or a pattern such as 2:4; got "
    with pytest.raises(InputError) as caught:
        resolve_recipe("model", {"sparsity": value})
    assert str(caught.value) == f"{expected}{value!r}."


def test_a_sparsity_may_be_a_number_of_numpy() -> None:
    shares = dict(zip("qk", np.linspace(0.25, 0.5, 2, dtype=np.float32), strict=True))
    assert resolve_recipe("model", {"sparsity_by_name": shares}).sparsity_by_name == {"q": "0.25", "k": "0.5"}


def test_a_sparsity_may_be_a_member_of_an_enumeration_of_texts() -> None:
    pattern = Enum("Pattern", {"HALF": "2:4"}, type=str)
    given = {"sparsity": pattern["HALF"], "sparsity_by_name": {"q_proj": pattern["HALF"]}}
    found = resolve_recipe("model", given)
    assert (found.sparsity, found.sparsity_by_name) == ("2:4", {"q_proj": "2:4"})


def test_of_several_sparsities_the_one_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match=r"^sparsity_by_name\.0\.\*: expected a number above 0 .*; got 0\.$"):
        resolve_recipe("model", {"sparsity_by_name": {"q_proj": 0.5, "0.*": 0.0}})


@FEW
@given(fraction=st.floats(0.001, 0.999))
def test_a_fraction_given_as_a_number_is_the_one_that_is_pruned(fraction: float) -> None:
    assert resolve_recipe("model", {"sparsity": fraction}).pattern == Unstructured(fraction)
