"""The secret parts of a URL are removed."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from reprune.errors import InputError
from reprune.files.urls import without_secrets
from reprune.model.locate import locate_model


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://bob:secret@host:1/v1", "http://host:1/v1"),
        ("http://bob:sec/r?e#t@host/v1", "http://host/v1"),
        ("http://bob:sec@ret@host/v1", "http://host/v1"),
        ("bob:secret@host:1/v1", "host:1/v1"),
        ("http://host/v1?api_key=secret", "http://host/v1"),
        ("http://host/v1#secret", "http://host/v1"),
        ("host:1/v1", "host:1/v1"),
    ],
)
def test_neither_a_user_nor_a_query_is_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    "error", [errors.RevisionNotFoundError.__new__(errors.RevisionNotFoundError), OSError("at http://me:secret@hub/x")]
)
def test_the_hubs_url_is_shown_without_them(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://me:secret@hub")
    with pytest.raises(InputError, match="http://hub/") as refused:
        locate_model("owner/tiny")
    assert "secret" not in str(refused.value)
    assert "None" not in str(refused.value)
