"""A model in the Hub's cache, whose folder is named by a commit, is called by its Hub id."""

from __future__ import annotations

from pathlib import Path

import pytest

from reprune.model.snapshots import called, hub_commit

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("folder", "commit", "name"),
    [
        (f"/cache/hub/models--owner--tiny/snapshots/{SHA}", SHA, "owner/tiny"),
        (f"hub/models--gpt2/snapshots/{SHA}", SHA, "gpt2"),
        (f"/mine/snapshots/{SHA}", SHA, SHA),
        (f"snapshots/{SHA}", SHA, SHA),
        ("/cache/models--owner--tiny/snapshots/last", None, "last"),
        (f"/mine/{SHA}", None, SHA),
        ("/mine/models--owner--tiny", None, "models--owner--tiny"),
    ],
)
def test_only_the_folder_of_a_commit_is_not_called_by_its_last_part(folder: str, commit: str | None, name: str) -> None:
    assert (hub_commit(Path(folder)), called(Path(folder))) == (commit, name)
