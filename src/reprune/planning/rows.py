"""Reads one column of rows by the `datasets` library, and explains its failures in plain words.

Knows what `datasets.load_dataset` takes and how it fails; knows nothing of which texts people calibrate on.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, final

from reprune.errors import InputError, causes, lacks_home
from reprune.files.readable import is_file_there
from reprune.model.hub import hub_answer, not_reached, unreached
from reprune.model.quiet import quiet_logger
from reprune.model.snapshots import COMMIT
from reprune.planning.documents import Column, Documents, label
from reprune.planning.room import cache_of_the_hub, no_room
from reprune.planning.saved import NO_TEXT, STATE
from reprune.planning.textfiles import TextFiles, explain_json, is_text_file

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""The endings of files that hold text, or rows of it."""

TOKEN_COLUMNS = ("token_ids", "ids")  # columns for the tokens of texts that a model wrote itself
_FORMATS = {"json": "JSON", "parquet": "Parquet", "arrow": "Arrow"}
_DESCRIPTIONS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
_STRINGS = {"string", "large_string", "string_view"}
_INTEGER_LIST = re.compile(r"(large_)?list<[^<>]*: u?int\d+( not null)?>")
_STRINGS_WITHIN = re.compile(r"<.*(string|json)")  # nested strings, as in chats
_FILE = re.compile(r"struct<bytes: (large_)?binary, path: (large_)?string>")  # an embedded file, such as an image
_BATCH = 1000  # rows read at a time when a whole column is read in order
_SECONDS = 100  # to wait for the Hub, as `datasets` does


