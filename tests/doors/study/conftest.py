"""Fixtures for the tests of studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from reprune.doors.study import figures as study_figures
from reprune.doors.study import run as doors
from tests.doors.study.runs import SMALL, quicken, studied, write_test_text


@pytest.fixture
def here(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a text that is not calibrated on. Figures take long and are not drawn."""
    write_test_text(here)
    quicken(monkeypatch)
    return here


@pytest.fixture
def figures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures after all."""
    monkeypatch.setattr(doors, "write_figures", study_figures.write_figures)


@pytest.fixture(scope="package")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study, never interrupted; tests must not change it."""
    return studied(llama, tmp_path_factory.mktemp("whole"), **SMALL)
