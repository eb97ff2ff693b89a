"""A file of generated texts that only grows and, whatever interrupts it, ends up the same as without interruption.

FILE.jsonl             one line per text that was kept
FILE.rejected.jsonl    one line per rejected text or prefix, with the reason
FILE.manifest.json     what made them, and how many were rejected for each reason: written last
.FILE.rounds           while the file grows: one line per finished round, with the sizes of the first two files after it

A round is finished when its line is on disk. What a killed process wrote after the last such line is cut off. A
finished file can be extended as if it had never ended: its last round is done again if some of its texts were left
over.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard, final

from reprune.errors import InputError
from reprune.files.durable import append_line, cut, own, sync_folder, whole_lines, write_text
from reprune.files.wellformed import read_json
from reprune.model.checkpoint import differing
from reprune.model.locate import by_commit
from reprune.planning.generation.filters import Filter, Text
from reprune.planning.generation.rounds import Round

SUFFIX = ".jsonl"

_OF_TEXT = {"round", "text", "token_ids", "mean_log_probability"}
_Line = dict[str, Any]
_NOTHING: _Line = {"rounds": 0, "kept": 0, "kept_bytes": 0, "rejected_bytes": 0, "counts": {}}


def _merged(lines: Sequence[_Line]) -> _Line:
    """Merge the lines of consecutive rounds into one."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line["counts"])
    return {**(lines[-1] if lines else _NOTHING), "counts": dict(sorted(counts.items()))}


