"""Sources: what a user gives to --calibration, --heldout and --text, and the documents that it names.

Knows the texts that the field calibrates and evaluates on, and the forms of files and Hub data sets; knows
nothing of tokens or samples.
"""

from __future__ import annotations

import difflib
import json
import re
import tempfile
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

from reprune.errors import InputError
from reprune.files.local import local_path
from reprune.planning.documents import Documents, label
from reprune.planning.room import no_room
from reprune.planning.rows import SUFFIXES, TOKEN_COLUMNS, Rows, places
from reprune.planning.saved import saved_files
from reprune.planning.textfiles import check_lines, explain_json, is_text_file, json_rows, read_text

Split = Literal["train", "test"]  # for calibration and held-out samples, and for evaluation

_LONGEST = 4096  # no path is longer
_FORMS = (
    "c4, wikitext2, ptb, manual, a file (.txt, .jsonl, .json, each also with .gz, or .parquet), "
    "or a Hub data set as ID[@REVISION][:CONFIG][:SPLIT][:COLUMN] with an id such as org/name"
)


@dataclass(frozen=True)
class SourceSpec:
    """One source as the user gave it: its name, and the number of samples to draw from it (None: an equal share)."""

    name: str
    count: int | None = None


def parse_source(text: str) -> SourceSpec:
    """Parse SOURCE[=COUNT], such as `c4=256`.

    What follows the last `=` is a count only if it is a whole number, so paths may contain `=`; see `split_count`.
    Raises InputError if the name is empty or the count is less than 1.
    """
    name, suffix = split_count(text)
    if not name.strip():
        raise InputError(f"{label(text)}: expected SOURCE[=COUNT], but the source is empty; name one of {_FORMS}")
    if not suffix:
        return SourceSpec(name)
    count = int(suffix[1:])
    if count < 1:
        raise InputError(f"{label(text)}: expected a COUNT of at least 1, but got {count}; leave the source out")
    return SourceSpec(name, count)


def split_count(text: str, folder: Path | None = None) -> tuple[str, str]:
    """Split SOURCE[=COUNT] into the name and `=COUNT` as it is written, "" if there is no count.

    If the whole is an existing path, such as `year=2024`, and the part before `=` is not, there is no count. Relative
    paths begin at `folder`; None is the working folder.
    """
    if (found := re.search(r"=[+-]?[0-9]{1,18}\Z", text)) is None:
        return text, ""
    name = text[: found.start()]
    whole = name not in KNOWN and split_path(name, folder) is None and split_path(text, folder) is not None
    return (text, "") if whole else (name, found[0])


def split_path(name: str, folder: Path | None = None) -> tuple[Path, str] | None:
    """The existing local path that a source's name begins with, and the `:part`s after it; None if there is none.

    A known name is never a path. Relative paths begin at `folder`; None is the working folder.
    """
    end = -1 if name in KNOWN else len(name)
    while end > 0:
        path = local_path(name[:end]) if folder is None else folder / name[:end]
        with suppress(OSError):  # too long for a file's name
            if path.exists():
                return path, name[end:]
        end = name.rfind(":", 0, end)
    return None


def real_path(path: Path) -> Path:
    """A path without links, except for the name of a file whose own name is none of a text, as in the Hub's cache."""
    real = path.resolve()
    if real.is_dir() or real.name.lower().endswith(SUFFIXES):
        return real
    return path.parent.resolve() / path.name


def load_documents(name: str, split: Split) -> Documents:
    """Load the documents that a source names.

    A local file has no splits and gives the same documents for both; a Hub data set whose name includes a split gives
    that split. Raises InputError, with what was expected and the remedy, if the text cannot be read: an unknown name,
    a missing or damaged file, a missing column or split, no network.
    """
    return find_source(name).load(split)


class Source(ABC):
    """A place that texts come from.

    Different names of one place give equal sources, but for links to a file whose own name is none of a text.
    """

    @property
    def local(self) -> bool:
        """Whether its texts are on this machine, so that nothing is downloaded."""
        return True

    @abstractmethod
    def load(self, split: Split) -> Documents:
        """The documents of a split; see `load_documents`."""


@final
@dataclass(frozen=True)
class Manual(Source):
    """The language topics that CPython includes for `help()`: a text that needs no network.

    Topics are sorted by key; those at even positions are the split `train`, those at odd positions the split `test`.
    Topics repeat each other, so paragraphs of `test` that are also in `train` are left out.
    """

    def load(self, split: Split) -> Documents:
        """The topics of a split, one document each. Raises InputError if this Python lacks them."""
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise InputError(
                "source 'manual': expected the topics of Python's help(), but this Python has no pydoc_data; "
                "give another source, such as a .txt file"
            ) from error
        texts = [topics[key] for key in sorted(topics)]
        train, test = texts[::2], texts[1::2]
        if split == "train":
            return Documents("manual", tuple(train))
        known = {paragraph.strip() for text in train for paragraph in text.split("\n\n")}
        left = ([one for one in text.split("\n\n") if one.strip() not in known] for text in test)
        return Documents("manual", tuple("\n\n".join(paragraphs) for paragraphs in left if paragraphs))