@dataclass(frozen=True)
class Rows:
    """Where rows are: the arguments of `datasets.load_dataset`.

    `name` is what reports and messages call the place. `path` is a Hub id, a local directory, or a format of
    `_FORMATS`; `data_files` are files of `split`, for a Hub id patterns. If `column` is None, it is `text`, or the only
    column that holds strings, nested ones included. `first` is the number of rows to keep, from the first; None: all.
    `types` are the columns' types (`datasets.Features`); None: as `datasets` finds them.
    """

    name: str
    path: str
    config: str | None = None
    split: str = "train"
    data_files: tuple[str, ...] | None = None
    revision: str | None = None
    column: str | None = None
    first: int | None = None
    types: Any = None

    def read(
        self,
        *,
        joiner: str = "\n\n",
        running: bool = False,
        generated: bool = False,
        windows: int | None = None,
    ) -> Documents:
        """Read the column into `Documents`; rows stay on disk as memory-mapped Arrow.

        Data sets of the Hub are kept in the cache of `datasets`. Local files are converted into a temporary folder,
        which is removed with the documents, so that no stale cache is ever read. In a local directory of .txt files,
        whose lines `datasets` would take for rows, each file is one document. `generated` says that integer lists in
        a column of TOKEN_COLUMNS are the tokens of the texts.

        Raises InputError if there is no such place, split, configuration, column or revision, if it cannot be read
        (damaged, no network), or if all rows are empty or white space.
        """
        folder = self.path not in _FORMATS and Path(self.path).is_dir()
        if folder and (part := next(filter(glob.has_magic, Path(self.path).parts), None)):
            raise self._refused(
                "expected a folder whose path has no *, ? or [, which `datasets` takes for patterns, but got "
                f"{part!r} in it; rename that, or name a file"
            )
        files, cut, unread = self._folder_files() if folder else (self._files(), False, 0)
        if cut:
            texts = TextFiles(files, label(self.name))
            self._require_text(texts)
            return Documents(self.name, texts, joiner=joiner, running=running, places=places(files), unread=unread)
        if folder and (Path(self.path) / STATE).exists():
            raise self._refused(
                f"expected a folder without a {STATE} of its own, which `datasets` takes for that of a saved "
                "data set, but it has one; rename that, or name a file"
            )
        cache = tempfile.mkdtemp(prefix="reprune-") if folder or self.path in _FORMATS else None
        try:
            dataset = self._load(cache)
            column = self._text_column(dataset)
            tokens = _token_column(dataset) if generated else None
            self._require_text(_Column[str](dataset, column, self.name))
            commit = _commit(dataset) if cache is None else None
            if cache is None and self.revision is not None and self.data_files is None:
                self._require_revision(commit)
            if self.first is not None:
                dataset = dataset.select(range(len(dataset))[: self.first])
            documents = Documents(
                self.name,
                _Column[str](dataset, column, self.name),
                joiner=joiner,
                running=running,
                token_ids=None if tokens is None else _Column[list[int]](dataset, tokens, self.name),
                places=places(files, column) or [self._place(dataset.config_name, column, commit)],
                commit=commit,
                windows=windows,
                unread=unread,
            )
        except BaseException:
            if cache is not None:
                shutil.rmtree(cache, ignore_errors=True)
            raise
        if cache is not None:
            weakref.finalize(documents, shutil.rmtree, cache, ignore_errors=True)
        return documents

    def _place(self, config: str, column: str, commit: str | None) -> Hashable:
        """An identity of one column that is the same under all its names."""
        return self.path, config, self.split, self.data_files, commit or self.revision, column

    def _require_revision(self, commit: str | None) -> None:
        """Raise InputError unless `commit` is that of the revision: without the Hub, `datasets` takes any in its cache.

        That does not happen with `data_files`.
        """
        import huggingface_hub

        if commit is not None:
            if commit == self.revision:
                return
            with contextlib.suppress(Exception):  # on any error of the Hub's client, this is not confirmed
                found = huggingface_hub.HfApi().dataset_info(self.path, revision=self.revision, timeout=_SECONDS)
                if commit == found.sha:
                    return
        has, name = (f"is commit {commit}", f", or name {self.path}@{commit}") if commit else ("names no commit", "")
        raise self._refused(
            f"expected revision {self.revision!r}, but it could not be read from the Hub, and the latest that "
            f"the cache of `datasets` has {has}; check the network and HF_HUB_OFFLINE{name}"
        )

    def _files(self) -> list[Path]:
        """The local files in `data_files`; none for a Hub data set."""
        return [Path(file) for file in self.data_files or ()] if self.path in _FORMATS else []

    def _folder_files(self) -> tuple[list[Path], bool, int]:
        """A local directory's files of the split, if known; whether they would be cut into lines; how many are unread.

        The last look like text but belong to no split: `datasets` reads only the most frequent kind of file and, if
        names tell of splits, only those. They are not counted if a configuration is named, which may leave files out.
        """
        import datasets

        with self._reading(), tempfile.TemporaryDirectory(prefix="reprune-") as cache:
            builder = datasets.load_dataset_builder(self.path, self.config, cache_dir=cache)
        known = builder.config.data_files or {}
        for file in (file for names in known.values() for file in names):
            if ".." in Path(file).parts or not Path(file).is_relative_to(self.path):  # as a README.md may say
                raise self._refused(f"names the file {file!s:.200}, outside the folder; refused")
        splits = list(known) if self.split == "all" else [name.strip() for name in self.split.split("+")]
        files = [file for name in splits for file in known[name]] if known.keys() >= set(splits) else []
        cut = getattr(builder.config, "sample_by", None) == "line"
        cut = bool(files) and cut and all(map(is_text_file, files))
        if cut and self.column not in (None, "text"):
            raise self._refused(f"expected no column, since a .txt has none, but got {self.column!r}; leave it out")
        taken = {Path(file).resolve() for names in known.values() for file in names}
        unread = 0 if self.config or not taken else sum(path.resolve() not in taken for path in _texts(Path(self.path)))
        return [Path(file) for file in files], cut, unread

    def _load(self, cache: str | None) -> Any:
        import datasets  # here because it takes a second to import

        # Named files may be only a part of a split, so the sizes that the card declares for it are not checked.
        named = [glob.escape(str(file)) for file in self._files()] or list(self.data_files or ())
        checks = "no_checks" if named else "basic_checks"
        hub = () if cache else cache_of_the_hub()
        with self._reading(*hub):
            return datasets.load_dataset(
                self.path,
                self.config,
                split=self.split,
                data_files={self.split: named} if named else None,
                revision=self.revision,
                features=self.types,
                verification_mode=checks,
                keep_in_memory=False,
                cache_dir=cache,
            )

    @contextlib.contextmanager
    def _reading(self, *cache: str) -> Iterator[None]:
        """Silence the readers, and turn what they raise into `InputError`.

        `cache` is the folder that they write to and the variable that sets it, if known. Builders, Arrow, the Hub's
        client and its HTTP library each raise errors of their own; all mean the same here.
        """
        try:
            with quiet_reading():
                yield
        except Exception as error:
            if full := no_room(error, *cache):
                raise full from None
            raise self._refused(self._reason(error)) from error

    def _refused(self, why: str) -> InputError:
        return InputError(f"{label(self.name)}: {why}")

    def _require_text(self, texts: Column[str | None]) -> None:
        # One by one, because a batch of books is large.
        if not any((texts[index] or "").strip() for index in range(len(texts))):
            raise self._refused(NO_TEXT)

    def _text_column(self, dataset: Any) -> str:
        schema = dataset.features.arrow_schema
        strings: list[str] = [field.name for field in schema if str(field.type) in _STRINGS]
        if self.column is not None and self.column in strings:
            return self.column
        found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        if self.column is not None:
            raise self._refused(
                f"expected a column of strings named {self.column!r}, but its columns are: {found}; "
                "name one of its string columns"
            )
        if "text" in strings:
            return "text"
        within = [field.name for field in schema if _STRINGS_WITHIN.search(_FILE.sub("file", str(field.type)))]
        if len(strings) == 1 and not within:
            return strings[0]
        first = f"; if {within[0]!r} has chats, render them into a column 'text' first" if within else ""
        tokens = [field.name for field in schema if _INTEGER_LIST.fullmatch(str(field.type))]
        if tokens and not strings and not within:
            likely = "input_ids" if "input_ids" in tokens else tokens[0]
            first = f"; if {likely!r} has tokens, decode them into a column 'text' first"
        raise self._refused(
            f"expected a string column 'text', or only one column with strings, but its columns are: {found}; "
            f"name the column to read after the source, as in FILE:COLUMN or ID:CONFIG:SPLIT:COLUMN{first}"
        )

    def _reason(self, error: Exception) -> str:
        from datasets.exceptions import DatasetNotFoundError

        if isinstance(error, DatasetNotFoundError):
            revision = f" at revision {self.revision!r}" if self.revision else ""
            return (
                f"expected a data set that can be read, but the Hub has no {self.path!r}{revision}, or it is private "
                "or gated; check the id, or log in with `hf auth login`"
            )
        local = self.path in _FORMATS or Path(self.path).is_dir()
        if not local and (answer := hub_answer(error)) is not None:
            return f"expected to read {self.path!r} from the Hugging Face Hub, but {answer}"
        lost = (isinstance(one, ConnectionError) or type(one).__name__ == "ReadTimeout" for one in causes(error))
        if unreached(error) or any(lost):  # a connection lost on the way makes no difference here
            return (
                f"expected to read {self.path!r} from the Hugging Face Hub, but {not_reached()}; "
                "check the network and HF_HUB_OFFLINE, or give a local file, or `manual`, which needs no network"
            )
        cause = error.__cause__ or error
        if lacks_home(cause):
            return (
                f"expected to read {self.path!r} from the Hugging Face Hub, but there is no home folder to download "
                "it to; set HF_HOME to a folder"
            )
        if self.path == "arrow" and "corresponds to no data" in str(error):  # in older releases
            return NO_TEXT
        detail = " ".join(str(cause).split())[:300] or type(cause).__name__
        if self.path in _FORMATS:
            return f"expected a file of {_FORMATS[self.path]} rows, but: {detail}; check the file"
        if (folder := Path(self.path)).is_dir():
            texts = sorted(_texts(folder))
            if not texts:
                return f"expected files ending in {', '.join(SUFFIXES)}, but the folder has none"
            if wrong := next(filter(None, map(_damage, texts)), None):
                return wrong
        config = f" of configuration {self.config!r}" if self.config else ""
        return (
            f"expected split {self.split!r}{config} to be readable, but: "
            f"{detail}; check the files, or name the parts as ID:CONFIG:SPLIT:COLUMN"
        )


