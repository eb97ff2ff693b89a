"""Documents are read as they were given, and their hash is over the joined text."""

from __future__ import annotations

import hashlib

from reprune.planning.documents import Documents, text_sha256


def test_the_hash_is_of_the_texts_as_they_are_joined() -> None:
    documents = Documents("given", ("one", "zwei", None, "très"), joiner=" | ")
    assert text_sha256(documents) == hashlib.sha256("one | zwei |  | très".encode()).hexdigest()
    assert text_sha256(documents, [3, 0]) == hashlib.sha256("très | one".encode()).hexdigest()
    assert text_sha256(documents, [1]) == hashlib.sha256(b"zwei").hexdigest()


def test_a_row_without_a_text_is_an_empty_one_and_a_row_without_tokens_has_none() -> None:
    documents = Documents("given", ("one", None, "two"), token_ids=([5, 6], None, []))
    assert [*documents] == ["one", "", "two"] == [documents[index] for index in range(len(documents))]
    assert [documents.token_ids(index) for index in range(3)] == [[5, 6], None, None]
    assert Documents("given", ("one",)).token_ids(0) is None


def test_rows_are_one_text_where_it_is_said_or_there_is_one() -> None:
    assert not Documents("given", ("one", "two")).running
    assert Documents("given", ("one", "two"), running=True).running
    assert Documents("given", ("one",)).running
