"""A fixture for the engine's tests: a shortened source "manual"."""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data import topics

import pytest

_CHARACTERS = 2000


@pytest.fixture(scope="module")
def short_manual() -> Iterator[None]:
    """Keep only the beginning of each topic: tokenizing all of them joined takes as long as pruning a tiny model.

    Not for tests that a fit overfits: on so short a text it may not.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topics, "topics", {name: text[:_CHARACTERS] for name, text in topics.topics.items()})
        yield