@final
@dataclass(frozen=True)
class TextFile(Source):
    """A .txt or .txt.gz file: one document, its lines unchanged."""

    path: Path

    def load(self, split: Split) -> Documents:
        """The file's text. Raises InputError if it cannot be read, is not UTF-8 or is empty."""
        texts = (read_text(self.path, label(self.path.name)),)
        return Documents(self.path.name, texts, places=places([self.path]))


@final
@dataclass(frozen=True)
class RowFile(Source):
    """A file of JSON Lines, JSON or Parquet, read with `datasets`; each row is a document.

    JSON rows may also hold `token_ids` or `ids`, the tokens of a text that a model wrote itself. These are taken to
    belong to the column `text`, and are ignored if another column is read.
    """

    path: Path
    column: str | None

    def load(self, split: Split) -> Documents:
        """The file's rows. Raises InputError if it is damaged, not UTF-8, empty, or lacks the column."""
        called = label(self.path.name)
        is_json = not self.path.name.lower().endswith(".parquet")
        if is_json:
            check_lines(self.path, called)
        form = "json" if is_json else "parquet"
        rows = Rows(self.path.name, form, data_files=(str(self.path),), column=self.column)
        generated = is_json and self.column in (None, "text")
        try:
            return rows.read(generated=generated)
        except InputError as error:
            if not is_json:
                raise
            refused = explain_json(self.path, called, self.column or "text") or error
        if refused.__cause__ is not None:  # `datasets` takes the types of all columns from a file's first 10 MB
            with suppress(ValueError):  # an `InputError` is one too
                return self._read_alone(rows, self.column or "text", generated)
            if self.column is None:
                refused = explain_json(self.path, called, None) or refused
        raise refused

    def _read_alone(self, rows: Rows, column: str, generated: bool) -> Documents:
        """Read a copy of a file of JSON Lines with this column and tokens alone, whatever the types of the others."""
        import datasets  # here because it takes a second to import

        lists = TOKEN_COLUMNS if generated else ()
        types: dict[str, Any] = {column: datasets.Value("string")}  # also of columns that are first there later
        with tempfile.TemporaryDirectory(prefix="reprune-") as folder:
            copy = Path(folder) / "rows.jsonl"
            try:
                with copy.open("w", encoding="utf-8") as file:
                    for row in json_rows(self.path, label(self.path.name)):
                        if not isinstance(text := row.get(column), str | None):  # it would become one, in its JSON
                            raise ValueError("not a text")
                        tokens = {name: row[name] for name in lists if isinstance(row.get(name), list)}
                        types |= {name: [datasets.Value("int64")] for name in tokens}
                        file.write(json.dumps({column: text, **tokens}) + "\n")
            except OSError as error:
                raise no_room(error) or error from None
            alone = replace(rows, data_files=(str(copy),), types=datasets.Features(types))
            documents = alone.read(generated=generated)
            documents.places = frozenset(places([self.path], column))  # the same file, whatever was read
            return documents


@final
@dataclass(frozen=True)
class Excerpt:
    """The part of a long test split that the field measures: its first rows, joined, and the first windows of these."""

    rows: int
    joiner: str
    windows: int


@final
@dataclass(frozen=True)
class DataSet(Source):
    """A data set of the Hub, or a local directory of the same form.

    `files` are patterns of the (train, test) files to read, if the whole data set would be too much. `split` overrides
    the split that `load` is asked for. `running` says that rows are the lines of one text. `tested` is the part of
    the test split to evaluate on; None: all of it.
    """

    name: str
    id: str
    config: str | None = None
    split: str | None = None
    column: str | None = None
    files: tuple[str, str] | None = None
    revision: str | None = None
    joiner: str = "\n\n"
    running: bool = False
    tested: Excerpt | None = None

    @property
    def local(self) -> bool:
        """Whether it is a local directory, whose path is then absolute."""
        return Path(self.id).is_absolute()

    def load(self, split: Split) -> Documents:
        """The rows of the split. Raises InputError if there is none, or the Hub cannot be reached."""
        if not self.local and Path(self.id).is_dir():
            raise InputError(
                f"{label(self.name)}: expected {self.id!r} of the Hub, but `datasets` would read the folder of "
                f"that name, which is here; give it as ./{self.id}, or run in another folder"
            )
        part = self.tested if split == "test" else None
        files = None if self.files is None else (self.files[("train", "test").index(split)],)
        rows = Rows(
            self.name,
            self.id,
            config=self.config,
            split=self.split or split,
            data_files=files,
            revision=self.revision,
            column=self.column,
            first=part and part.rows,
        )
        if (saved := saved_files(Path(self.id), self.config, self.split, split, label(self.name))) is not None:
            rows = replace(rows, path="arrow", config=None, split="train", data_files=tuple(map(str, saved)))
        return rows.read(
            joiner=part.joiner if part else self.joiner, running=self.running, windows=part and part.windows
        )


