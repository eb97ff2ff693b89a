"""A file of generated texts that only grows, whatever interrupts it, and ends as if nothing had.

FILE.jsonl             one line a text that was kept
FILE.rejected.jsonl    one line a text, or a prefix, that was not, and why
FILE.manifest.json     what made them, and how many were rejected for what reason: written last
.FILE.rounds           while it grows: one line a finished round, with the sizes of the two files after it

A round is finished when its line is on disk. What a process that was killed wrote after the last such line is cut off.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from reprune.errors import InputError
from reprune.model.durable import append_line, sync_folder, write_text
from reprune.planning.generation.filters import Filter, Text
from reprune.planning.generation.rounds import Round

SUFFIX = ".jsonl"


@final
class Corpus:
    """One such file."""

    def __init__(self, path: Path) -> None:
        """Raises `InputError` where the name is not that of a file of JSON lines, or its folder is none."""
        if path.suffix != SUFFIX:
            raise InputError(f"--out {path}: expected a file that ends in {SUFFIX}.")
        if path.is_dir():
            raise InputError(f"--out {path}: is a folder; give a file that ends in {SUFFIX}.")
        self.path = path
        self.rejected = path.with_name(f"{path.stem}.rejected{SUFFIX}")
        self.manifest = path.with_name(f"{path.stem}.manifest.json")
        self._rounds = path.with_name(f".{path.stem}.rounds")
        self.count = 0  # of texts that are kept
        self.counts: Counter[str] = Counter()
        self.next_round = 0

    def finished(self) -> dict[str, Any] | None:
        """The manifest, if the file is whole; raises `InputError` where it is damaged."""
        if self._rounds.exists() or not self.manifest.exists():
            return None
        try:
            content = json.loads(self.manifest.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or "made_by" not in content:
                raise ValueError("no manifest of reprune")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.manifest}: damaged ({error}); remove it and generate again.") from None
        return content

    def open(self, made_by: Mapping[str, Any]) -> None:
        """Begin the file, or go on with it.

        Args:
            made_by: all that decides the texts.

        Raises:
            InputError: there is a file that this would overwrite, or one that something else has begun.
        """
        if not self._rounds.exists():
            for file in (self.path, self.rejected, self.manifest):
                if file.exists() and file.stat().st_size:
                    raise InputError(f"--out {self.path}: {file.name} is there already; give another file.")
            for file in (self.path, self.rejected):
                file.touch()
            write_text(self._rounds, json.dumps({"made_by": made_by}) + "\n")
            return
        lines = self._finished_rounds()
        if not lines or (before := lines[0].get("made_by")) is None:
            raise InputError(f"{self._rounds}: damaged; remove it and {self.path.name}, and generate again.")
        if before != dict(made_by):
            changed = ", ".join(key for key in {**before, **made_by} if before.get(key) != made_by.get(key))
            raise InputError(
                f"--out {self.path}: was begun with other settings ({changed}); give the same again, or another file."
            )
        last: Mapping[str, Any] = {"kept_bytes": 0, "rejected_bytes": 0, "kept": 0, "counts": {}}
        for line in lines[1:]:
            last = line
            self.counts.update(line["counts"])
        for file, size in ((self.path, last["kept_bytes"]), (self.rejected, last["rejected_bytes"])):
            if not file.exists() or file.stat().st_size < size:
                raise InputError(f"{file}: shorter than it was; remove it and {self._rounds.name}, and generate again.")
            with file.open("r+b") as stream:
                stream.truncate(size)
                os.fsync(stream.fileno())
        self.count, self.next_round = last["kept"], len(lines) - 1

    def _finished_rounds(self) -> list[dict[str, Any]]:
        content = self._rounds.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a line that a crash cut short
            with self._rounds.open("r+b") as stream:
                stream.truncate(len(whole))
                os.fsync(stream.fileno())
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise InputError(f"{self._rounds}: damaged; remove it and {self.path.name}, and generate again.") from None

    def kept_lines(self) -> Iterator[dict[str, Any]]:
        """The texts that were kept, in order."""
        return _lines(self.path)

    def rejected_lines(self) -> Iterator[dict[str, Any]]:
        """The texts and prefixes that were not, in order."""
        return _lines(self.rejected)

    def teach(self, filters: Sequence[Filter]) -> None:
        """Have filters learn from the texts of the rounds before, in the order in which they were written."""
        by_round: list[tuple[int, bool, Mapping[str, Any]]] = [
            *((line["round"], True, line) for line in self.kept_lines()),
            *((line["round"], False, line) for line in self.rejected_lines() if "text" in line),
        ]
        for _, kept, line in sorted(by_round, key=lambda item: item[0]):
            text = Text(line["text"], tuple(line["token_ids"]), line["mean_log_probability"])
            for one in filters:
                one.take_note(text, kept)

    def add(self, found: Round) -> None:
        """Append a round, durably."""
        for file, lines in ((self.path, found.kept), (self.rejected, found.rejected)):
            with file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                stream.flush()
                os.fsync(stream.fileno())
        self.count += len(found.kept)
        self.counts.update(found.counts)
        self.next_round += 1
        line = {
            "kept": self.count,
            "kept_bytes": self.path.stat().st_size,
            "rejected_bytes": self.rejected.stat().st_size,
            "counts": dict(found.counts),
        }
        append_line(self._rounds, json.dumps(line))

    def close(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest: the file is whole."""
        write_text(self.manifest, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        self._rounds.unlink()
        sync_folder(self.path.parent)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
