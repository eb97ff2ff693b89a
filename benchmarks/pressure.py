"""Hours under memory pressure: runs that are given too little memory, are killed for it, and are resumed.

    python benchmarks/pressure.py MODEL --out FOLDER --calibration SOURCE [--minutes 120] [--samples 16] [--seqlen 256]
        [--threads 1]

At each of three rungs, with streams in memory and in files, a run is done undisturbed to find its peak of resident
memory. Then, for --minutes, the same runs are repeated in turn, each in a memory cgroup (version 1 or 2; this needs
root on Linux) that holds a share of that peak: 110 %, where the system has to reclaim file pages all the time, or 80 %
or 60 %, where it kills the process sooner or later. After a kill the limit is raised by a twentieth of the peak and the
run is resumed, as a user with more memory would do. In the end the folder must hold the bytes of the undisturbed run.
Prints a line for each run, and writes FOLDER/pressure.json; exits with 1 if a run ended otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

from killing import contents
from runs import PLACES

from reprune.engine.ledger import Ledger

RUNGS = ("LR", "BR+GP", "BR+GP+CR")
SHARES = (1.1, 0.8, 0.6)  # of the peak
STEP = 0.05  # of the peak, by which the limit is raised


class MemoryLimit:
    """A cgroup in which processes can be started."""

    def __init__(self) -> None:
        root = Path("/sys/fs/cgroup")
        first = root / "memory" if (root / "memory").is_dir() else root
        self._folder = first / f"reprune-{os.getpid()}"
        self._file = "memory.limit_in_bytes" if first != root else "memory.max"
        self._folder.mkdir()

    def set(self, count: int) -> None:
        (self._folder / self._file).write_text(str(count), encoding="ascii")

    def run(self, command: Sequence[str], environment: dict[str, str]) -> int:
        """Run a command within the limit; returns its exit status."""
        enter = f'echo $$ > "{self._folder}/cgroup.procs" && exec "$@"'
        return subprocess.run(["sh", "-c", enter, "sh", *command], env=environment, check=False).returncode

    def close(self) -> None:
        self._folder.rmdir()


class Setting:
    """One of the runs."""

    def __init__(self, options: argparse.Namespace, rung: str, place: str) -> None:
        self.name = f"{rung}, streams in {place}"
        self.command = [sys.executable, "-m", "reprune"]
        self._flags = [
            *("prune", str(options.model), "--reconstruct", rung, "--calibration", options.calibration),
            *("--samples", str(options.samples), "--seqlen", str(options.seqlen), "--epochs", "1"),
            *("--set", f"streams.memory={PLACES[place]}", "--quiet", "--out"),
        ]
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        out = options.out / "undisturbed"
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run([*self.command, *self._flags, str(out)], env=self.environment, check=True)
        record = json.loads((out / "reprune.json").read_text(encoding="utf-8"))
        self.peak: int = record["peak_memory_bytes"]["host"]
        self.expected = contents(out)
        shutil.rmtree(out)

    def under(self, limit: MemoryLimit, share: float, out: Path) -> dict[str, Any]:
        """Run within a share of the peak; each time that the run is killed, go on with more."""
        shutil.rmtree(out, ignore_errors=True)
        kills = 0
        while True:
            limit.set(int((share + kills * STEP) * self.peak))
            more = ["resume", str(out), "--quiet"] if Ledger(out).exists else [*self._flags, str(out)]
            ended = limit.run([*self.command, *more], self.environment)
            if ended != -signal.SIGKILL:
                break
            kills += 1
        same = ended == 0 and contents(out) == self.expected
        end = "the same bytes" if same else "other bytes" if ended == 0 else f"exit code {ended}"
        return {"run": self.name, "share": share, "killed": kills, "end": end}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = [Setting(options, rung, place) for rung, place in product(RUNGS, PLACES)]
    for setting in settings:
        print(f"{setting.name}: {setting.peak / 1e6:.0f} MB undisturbed", flush=True)
    until = time.monotonic() + 60 * options.minutes
    found: list[dict[str, Any]] = []
    limit = MemoryLimit()
    try:
        for share, setting in cycle(product(SHARES, settings)):
            if time.monotonic() > until:
                break
            found.append(setting.under(limit, share, options.out / "pressed"))
            print(", ".join(f"{key} {value}" for key, value in found[-1].items()), flush=True)
            (options.out / "pressure.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    finally:
        limit.close()
    ends = Counter(one["end"] for one in found)
    print(f"{len(found)} runs, killed {sum(one['killed'] for one in found)} times: {dict(ends)}")
    sys.exit(set(ends) != {"the same bytes"})


if __name__ == "__main__":
    main()