# C4: SparseGPT's choice, which the field has kept: 1 of 1024 shards for calibration, and the beginning of 1 of 8 shards
# for evaluation.
# WikiText-2: its rows are lines, with their newline or empty; the field measures the test split joined by two newlines.
# PTB: it is published as a loading script, which `datasets` no longer runs; the Hub has it converted to Parquet.
KNOWN: dict[str, Source] = {
    "c4": DataSet(
        "c4",
        "allenai/c4",
        column="text",
        files=("en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"),
        tested=Excerpt(1100, " ", 256),
    ),
    "wikitext2": DataSet("wikitext2", "Salesforce/wikitext", config="wikitext-2-raw-v1", column="text", running=True),
    "ptb": DataSet(
        "ptb",
        "ptb-text-only/ptb_text_only",
        column="sentence",
        files=("*/train/*.parquet", "*/test/*.parquet"),
        revision="refs/convert/parquet",
        joiner=" ",
        running=True,
    ),
    "manual": Manual(),
}


def find_source(name: str) -> Source:
    """The source that a name stands for: a known text, else a local path, else a Hub data set.

    Opens nothing. Raises InputError, with the nearest known name, if the name can be none of these.
    """
    if name in KNOWN:
        return KNOWN[name]
    found = split_path(name)
    if found is None:
        identifier, *parts = name.split(":")
        _require_hub_id(name, identifier)
        identifier, _, revision = identifier.partition("@")
        return DataSet(name, identifier, *_parts(name, parts), revision=revision or None)
    path, rest = found
    parts = rest.split(":")[1:]
    if not path.is_dir():
        return _file(path, parts)
    folder = path.resolve()
    return DataSet(":".join([folder.name, *parts]), str(folder), *_parts(name, parts))


def _parts(name: str, parts: list[str]) -> tuple[str | None, str | None, str | None]:
    """The configuration, split and column of a data set; None for each that is not given."""
    if found := re.search(r"\[[^\]]*:[^\]]*\]", ":".join(parts)):
        raise InputError(
            f"{label(name)}: expected whole splits, but got the slice {found[0]!r}; leave it out, as samples are "
            "drawn at random and none is used twice"
        )
    if len(parts) > 3:
        raise InputError(
            f"{label(name)}: expected ID[@REVISION][:CONFIG][:SPLIT][:COLUMN], but got {len(parts) + 1} parts; leave "
            f"out {':'.join(parts[3:])!r}"
        )
    config, split, column = (part or None for part in [*parts, "", "", ""][:3])
    return config, split, column


def _file(path: Path, parts: list[str]) -> Source:
    called = label(path.name)
    if not path.is_file():
        raise InputError(
            f"{called}: expected a regular file, as it is read several times, but it is a pipe or a device; write the "
            "text to a file"
        )
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(
            f"{called}: expected a file ending in {', '.join(SUFFIXES)}, but got "
            f"{path.suffix or 'no suffix'!r}; convert or rename it"
        )
    if len(parts) > 1:
        raise InputError(f"{called}: expected FILE[:COLUMN], but got {':'.join(parts)!r} after it; leave out the rest")
    column = (parts or [""])[0] or None
    path = real_path(path)
    if not is_text_file(path.name):
        return RowFile(path, column)
    if column is not None:
        raise InputError(f"{called}: expected no column, since a .txt has none, but got {column!r}; leave it out")
    return TextFile(path)


def _require_hub_id(name: str, identifier: str) -> None:
    """Raise InputError unless the identifier, which is not a local path, has the form of a Hub data set's id."""
    if "\n" in name or len(name) > _LONGEST:
        raise InputError(
            f"source {name[:80]!r}: expected the name of a source, but this is a text; write texts to a file, such as "
            "JSON lines, and give its path"
        )
    called = label(name)
    starts_as_path = re.match(r"[/.~]|[A-Za-z]:[/\\]", name)
    if identifier.lower().endswith(SUFFIXES) or starts_as_path or "\\" in name:
        raise InputError(
            f"{called}: expected a file or directory, but there is none that can be looked at; check the path and "
            "its permissions"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", identifier, re.ASCII):
        return
    if identifier in KNOWN:
        raise InputError(
            f"{called}: expected {identifier!r} alone, which has its own splits and column, but got {name!r}; "
            "for other parts give the data set by its Hub id"
        )
    bare, equals, _ = identifier.partition("=")
    near = difflib.get_close_matches(bare.lower(), KNOWN, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    count = "COUNT after the = must be a whole number; " if equals else ""
    raise InputError(
        f"{called}: expected a source, but there is no such text or file; {hint}{count}a source is {_FORMS}"
    )
