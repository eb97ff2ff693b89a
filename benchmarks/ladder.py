"""The paper's ladder on one model: pruners x rungs x seeds, each cell `reprune prune` and `reprune evaluate`.

    python benchmarks/ladder.py MODEL --calibration valid.txt --test test.txt --out ladder

Cells run one after another, each command in its own process; a cell whose line is in OUT/cells.jsonl is not run
again. Prints, and writes to OUT/table.md, one Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

PRUNERS = ("magnitude", "wanda", "sparsegpt")
RUNGS = ("LR", "BR", "BR+GP", "BR+GP+CR")


def reprune(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "reprune", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def evaluate(model: str | Path, options: argparse.Namespace) -> float:
    said = reprune("evaluate", str(model), "--text", options.test, "--seqlen", "512", "--windows", "12", "-q")
    return float(said)


def run_cell(pruner: str, rung: str, seed: int, options: argparse.Namespace) -> dict[str, object]:
    out = options.out / "model"
    shutil.rmtree(out, ignore_errors=True)
    reprune(
        "prune", options.model, "--out", str(out), "--pruner", pruner, "--sparsity", options.sparsity,
        "--reconstruct", rung, "--calibration", options.calibration, "--samples", str(options.samples),
        "--seqlen", str(options.seqlen), "--epochs", str(options.epochs), "--seed", str(seed), "-q",
        *[word for setting in options.set for word in ("--set", setting)],
    )  # fmt: skip
    record = json.loads((out / "reprune.json").read_text())
    return {
        "pruner": pruner,
        "rung": rung,
        "seed": seed,
        "perplexity": evaluate(out, options),
        "last": {key: value for key, value in record["blocks"][-1].items() if key != "matrices"},
        "seconds": record["seconds"],
        "memory": record["peak_memory_bytes"]["host"],
        "sparsity": record["sparsity"],
        "precision": record["recipe"]["precision"],
        "versions": record["versions"],
    }


def table(cells: list[dict], dense: float) -> str:
    def mean(values: list[float], digits: int) -> str:
        spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    lines = [
        f"dense perplexity {dense:.2f}",
        "",
        "| pruner | rung | seeds | calibration error | held-out error | perplexity | seconds | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pruner in PRUNERS:
        for rung in RUNGS:
            these = [cell for cell in cells if (cell["pruner"], cell["rung"]) == (pruner, rung)]
            if these:
                lines.append(
                    f"| {pruner} | {rung} | {len(these)} "
                    f"| {mean([100 * cell['last']['relative_calibration_error'] for cell in these], 2)} % "
                    f"| {mean([100 * cell['last']['relative_heldout_error'] for cell in these], 2)} % "
                    f"| {mean([cell['perplexity'] for cell in these], 2)} "
                    f"| {mean([cell['seconds'] for cell in these], 0)} "
                    f"| {max(cell['memory'] for cell in these) / 1e9:.2f} GB |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pruners", nargs="+", default=list(PRUNERS), choices=PRUNERS)
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS), choices=RUNGS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sparsity", default="0.5")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "cells.jsonl"
    cells = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    dense_file = options.out / "dense.json"
    if not dense_file.exists():
        dense_file.write_text(json.dumps(evaluate(options.model, options)))
    dense = json.loads(dense_file.read_text())
    done = {(cell["pruner"], cell["rung"], cell["seed"]) for cell in cells}
    for seed in options.seeds:
        for pruner in options.pruners:
            for rung in options.rungs:
                if (pruner, rung, seed) not in done:
                    cells.append(run_cell(pruner, rung, seed, options))
                    with log.open("a") as file:
                        file.write(json.dumps(cells[-1]) + "\n")
                    print(table(cells, dense), flush=True)
    shutil.rmtree(options.out / "model", ignore_errors=True)
    said = (
        f"{platform.machine()}, {os.cpu_count()} cores, {json.dumps(cells[-1]['versions'])}\n\n{table(cells, dense)}\n"
    )
    (options.out / "table.md").write_text(said)
    print(said)


if __name__ == "__main__":
    main()
