"""`generate`, `study` and `report`, killed and started again: what becomes of their files.

A process is killed (SIGKILL) right before one of its durable steps, and the same command is given again. In the end the
folder must hold what an undisturbed process writes: every byte, except times and memory in records.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

from killing import contents, in_child, kill_before, steps_of

from reprune import report, study
from reprune.doors.generation.generate import generate
from reprune.planning.generation.settings import generation


@dataclass(frozen=True)
class Command:
    """A command that a user may give twice."""

    name: str
    run: Callable[[Path], object]
    """Called with the folder to write to."""
    compare: Callable[[str], bool] = lambda name: True
    """Which files are compared by their contents; the others must only be there."""


def commands(model: Path, text: Path, pruned: Path) -> list[Command]:
    """The commands, on a tiny model.

    Args:
        model: the model.
        text: where samples come from.
        pruned: a finished run, to report on.
    """
    settings = generation({"length": 24, "filters": [], "language": "any", "batch_size": 4})

    def studied(folder: Path) -> None:
        study(
            model,
            folder / "study",
            pruners=["wanda"],
            rungs=["LR", "BR+GP"],
            calibration=str(text),
            samples=4,
            seqlen=16,
            epochs=1,
            device="cpu",
            settings=["precision=float32"],
            texts=[str(text)],
            text_seqlen=16,
            windows=2,
        )

    return [
        Command(
            "generate",
            lambda folder: generate(model, folder / "own.jsonl", samples=12, settings=settings, device="cpu"),
        ),
        Command("study", studied, lambda name: name.endswith((".json", ".yaml"))),  # tables and figures show times
        Command("report", lambda folder: report(pruned, folder / "report.html")),
    ]


def restarts(commands: list[Command], out: Path, most: int, chance: random.Random) -> Counter[str]:
    """Kill each command before each of its durable steps, or before at most `most` random ones, and start it again."""
    found: Counter[str] = Counter()
    for command in commands:
        whole, here = out / f"whole-{command.name}", out / "restarted"
        _empty(whole)
        steps = steps_of(lambda c=command, f=whole: c.run(f), out / "steps")
        expected = contents(whole)
        every = range(1, steps + 1)
        for step in every if steps <= most else sorted(chance.sample(every, most)):
            wrong = _killed(command, here, step) or _differences(command, contents(here), expected)
            found[f"{command.name} killed before a durable step: {wrong or 'the same bytes'}"] += 1
            if wrong:
                print(f"{command.name}, step {step}: {wrong}", flush=True)
    return found


def _killed(command: Command, folder: Path, step: int) -> str:
    """Kill a command before a step and start it again; returns what is wrong, if anything."""
    _empty(folder)

    def begin() -> None:
        kill_before(step)
        command.run(folder)

    if in_child(begin) != -SIGKILL:
        return "it was not killed"
    return "it could not be started again" if in_child(lambda: command.run(folder)) != 0 else ""


def _differences(command: Command, found: dict[str, object], expected: dict[str, object]) -> str:
    wrong = {name for name in {*found, *expected} if (name in found) != (name in expected)}
    wrong |= {name for name in expected if command.compare(name) and found.get(name) != expected[name]}
    return f"other bytes in {', '.join(sorted(wrong))}" if wrong else ""


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
