"""What becomes of runs that are killed, and of runs whose files are damaged.

    python benchmarks/reliability.py --out FOLDER [--kills 200] [--restarts 200] [--corruptions 1000] [--soak 50]
        [--seed 0]

Kills: a tiny Llama is pruned at each of five rungs, with streams in memory and in files. The process kills itself
(SIGKILL) right before one of its durable steps (a file is synced, renamed, cut or removed, a folder is removed), or is
killed at a random moment. The run is then continued as a user would: by `resume` where there is an unfinished run, by
`prune` where none had begun. Every third continuation is killed too. In the end the folder must hold, byte for byte,
what an undisturbed run writes (in reprune.json except times and memory).

Restarts: `generate`, `study` and `report` are killed before each of their durable steps, at most --restarts times for
each, and started again; see `restarts.py`.

Corruptions: in the folder of an unfinished run one file is damaged (a bit flipped, cut short, bytes added, removed) and
the run is resumed. It must either be refused by an error that names the file, or end with the very bytes of the
undisturbed run, as it does if only something is missing that a crash may leave missing.

Soak: --soak runs in one process, taking the rungs in turn. From the tenth run to the last its memory may grow by at
most a twentieth.
Prints a line for each kind of end, and writes FOLDER/reliability.json; exits with 1 if there was any other end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is imported, as forked processes can't change it

from killing import contents, in_child, kill_before, steps_of
from restarts import commands, restarts
from runs import PLACES, random_llama, random_text

import reprune
from reprune.engine.ledger import Ledger
from reprune.engine.peak_memory import resident_bytes
from reprune.engine.watcher import Watcher
from reprune.errors import InputError

RUNGS = ("LR", "BR", "BR+GP", "BR+GP+CR", "auto")


def options(rung: str, place: str, text: Path) -> dict[str, Any]:
    return {
        "pruner": "sparsegpt",
        "reconstruct": rung,
        "calibration": str(text),
        "samples": 6,
        "seqlen": 16,
        "epochs": 1,
        "batch_size": 3,
        "device": "cpu",
        "settings": ["precision=float32", f"streams.memory={PLACES[place]}"],
    }


def go_on(model: Path, out: Path, given: dict[str, Any]) -> None:
    """Do what a user would do with this folder."""
    if Ledger(out).exists:
        reprune.resume(out)
    elif not (out / "model.safetensors.index.json").exists():
        reprune.prune(model, out, **given)


class Scenario:
    """An undisturbed run at one rung: what it writes, in how many steps and seconds."""

    def __init__(self, model: Path, rung: str, place: str, folder: Path, text: Path) -> None:
        self.model, self.rung, self.place = model, rung, place
        self.given = options(rung, place, text)
        whole = folder / f"whole-{rung}-{place}"
        shutil.rmtree(whole, ignore_errors=True)

        began = time.monotonic()
        self.steps = steps_of(lambda: reprune.prune(model, whole, **self.given), folder / "steps")
        self.seconds = time.monotonic() - began
        self.expected = contents(whole)

    def kill(self, out: Path, chance: random.Random, step: int | None) -> str:
        """Kill a run, before a step or at a random moment, and go on; returns what is wrong, if anything."""
        shutil.rmtree(out, ignore_errors=True)
        deaths = 0

        def begin() -> None:
            kill_before(step or -1)
            reprune.prune(self.model, out, **self.given)

        after = None if step is not None else chance.uniform(0, self.seconds)
        if in_child(begin, after) not in (0, -signal.SIGKILL):
            return "the run failed before it was killed"
        while True:
            again = chance.randrange(1, self.steps) if deaths < 2 and chance.random() < 1 / 3 else -1

            def more(again: int = again) -> None:
                kill_before(again)
                go_on(self.model, out, self.given)

            ended = in_child(more)
            if ended == 0:
                break
            if ended != -signal.SIGKILL:
                return "it could not be gone on with"
            deaths += 1
        return self.differences(out)

    def differences(self, out: Path) -> str:
        """How a result differs from what the undisturbed run wrote."""
        found = contents(out)
        wrong = {name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name)}
        wrong -= {name for name in wrong if name.startswith(".reprune/")}  # which a finished run may leave
        if "reprune.json" in wrong:
            one, other = found["reprune.json"], self.expected["reprune.json"]
            wrong |= {f"reprune.json: {key}" for key in {*one, *other} if one.get(key) != other.get(key)}
        return f"other bytes in {', '.join(sorted(wrong))}" if wrong else ""


def kills(scenarios: list[Scenario], out: Path, count: int, chance: random.Random) -> Counter[str]:
    """Kill runs: half before a durable step, drawn from all steps of all scenarios; half at random moments."""
    every = [(scenario, step) for scenario in scenarios for step in range(1, scenario.steps + 1)]
    chosen: list[tuple[Scenario, int | None]] = list(chance.sample(every, min(count // 2, len(every))))
    chosen += [(chance.choice(scenarios), None) for _ in range(count - len(chosen))]
    found: Counter[str] = Counter()
    for scenario, step in chosen:
        where = "before a durable step" if step is not None else "at a random moment"
        wrong = scenario.kill(out / "killed", chance, step)
        found[f"killed {where}: {wrong or 'the same bytes'}"] += 1
        if wrong:
            print(f"{scenario.rung}, streams in {scenario.place}, step {step}: {wrong}", flush=True)
    return found


class StopAfter(Watcher):
    """Ends the process after so many windows."""

    def __init__(self, windows: int) -> None:
        self._left = windows

    def window_done(self, window: Any, record: Any) -> None:
        self._left -= 1
        if self._left == 0:
            os._exit(0)


def damage(path: Path, chance: random.Random) -> str:
    """Damage a file; returns how."""
    content = path.read_bytes()
    kind = chance.choice(("bit flipped", "bit flipped", "cut short", "bytes added", "removed"))
    if kind == "bit flipped":
        place = chance.randrange(len(content))
        flipped = bytes([content[place] ^ (1 << chance.randrange(8))])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])
    elif kind == "cut short":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif kind == "bytes added":
        path.write_bytes(content + chance.randbytes(chance.randrange(1, 9)))
    else:
        path.unlink()
    return kind


def corruptions(scenarios: list[Scenario], out: Path, count: int, chance: random.Random) -> Counter[str]:
    """Each time, damage one file of a run that stopped after one or two windows."""
    stopped = []
    for number, scenario in enumerate(scenarios):
        for windows in (1, 2):
            folder = out / f"stopped-{number}-{windows}"
            shutil.rmtree(folder, ignore_errors=True)
            in_child(lambda s=scenario, f=folder, w=windows: reprune.prune(s.model, f, watcher=StopAfter(w), **s.given))
            stopped.append((scenario, folder))
    found: Counter[str] = Counter()
    for _ in range(count):
        scenario, folder = chance.choice(stopped)
        here = out / "damaged"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(folder, here)
        shutil.rmtree(here / ".reprune" / "streams", ignore_errors=True)
        path = chance.choice(sorted(path for path in here.rglob("*") if path.is_file()))
        kind = damage(path, chance)
        # If a ledger's end is lost, the file of its last line is reported; if run.json is lost, the run is.
        named = {"ledger.jsonl": ["open-"], "run.json": ["is not empty"]}.get(path.name, [])
        name = "a shard" if path.parent == here else path.name.replace("00000", "N").replace("00001", "N")
        try:
            go_on(scenario.model, here, scenario.given)
            end = scenario.differences(here) or "the same bytes"
        except InputError as error:
            by_name = any(one in str(error) for one in (path.name, *named))
            end = "refused by name" if by_name else f"refused by {error}"
        except Exception as error:
            end = f"FAILED: {type(error).__name__}: {error}"
        found[f"{name}, {kind}: {end}"] += 1
    return found


def soak(scenarios: list[Scenario], out: Path, count: int) -> Counter[str]:
    """Do many runs in this process; compare its memory after the first ten and after all."""
    taken = []
    for number in range(count):
        scenario = scenarios[number % len(scenarios)]
        shutil.rmtree(out / "soaked", ignore_errors=True)
        reprune.prune(scenario.model, out / "soaked", **scenario.given)
        taken.append(resident_bytes())
    before, after = taken[min(10, count) - 1], taken[-1]
    grown = f"{before / 1e6:.0f} MB after the tenth, {after / 1e6:.0f} MB after the last"
    return Counter({f"runs in one process, {grown}: {'no growth' if after < 1.05 * before else 'GROWTH'}": count})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--corruptions", type=int, default=1000)
    parser.add_argument("--soak", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rungs", nargs="+", default=RUNGS, choices=RUNGS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = random_llama(
        given.out / "llama",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    text = random_text(given.out / "text.txt", 2000)
    shutil.rmtree(given.out / "first", ignore_errors=True)
    reprune.prune(model, given.out / "first", **options("LR", "memory", text))  # imports what runs import
    gc.freeze()  # forked processes do not search it for garbage
    scenarios = [Scenario(model, rung, place, given.out, text) for rung in given.rungs for place in PLACES]
    chance = random.Random(given.seed)
    found = kills(scenarios, given.out, given.kills, chance)
    if given.restarts:
        whole = given.out / f"whole-{given.rungs[0]}-memory"
        found += restarts(commands(model, text, whole), given.out, given.restarts, chance)
    found += corruptions(scenarios, given.out, given.corruptions, chance)
    if given.soak:
        found += soak(scenarios, given.out, given.soak)
    (given.out / "reliability.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for what, count in sorted(found.items()):
        print(f"{count:5d}  {what}")
    good = ("the same bytes", "refused by name", "no growth")
    sys.exit(any(not what.endswith(good) for what in found))


if __name__ == "__main__":
    main()
