"""A sealed text returns its content, and is refused if any byte is changed, removed or added."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprune.files.sealed import seal, unseal

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_CONTENT = st.dictionaries(st.text().filter(lambda key: key != "sha256"), _JSON, max_size=4)


@given(_CONTENT, st.text("0123456789abcdef"), st.sampled_from([None, 2]))
def test_what_is_sealed_comes_back(content: dict[str, object], after: str, indent: int | None) -> None:
    found, digest = unseal(seal(content, after, indent), after, indent)
    assert found == content
    assert len(digest) == 64


@given(_CONTENT, st.data())
def test_a_changed_byte_is_noticed(content: dict[str, object], data: st.DataObject) -> None:
    text = seal(content).encode()
    place = data.draw(st.integers(0, len(text) - 1))
    flipped = text[place] ^ (1 << data.draw(st.integers(0, 7)))
    for damaged in (
        text[:place] + bytes([flipped]) + text[place + 1 :],
        text[:place] + text[place + 1 :],
        text[:place] + b" " + text[place:],
    ):
        if damaged != text:
            with pytest.raises(ValueError, match=r"\S"):
                unseal(damaged.decode())


def test_a_text_out_of_its_sequence_is_noticed() -> None:
    first = seal({"number": 0})
    _, digest = unseal(first)
    second = seal({"number": 1}, after=digest)
    assert unseal(second, after=digest)[0] == {"number": 1}
    with pytest.raises(ValueError, match="SHA-256 differs"):
        unseal(second)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", "{}", '{"sha256": 1}', '{"a": 1, "sha256": "0"}'])
def test_what_was_never_sealed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        unseal(text)
