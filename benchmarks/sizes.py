"""Does the ladder of reconstruction hold, and overfitting grow, with a model's size? A study of each, in one table.

    python benchmarks/sizes.py MODEL [MODEL ...] --out FOLDER --calibration valid.txt --text test.txt [--seeds 0 1 2]

The models are those of `train.py`, or any others. Each is pruned with SparseGPT to 50 % by LR, BR, BR+GP and BR+GP+CR
without the guard, 64 samples of 256 tokens, 10 epochs: the paper's plain procedure. "Overfitting" is the last block's
relative error on the test text divided by that on the calibration samples. With several seeds: the mean, the lowest and
the highest value. Started again, it does what is missing. Writes FOLDER/sizes.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RUNGS = ("LR", "BR", "BR+GP", "BR+GP+CR")


def study(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The study of one model."""
    out = options.out / model.name
    command = [
        *(sys.executable, "-m", "reprune", "study", str(model), "--out", str(out), "--pruners", "sparsegpt"),
        *("--rungs", *RUNGS, "--seeds", *options.seeds, "--set", "guard=off"),
        *("--calibration", options.calibration, "--samples", "64", "--seqlen", "256", "--epochs", "10"),
        *("--text", options.text, "--text-seqlen", "256", "--windows", "100"),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads((out / "study.json").read_text(encoding="utf-8"))
    return found


def spread(values: list[float], digits: int) -> str:
    """The mean of some numbers, and the least and the largest."""
    said = f"{sum(values) / len(values):.{digits}f}"
    return said if len(values) == 1 else f"{said} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def rows(name: str, found: dict[str, Any], text: str) -> list[str]:
    """The lines of one model."""
    lines = [f"| {name} | dense | - | - | {found['dense']['perplexity'][text]['perplexity']:.2f} | - |"]
    for rung in RUNGS:
        cells = [cell for cell in found["cells"] if cell["rung"] == rung and cell["status"] == "done"]
        calibration = [100 * cell["relative_calibration_error"] for cell in cells]
        test = [100 * cell["test_error"][text]["relative"] for cell in cells]
        perplexity = [cell["perplexity"][text] for cell in cells]
        ratio = [one / other for one, other in zip(test, calibration, strict=True)]
        lines.append(
            f"| {name} | {rung} | {spread(calibration, 3)} | {spread(test, 3)} | {spread(perplexity, 2)} | "
            f"{spread(ratio, 2)} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    head = ["| model | rung | calibration % | test % | perplexity | overfitting |", "|---|---|---|---|---|---|"]
    lines = head + [
        line for model in options.models for line in rows(model.name, study(model, options), Path(options.text).name)
    ]
    (options.out / "sizes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
