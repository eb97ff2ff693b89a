"""Any JSON is read or refused with a ValueError."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprune.files.wellformed import read_json


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.tuples(one)))
def test_what_is_well_formed_is_read(value: object) -> None:
    text = json.dumps(value)
    assert json.dumps(read_json(text)) == text


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000, b"\xff", "nul"])
def test_all_else_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        read_json(text)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_is_read_to_a_hundred_levels(opening: str, closing: str) -> None:
    for depth in (1, 100):
        read_json(opening * depth + "1" + closing * depth)
    for depth in (101, 500, 990):
        with pytest.raises(ValueError, match="nested too deep"):
            read_json(opening * depth + "1" + closing * depth)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_nesting_beyond_reason_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        read_json(text)