def _texts(folder: Path) -> Iterator[Path]:
    """The files below a folder that look like text or rows of it, except hidden ones and descriptions of data sets.

    Raises InputError for a link into a folder that is closed.
    """
    for path in folder.rglob("*"):
        hidden = any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
        if hidden or path.name in _DESCRIPTIONS or not path.name.lower().endswith(SUFFIXES):
            continue
        if is_file_there(path, f"{label(folder.name)}, file {path.name!r}"):
            yield path


def _damage(file: Path) -> str | None:
    """What is wrong with the compression or the form of a folder's file of rows, with its name; None if nothing is."""
    called = f"file {file.name!r}"
    if is_text_file(file.name):
        return None
    try:
        if not file.name.lower().endswith(".parquet"):
            return None if (wrong := explain_json(file, called, "text")) is None else str(wrong)
        from pyarrow import parquet  # which `datasets` has imported

        parquet.read_metadata(file)
    except InputError as error:
        return str(error)
    except Exception as error:  # Arrow raises errors of many kinds
        return f"{called}: expected Parquet, but: {str(error).rstrip('.')}; check the file"
    return None


def places(files: Iterable[Path], column: str = "text") -> list[Hashable]:
    """For each file, an identity that is the same under all its names, with the column that is read."""
    return [(file.resolve(), column) for file in files]


