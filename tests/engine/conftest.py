"""What most tests of the engine prune."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama; tests must not change it."""
    return tiny.save("llama", tmp_path_factory.mktemp("models") / "llama")
