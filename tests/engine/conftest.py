"""Fixtures for the engine's tests: a shortened source "manual", and runs that several tests of a file look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest

from tests.engine.quick import prune

_CHARACTERS = 2000

Once = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture(scope="module")
def short_manual() -> Iterator[None]:
    """Keep only the beginning of each topic: tokenizing all of them joined takes as long as pruning a tiny model.

    Not for tests that a fit overfits: on so short a text it may not.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topics, "topics", {name: text[:_CHARACTERS] for name, text in topics.topics.items()})
        yield


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Prunes as `prune` does, but once for all tests of a file that ask for the same.

    It gives the record and the folder of the result; tests must change neither.
    """

    @cache
    def run(model: Path, *settings: str, **options: Any) -> tuple[dict[str, Any], Path]:
        out = tmp_path_factory.mktemp("once")
        return prune(model, out, *settings, **options), out

    return run
