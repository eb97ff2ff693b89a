"""The main job against the textbook procedure: time, memory and quality of both, alternating, each in its own process.

    python benchmarks/speed.py MODEL --calibration SOURCE --text SOURCE --out FOLDER [--rungs LR BR+GP BR+GP+CR]
        [--variant "BR+GP solver.start=least-squares"] [--repeats 3] [--samples 32] [--seqlen 256] [--epochs 3]
        [--device cpu]

For each rung it runs `benchmarks/textbook.py`, `reprune prune`, and each --variant of that rung, which is reprune with
other settings. SparseGPT, 50 %, learning rate 2e-4, batch 8. Repeat n uses seed n for all of them.
Seconds are those of the whole process, from its start to the model on disk; memory is the peak of its resident pages,
or on a GPU of its allocations there. Not timed: the perplexity (protocol `short`) and the last block's error relative
to the dense model's, on --text.
Writes FOLDER/speed.json and FOLDER/speed.md: medians, and the range in brackets; ratios compare the same repeat.
Started again with the same settings, it does the repeats that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runs import prune, textbook
from turns import spread

import reprune
from reprune.engine.record import machine
from reprune.model.whole import collect_models


def run_textbook(rung: str, options: argparse.Namespace, seed: int, out: Path) -> dict[str, Any]:
    began = time.perf_counter()
    record = textbook(options.model, out, rung, _common(options, seed))
    return {
        "seconds": time.perf_counter() - began,
        "peak": record["peak" if options.device == "cpu" else "peak_device"],
    }


def run_reprune(rung: str, settings: list[str], options: argparse.Namespace, seed: int, out: Path) -> dict[str, Any]:
    began = time.perf_counter()
    record = prune(options.model, out, {"pruner": "sparsegpt", "reconstruct": rung, **_common(options, seed)}, settings)
    peaks = record["peak_memory_bytes"]
    return {"seconds": time.perf_counter() - began, "peak": peaks["host" if options.device == "cpu" else "device"]}


def _common(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    keys = ("calibration", "samples", "seqlen", "epochs", "device")
    return {key: getattr(options, key) for key in keys} | {"seed": seed}


def measure(out: Path, options: argparse.Namespace) -> dict[str, float]:
    """The perplexity and the last block's error of a sparse model."""
    how: dict[str, Any] = {"protocol": "short", "precision": "float32", "device": options.device}
    found = reprune.evaluate(out, options.text, **how)
    errors = reprune.errors_against(out, options.model, options.text, **how)
    collect_models()  # the runs are processes of their own, on the same GPU
    return {"perplexity": found.perplexity, "error": errors.blocks[-1].relative}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rungs", nargs="+", default=["LR", "BR+GP", "BR+GP+CR"])
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "speed.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"runs": {}}
    may_grow = ("out", "rungs", "variant", "repeats")
    made = {
        "machine": ", ".join([processor(), f"{os.cpu_count()} cores", *_gpu(options.device)]),
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"reprune": reprune.__version__},
        "settings": {key: Path(str(value)).name for key, value in vars(options).items() if key not in may_grow},
    }
    if found["runs"] and any(found.get(key) != value for key, value in made.items()):
        parser.error(f"{file} has runs of other settings, versions or another machine; give another --out")
    found |= made
    for seed in range(options.repeats):
        for rung in options.rungs:
            ways: dict[str, list[str] | None] = {f"textbook {rung}": None, f"reprune {rung}": []}
            ways |= {f"reprune {one}": one.split()[1:] for one in options.variant if one.split()[0] == rung}
            for way, settings in ways.items():
                runs = found["runs"].setdefault(way, {})
                if str(seed) in runs:
                    continue
                out = options.out / "model"
                shutil.rmtree(out, ignore_errors=True)
                took = (
                    run_textbook(rung, options, seed, out)
                    if settings is None
                    else run_reprune(rung, settings, options, seed, out)
                )
                runs[str(seed)] = {**took, **measure(out, options)}
                shutil.rmtree(out)
                file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
                print(f"{way}, seed {seed}: {runs[str(seed)]}", flush=True)
    table = _table(found, options.rungs)
    (options.out / "speed.md").write_text(table, encoding="utf-8")
    print(table)


def _table(found: dict[str, Any], rungs: list[str]) -> str:
    lines = [
        f"{found['machine']}; " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        ", ".join(f"{name} {value}" for name, value in found["settings"].items()),
        "",
        "| way | seconds | times as fast | peak memory (GB) | of the textbook's | perplexity | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for rung in rungs:
        baseline = found["runs"][f"textbook {rung}"]
        for way, runs in found["runs"].items():
            if way.split()[1] != rung:
                continue
            pairs = [(baseline[seed], run) for seed, run in runs.items() if seed in baseline]
            lines.append(f"| {way} | " + " | ".join(beside(pairs)) + " |")
    return "\n".join(lines) + "\n"


def beside(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> list[str]:
    """The cells of a way's row, from its runs, each paired with the baseline's run of the same repeat."""
    return [
        spread([run["seconds"] for _, run in pairs], 1),
        spread([plain["seconds"] / run["seconds"] for plain, run in pairs], 2),
        spread([run["peak"] / 1e9 for _, run in pairs], 2),
        spread([100 * run["peak"] / plain["peak"] for plain, run in pairs], 0) + " %",
        spread([run["perplexity"] for _, run in pairs], 2),
        spread([100 * run["error"] for _, run in pairs], 2) + " %",
    ]


def _gpu(device: str) -> list[str]:
    return [] if device == "cpu" else [machine(device)["device"]]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
