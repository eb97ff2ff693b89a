"""Documents: texts in a fixed order, read on access. Knows no files, no Hub, no tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator
from typing import Protocol, TypeVar, final

T_co = TypeVar("T_co", covariant=True)


class Column(Protocol[T_co]):
    """What `Documents` reads: a tuple, or a column of a file on disk."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T_co: ...
    def __iter__(self) -> Iterator[T_co]: ...


@final
class Documents:
    """A collection of texts, as calibration and evaluation read it.

    Args:
        name: the collection's name in reports: a file's name or a data set's id, never a path of this machine.
        texts: the texts, which may be read from disk on each access; they are not kept here.
        joiner: the string between two documents when they are packed into one text.
        running: whether the rows are the consecutive lines of one text, so that a single row is not a document.
        token_ids: parallel to `texts`: the tokens of texts that a model wrote itself, or None for a row without any.
        places: identifies where the texts are, the same under all their names; for files, each with the column read.
        commit: for a Hub data set, the commit of its repository, if known.
        windows: the number of windows, from the start, over which the field measures this text; None: all.
        unread: for a folder, the number of files that look like text but are not read.
    """

    def __init__(
        self,
        name: str,
        texts: Column[str | None],
        *,
        joiner: str = "\n\n",
        running: bool = False,
        token_ids: Column[list[int] | None] | None = None,
        places: Iterable[Hashable] = (),
        commit: str | None = None,
        windows: int | None = None,
        unread: int = 0,
    ) -> None:
        self.name = name
        self.joiner = joiner
        self.running = running or len(texts) == 1
        self.places = frozenset(places)
        self.commit = commit
        self.windows = windows
        self.unread = unread
        self._texts = texts
        self._token_ids = token_ids

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> str:
        """The text of one document ("" if the row has none). Raises IndexError beyond the end."""
        return self._texts[index] or ""

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            yield text or ""

    def token_ids(self, index: int) -> list[int] | None:
        """The tokens as which a document was generated, or None if it has to be tokenized."""
        if self._token_ids is None:
            return None
        return self._token_ids[index] or None


def label(name: str) -> str:
    """What messages call the collection of this name."""
    return f"source {name!r}"


def said_unread(name: str, count: int) -> str:
    """The note on a folder's files that are not read."""
    return (
        f"{label(name)}: of a folder, only files of one kind are read, and of one split where names tell splits; "
        f"{count:,} more that look like text are left out: give these by their own paths"
    )


def text_sha256(documents: Documents, order: Iterable[int] | None = None) -> str:
    """The SHA-256, in hexadecimal, of the documents joined by their joiner, in UTF-8.

    `order` selects documents by index, in that order; None takes all of them in their own order.
    """
    digest = hashlib.sha256()
    texts = iter(documents) if order is None else (documents[index] for index in order)
    for position, text in enumerate(texts):
        if position:
            digest.update(documents.joiner.encode())
        digest.update(text.encode())
    return digest.hexdigest()