@final
class Corpus:
    """One file of generated texts, with the files that belong to it."""

    def __init__(self, path: Path) -> None:
        """Raises `InputError` unless the name ends in .jsonl and is not that of a folder."""
        if path.suffix != SUFFIX:
            raise InputError(f"--out {path}: expected a file that ends in {SUFFIX}.")
        if path.is_dir():
            raise InputError(f"--out {path}: is a folder; give a file that ends in {SUFFIX}.")
        self.path = path
        self.rejected = path.with_name(f"{path.stem}.rejected{SUFFIX}")
        self.manifest = path.with_name(f"{path.stem}.manifest.json")
        self._rounds = path.with_name(f".{path.stem}.rounds")
        self.count = 0  # texts kept
        self.counts: Counter[str] = Counter()
        self.next_round = 0
        self._last: list[_Line] = []  # two lines as in `_rounds`: all rounds but the last, merged, and the last

    def finished(self) -> dict[str, Any] | None:
        """The manifest, if the file is finished; raises `InputError` if either of them is damaged."""
        if self._rounds.exists() or not self.manifest.exists():
            return None
        try:
            content = read_json(self.manifest.read_text(encoding="utf-8"))
            if not _is_manifest(content):
                raise ValueError("not a manifest of reprune")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.manifest}: damaged ({error}); {self._remedy(self.manifest)}") from None
        self._require_bytes(self.path, content["last_rounds"][-1]["kept_bytes"])
        return content

    def _require_bytes(self, file: Path, size: int) -> None:
        if not file.exists() or file.stat().st_size < size:
            raise InputError(f"{file}: is missing, or shorter than it was; {self._remedy(file)}")

    def _remedy(self, damaged: Path) -> str:
        files = (self.path, self.rejected, self.manifest, self._rounds)
        others = (file.name for file in files if file != damaged and file.exists())
        return f"remove {' and '.join(('it', *others))} and generate again."

    def check_free(self) -> None:
        """Raise `InputError` if beginning this file would overwrite another."""
        for file in () if self._rounds.exists() else (self.path, self.rejected, self.manifest):
            if file.exists() and file.stat().st_size:
                raise InputError(f"--out {self.path}: {file.name} exists already; give another file.")

    def own(self) -> None:
        """Replace its files by copies where other folders share them by hard links, as it writes into them.

        A lock held on the file stays with the other names.
        """
        for file in (self.path, self.rejected, self._rounds):
            if file.exists():
                own(file)

    def open(self, made_by: Mapping[str, Any], samples: int) -> None:
        """Begin the file or continue it, finished or not; `made_by` is everything that determines its texts.

        Raises:
            InputError: this would overwrite another file, or the file was begun with other settings or has more than
                `samples` texts.
        """
        if not self._rounds.exists():
            finished = self.finished()
            if finished is None:
                self.check_free()
                for file in (self.path, self.rejected):
                    file.touch()
                self._begin_anew(made_by, [])
                return
            self.check(finished["made_by"], made_by, finished["texts"], samples)
            self._require_bytes(self.rejected, finished["last_rounds"][-1]["rejected_bytes"])
            self._begin_anew(made_by, finished["last_rounds"])
        head, *lines = self._read(whole_lines(self._rounds))
        self.check(head["made_by"], made_by, lines[-1]["kept"] if lines else 0, samples)
        if lines and lines[-1]["kept"] < samples and lines[-1]["counts"].get("left over"):
            lines.pop()  # this round was cut short when there were enough texts
            self._begin_anew(made_by, lines)
        last = lines[-1] if lines else _NOTHING
        for file, size in ((self.path, last["kept_bytes"]), (self.rejected, last["rejected_bytes"])):
            self._require_bytes(file, size)
            cut(file, size)
        for line in lines:
            self.counts.update(line["counts"])
        self.count, self.next_round = last["kept"], last["rounds"]
        self._last = [_merged(lines[:-1]), *lines[-1:]]

    def _begin_anew(self, made_by: Mapping[str, Any], lines: Sequence[_Line]) -> None:
        """Replace the contents of `_rounds` by the head and these rounds, durably."""
        write_text(self._rounds, "".join(json.dumps(line) + "\n" for line in ({"made_by": made_by}, *lines)))

    def check(self, before: Mapping[str, Any], made_by: Mapping[str, Any], texts: int, samples: int) -> None:
        """Raise `InputError` unless the file made with `before` is the wanted one, or the beginning of it."""
        was, is_ = _decisive(before), _decisive(made_by)
        same_model = was["model"] == is_["model"]
        # Files that determine how text becomes tokens; config.json is already part of the fingerprint.
        those, these = (one["model"].get("files", {}) for one in (before, made_by))
        files = differing(those, these) - {"config.json"} if same_model else set()
        if was != is_ or files:
            changed = [*_changed(was, is_), *(f"the model's {name}" for name in sorted(files))]
            model = _at_commit(before["model"]) if files or not same_model else None
            same = "the same" if model is None else f"the same, the model as {model},"
            raise InputError(
                f"--out {self.path}: was begun with other settings ({'; '.join(changed)}); give {same} again, or "
                "another file."
            )
        if texts > samples:
            raise InputError(
                f"--out {self.path}: has {texts} texts already; give --samples {texts} or more, or another file."
            )

    def _read(self, whole: bytes) -> list[dict[str, Any]]:
        """Parse the whole lines of `_rounds` into the head and the rounds."""
        with suppress(ValueError):
            head, *lines = [read_json(line) for line in whole.splitlines()]
            if isinstance(head, dict) and _is_made_by(head.get("made_by")) and _are_rounds(lines):
                return [head, *lines]
        raise InputError(f"{self._rounds}: damaged; {self._remedy(self._rounds)}")

    def texts(self) -> int:
        """The number of texts that are durably kept, whether the file is finished or not; changes nothing."""
        if not self._rounds.exists():
            return 0 if (finished := self.finished()) is None else int(finished["texts"])
        content = self._rounds.read_bytes()
        _, *lines = self._read(content[: content.rfind(b"\n") + 1])
        return int(lines[-1]["kept"]) if lines else 0

    def kept_texts(self) -> Iterator[dict[str, Any]]:
        """The texts that were kept, in order."""
        return _lines(self.path)

    def rejected_texts(self) -> Iterator[dict[str, Any]]:
        """The rejected texts, in order, without the rejected prefixes."""
        return (line for line in _lines(self.rejected) if "text" in line)

    def teach(self, filters: Sequence[Filter]) -> None:
        """Let filters learn from the texts of all rounds so far: round by round, kept texts first."""
        by_round: list[tuple[int, bool, Mapping[str, Any]]] = [
            *((line["round"], True, line) for line in self.kept_texts()),
            *((line["round"], False, line) for line in self.rejected_texts()),
        ]
        for _, kept, line in sorted(by_round, key=lambda item: item[0]):
            text = Text(line["text"], tuple(line["token_ids"]), line["mean_log_probability"])
            for one in filters:
                one.take_note(text, kept)

    def add(self, found: Round) -> None:
        """Append a round, durably."""
        for file, lines in ((self.path, found.kept), (self.rejected, found.rejected)):
            if lines:
                append_line(file, "\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
        self.count += len(found.kept)
        self.counts.update(found.counts)
        self.next_round += 1
        line: _Line = {
            "rounds": self.next_round,
            "kept": self.count,
            "kept_bytes": self.path.stat().st_size,
            "rejected_bytes": self.rejected.stat().st_size,
            "counts": dict(found.counts),
        }
        append_line(self._rounds, json.dumps(line))
        self._last = [_merged(self._last), line]

    def close(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which finishes the file."""
        content = {**manifest, "last_rounds": self._last}
        write_text(self.manifest, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        self._rounds.unlink()
        sync_folder(self.path.parent)


def _decisive(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the texts; a model counts by its fingerprint, or by its name if it has none."""
    model = made_by["model"]
    return {**made_by, "model": model.get("fingerprint") or model.get("name")}


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The differences, in words; for a key with settings of its own, each that differs, as `length 40, now 41`."""
    for key in {**before, **now}:
        was, is_ = before.get(key), now.get(key)
        if was != is_ and isinstance(was, dict) and isinstance(is_, dict):
            names = [name for name in {**was, **is_} if was.get(name) != is_.get(name)]
            yield from (f"{name} {was.get(name)}, now {is_.get(name)}" for name in names)
        elif was != is_:
            yield key


def _at_commit(model: Mapping[str, Any]) -> str | None:
    """How to give a Hub model by its commit, now that its branch may have moved on; None for any other model."""
    if not {"name", "commit", "fingerprint"} <= model.keys():
        return None
    return by_commit(model["name"], model["commit"])


def _is_made_by(content: Any) -> bool:
    """Whether this has a model and, if given, its files, name, commit and fingerprint are of the right types."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("files", {}), dict):
        return False
    return all(isinstance(model.get(key), str | None) for key in ("name", "commit", "fingerprint"))


def _is_manifest(content: Any) -> TypeGuard[dict[str, Any]]:
    """Whether this is a manifest as `close` writes it."""
    return (
        isinstance(content, dict)
        and _is_made_by(content.get("made_by"))
        and isinstance(content.get("texts"), int)
        and bool(content.get("last_rounds"))
        and _are_rounds(content["last_rounds"])
    )


def _are_rounds(lines: Any) -> bool:
    """Whether these are lines of rounds, of the form of `_NOTHING`."""
    return isinstance(lines, list) and all(
        isinstance(line, dict)
        and all(isinstance(line.get(key), type(value)) for key, value in _NOTHING.items())
        and all(isinstance(number, int) and number >= 0 for key, number in line.items() if key != "counts")
        and all(isinstance(count, int) for count in line["counts"].values())
        for line in lines
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        try:
            for line in stream:
                found = read_json(line)
                if not isinstance(found, dict) or not (_OF_TEXT if "text" in found else {"round"}) <= found.keys():
                    raise ValueError("no text, and no prefix of one")
                yield found
        except ValueError:
            raise InputError(f"{path}: damaged; remove it and the files beside it, and generate again.") from None