T = TypeVar("T")


@final
class _Column(Generic[T]):
    """One column of an Arrow data set; every access reads from disk."""

    def __init__(self, dataset: Any, column: str, source: str) -> None:
        self._dataset = dataset.select_columns([column])
        self._column = column
        self._source = source

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int, /) -> T | None:
        with self._decoding():
            return cast("T | None", self._dataset[index][self._column])

    def __iter__(self) -> Iterator[T | None]:
        with self._decoding():
            for batch in self._dataset.iter(batch_size=_BATCH):
                yield from batch[self._column]

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        """Turn the error for a text that is not UTF-8, which its file claims to be, into an `InputError`."""
        try:
            yield
        except UnicodeDecodeError as error:
            raise InputError(
                f"{label(self._source)}: expected UTF-8 in the column {self._column!r}, but byte "
                f"0x{error.object[error.start]:02x} of a row is not; write the file again with texts in UTF-8"
            ) from error


def _commit(dataset: Any) -> str | None:
    """The commit of the Hub data set that was read, after which its cache folder is named; None if it is not."""
    folder = next((Path(file["filename"]).parent.name for file in dataset.cache_files), "")
    return folder if COMMIT.fullmatch(folder) else None


def _token_column(dataset: Any) -> str | None:
    schema = dataset.features.arrow_schema
    lists = {field.name for field in schema if _INTEGER_LIST.fullmatch(str(field.type))}
    return next((column for column in TOKEN_COLUMNS if column in lists), None)


@contextlib.contextmanager
def quiet_reading() -> Iterator[None]:
    """Turn off the readers' progress bars, log lines and download counting; restore them afterwards."""
    import datasets
    import huggingface_hub.utils as hub
    from datasets import config

    with contextlib.ExitStack() as stack:
        for name in ("datasets", "huggingface_hub"):
            stack.enter_context(quiet_logger(name, logging.CRITICAL))
        for bars, variable in (
            (datasets, "HF_DATASETS_DISABLE_PROGRESS_BARS"),
            (hub, "HF_HUB_DISABLE_PROGRESS_BARS"),
        ):
            # If the user has set the variable, the libraries ignore calls that would override it.
            if variable not in os.environ and not bars.are_progress_bars_disabled():
                bars.disable_progress_bars()
                stack.callback(bars.enable_progress_bars)
        if "HF_UPDATE_DOWNLOAD_COUNTS" not in os.environ:  # by default, even local files are reported to a server
            stack.callback(setattr, config, "HF_UPDATE_DOWNLOAD_COUNTS", config.HF_UPDATE_DOWNLOAD_COUNTS)
            config.HF_UPDATE_DOWNLOAD_COUNTS = False
        yield
