"""For the engine's tests: a source "manual" that is short."""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data import topics

import pytest

_CHARACTERS = 2000


@pytest.fixture(scope="module")
def short_manual() -> Iterator[None]:
    """Of each topic only the beginning: where all are joined, to tokenize them takes as long as to prune a tiny model.

    Not for what shows that a fit overfits: of so short a text it may not.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topics, "topics", {name: text[:_CHARACTERS] for name, text in topics.topics.items()})
        yield
