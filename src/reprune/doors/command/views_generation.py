"""Shows the progress of a generation, and its texts. Decides nothing."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from reprune.doors.formats import clock, console, wrapped
from reprune.doors.generation.generate import GenerationWatcher
from reprune.planning.generation.corpus import Corpus

_SHOWN = 10
_WIDTH = 80


@final
class Lines(GenerationWatcher):
    """One line per round."""

    def __init__(self) -> None:
        self._output = console()
        self._began = time.monotonic()
        self._had = 0

    def started(self, kept: int, wanted: int) -> None:
        self._began, self._had = time.monotonic(), kept
        if kept:
            self._output.print(f"going on: {kept} of {wanted} texts are finished")

    def round_done(self, kept: int, wanted: int, counts: Mapping[str, int]) -> None:
        seconds = time.monotonic() - self._began
        new = kept - self._had
        left = f", {clock(seconds / new * (wanted - kept))} left" if new > 0 and kept < wanted else ""
        self._output.print(f"{kept:>6}/{wanted} texts of {counts['begun']:,} begun, {clock(seconds)}{left}")

    def note(self, text: str) -> None:
        self._output.print(wrapped(f"note: {text}"), style="yellow")


def show_manifest(manifest: Mapping[str, Any], out: Path) -> None:
    """Show what was made, and how much was rejected for which reason."""
    output, counts = console(), manifest["counts"]
    corpus = Corpus(out)
    output.print(f"texts      {out}: {manifest['texts']}")
    rejected = {name: count for name, count in counts.items() if name.startswith("rejected ")}
    output.print(f"begun      {counts['begun']:,} first tokens of {manifest['first_tokens']['possible']:,} possible")
    for name, count in sorted(rejected.items(), key=lambda item: -item[1]):
        output.print(f"rejected   {name.removeprefix('rejected '):<12} {count:,}")
    output.print(f"beside it  {corpus.manifest.name}, {corpus.rejected.name}")


def show_texts(out: Path) -> None:
    """Show ten texts that were kept and ten that were rejected, evenly from the files."""
    output, corpus = console(), Corpus(out)
    for title, lines in (("kept", list(corpus.kept_texts())), ("rejected", list(corpus.rejected_texts()))):
        for line in lines[:: max(len(lines) // _SHOWN, 1)][:_SHOWN]:
            why = f"{line['rejected']}: {line['reason']}" if "reason" in line else _measured(line["kept"])
            output.print(f"\n{title}: {why}", style="green" if title == "kept" else "red")
            for row in textwrap.wrap(textwrap.shorten(line["text"], 480, placeholder=" ..."), _WIDTH - 2):
                output.print(f"  {row}")


def _measured(kept: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in kept.items())
