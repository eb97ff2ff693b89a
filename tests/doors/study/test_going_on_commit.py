"""A study of a Hub model goes on with the commit that it was begun with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from reprune.doors.study.run import study
from reprune.doors.study.watcher import StudyWatcher
from reprune.errors import InputError
from tests import tiny
from tests.doors.study.runs import SETTINGS
from tests.doors.study.test_going_on import Heard

FIRST, SECOND = "01234567" * 5, "89abcdef" * 5


@pytest.fixture
def repository(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """owner/tiny in the cache of Hub models, with its branch at the first commit."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = here / "hub" / "models--owner--tiny"
    tiny.save("llama", repository / "snapshots" / FIRST)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(FIRST)
    return repository


def test_all_cells_prune_the_commit_that_a_study_was_begun_with(repository: Path) -> None:
    """The branch moves to another model after the first cell; given the commit, the study goes on."""
    first, second, main = FIRST, SECOND, repository / "refs" / "main"
    tiny.save("qwen2", repository / "snapshots" / second)

    class Moving(StudyWatcher):
        def cell_ended(self, cell: Any, seconds_left: float | None) -> None:
            main.write_text(second)

    grid = {"pruners": ["magnitude", "wanda"], "rungs": ["LR"], **SETTINGS, "texts": ["test.txt"]}
    record = study("owner/tiny", "s", **grid, watcher=Moving())
    assert [each["error"] for each in record["cells"]] == [None, None]
    assert (record["model"]["name"], record["model"]["commit"]) == ("owner/tiny", first)
    with pytest.raises(InputError, match=rf"model commit {first}, now {second}; .* a commit is given as ID@COMMIT\)"):
        study("owner/tiny", "s", **grid)
    assert study(f"owner/tiny@{first}", "s", **grid)["model"] == record["model"]


def test_a_study_whose_branch_moves_on_goes_on_with_its_commit_where_only_a_card_is_new(
    repository: Path, here: Path
) -> None:
    grid = {"rungs": ["LR"], **SETTINGS, "texts": ["test.txt"], "epochs": None, "lr": None}
    record = study("owner/tiny", "s", pruners=["magnitude"], **grid)
    new = shutil.copytree(repository / "snapshots" / FIRST, repository / "snapshots" / SECOND)
    (new / "README.md").write_text("a better card")
    (new / "vocab.json").write_text("{}")  # not read if there is a tokenizer.json
    (repository / "refs" / "main").write_text(SECOND)
    notes: list[str] = []
    heard = Heard()
    heard.note = notes.append  # type: ignore[method-assign]
    assert study("owner/tiny", "s", pruners=["wanda"], **grid, watcher=heard)["model"] == record["model"]
    assert notes == [
        f"owner/tiny is commit {SECOND}; the study goes on with owner/tiny@{FIRST}, which it was begun with"
    ]
    run = json.loads((here / "s" / "cells" / "wanda-LR-seed0" / "reprune.json").read_text())
    assert run["model"]["commit"] == FIRST
    (repository / "snapshots" / FIRST).rename(here / "gone")
    with pytest.raises(InputError, match=f"owner/tiny at revision {FIRST}: no folder here, nor is it whole in"):
        study("owner/tiny", "s", pruners=["wanda"], **grid)
    (new / "tokenizer.json").write_text((new / "tokenizer.json").read_text() + "\n")
    message = rf"model commit {FIRST}, now {SECOND}; model files\.tokenizer\.json .*ID@COMMIT"
    with pytest.raises(InputError, match=message):
        study("owner/tiny", "s", pruners=["wanda"], **grid)


def test_a_study_of_a_link_to_a_commit_goes_on_where_it_leads_to_the_same_model(repository: Path, here: Path) -> None:
    """A local name cannot have a commit."""
    new = shutil.copytree(repository / "snapshots" / FIRST, repository / "snapshots" / SECOND)
    grid = {"rungs": ["LR"], **SETTINGS, "texts": ["test.txt"]}
    for pruner, commit in (("magnitude", FIRST), ("wanda", SECOND)):
        (here / "m").unlink(missing_ok=True)
        (here / "m").symlink_to(repository / "snapshots" / commit)
        record = study("m", "s", pruners=[pruner], **grid)
    assert [cell["error"] for cell in record["cells"]] == [None, None]
    (new / "tokenizer.json").write_text((new / "tokenizer.json").read_text() + "\n")
    with pytest.raises(InputError, match=r"Give the same again \(axes may have more values\), or another folder"):
        study("m", "s", pruners=["wanda"], **grid)
