"""Coverage-guided fuzzing of everything that reads what a user, or a crash, may have left: none may end in a traceback.

    pip install atheris
    python benchmarks/fuzz.py --out FOLDER [--seconds 60] [--only recipe setting ...]

Each target runs for --seconds in a process of its own, on bytes that Atheris varies to reach new code. Bad input must
be refused by reprune's own error. Any other exception ends the target and is printed with the input that caused it,
which is kept in FOLDER. Prints a line for each target; exits with 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SEEDS: dict[str, list[bytes]] = {
    "recipe": [b"sparsity: 2:4\nsolver: {name: adam, lr: 1e-4}\ncalibration: [c4=32]\n"],
    "setting": [b"solver.betas=[0.9, 0.95]", b"schedule.size=3"],
    "source": [b"c4=32", b"user/set:config:train:text", b"a.jsonl=4"],
    "run": [b'{"recipe": {"model": "m"}, "weights": {}, "versions": {}, "data": {}, "sketch": {}, "files": {},'
            b' "folder": "f", "fingerprint": "a", "windows": 1}'],
    "ledger": [b'{"window": {"index": 0}, "blocks": [], "files": {"a": "b"}, "open": {"c": "d"}}'],
    "study": [b'{"kind": "reprune study", "format": 1, "cells": []}'],
    "report": [b'{"recipe": {"solver": {"lr": 1}}, "model": {"name": "m"}, "blocks": [{"index": 0}], "windows": []}'],
    "safetensors": [b"\x38" + bytes(7) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  ' + bytes(4)],
    "index": [b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'],
    "text": [b'{"text": "one"}\n{"text": "two"}\n'],
}  # fmt: skip


def targets(folder: Path) -> dict[str, Callable[[bytes], object]]:
    """The functions to fuzz, by name; files go to `folder`."""
    from reprune.doors.report.read import read_records
    from reprune.doors.study.record import read_study
    from reprune.engine.ledger import Ledger
    from reprune.files.sealed import seal
    from reprune.model.checkpoint import Checkpoint
    from reprune.planning.layers import read_recipe, resolve_recipe
    from reprune.planning.sources import parse_source
    from reprune.planning.textfiles import check_lines, explain_json

    def write(name: str, data: bytes) -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    def sealed(data: bytes) -> bytes:
        """The data with its seal, if it is a JSON object, so that what comes after the seal's check is reached too."""
        with suppress(ValueError, RecursionError):
            content = json.loads(data)
            if isinstance(content, dict):
                content.pop("sha256", None)
                return (seal(content, indent=2 if b"recipe" in data else None) + "\n").encode()
        return data

    def recipe(data: bytes) -> None:
        resolve_recipe("model", read_recipe(write("recipe.yaml", data)))

    def run(data: bytes) -> None:
        write(".reprune/run.json", sealed(data).rstrip())
        Ledger(folder).job()

    def ledger(data: bytes) -> None:
        write(".reprune/ledger.jsonl", sealed(data))
        Ledger(folder).check()

    def report(data: bytes) -> None:
        write("reprune.json", data)
        read_records(folder)

    def study(data: bytes) -> None:
        write("study.json", data)
        read_study(folder)

    def index(data: bytes) -> None:
        write("model.safetensors.index.json", data)
        Checkpoint(folder)

    def text(data: bytes) -> None:
        check_lines(write("text.jsonl", data), "text")
        error = explain_json(folder / "text.jsonl", "text", "text")
        if error is not None:
            raise error

    return {
        "recipe": recipe,
        "setting": lambda data: resolve_recipe("model", settings=[data.decode("utf-8", "replace")]),
        "source": lambda data: parse_source(data.decode("utf-8", "replace")),
        "run": run,
        "ledger": ledger,
        "study": study,
        "report": report,
        "safetensors": lambda data: Checkpoint(write("model.safetensors", data).parent),
        "index": index,
        "text": text,
    }


def fuzz(name: str, out: Path, seconds: int) -> None:
    """Fuzz one target; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["reprune", "yaml", "pydantic"]):
        target = targets(Path(tempfile.mkdtemp()))[name]
    from reprune.errors import RepruneError

    def one(data: bytes) -> None:
        with suppress(RepruneError):
            target(data)

    seeds = out / name
    seeds.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (seeds / f"seed-{number}").write_bytes(seed)
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", "-timeout=20", f"-artifact_prefix={out}/{name}-", str(seeds)], one
    )
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--only", nargs="+", default=[*SEEDS], choices=[*SEEDS])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # fuzz the one target in this process
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.here:
        fuzz(options.only[0], options.out, options.seconds)
        return
    failed = False
    for name in options.only:
        command = [sys.executable, __file__, "--out", str(options.out), "--seconds", str(options.seconds)]
        ended = subprocess.run(
            [*command, "--only", name, "--here"], capture_output=True, text=True, errors="replace", check=False
        )
        said = ended.stdout + ended.stderr
        runs = re.findall(r"^#(\d+)\s.*?cov: (\d+)", said, re.MULTILINE)
        tried, reached = runs[-1] if runs else ("0", "0")
        print(f"{name}: {tried} inputs, {reached} places reached, {'FAILED' if ended.returncode else 'none failed'}")
        if ended.returncode:
            failed = True
            print(said[-3000:], flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
