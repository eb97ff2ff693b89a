"""Seconds a block and peak memory on blocks of a large model's shape, reprune beside the textbook procedure.

    python benchmarks/blocks.py --out FOLDER --device cuda [--hidden 4096 --intermediate 11008 --heads 32 --blocks 3]
        [--samples 256] [--seqlen 1024] [--epochs 10] [--rungs BR+GP BR+GP+CR] [--set solver.micro_batch_size=2]

By default the blocks are those of Llama-7B and the setting is the paper's, whose peaks are 5.7 GB (BR+GP) and 10.6 GB
(BR+GP+CR), one block or two at a time. Writes a Llama of random weights and a text of random words, runs each way in a
process of its own (SparseGPT, 50 %), and prints a Markdown table. The textbook holds the whole model on the device, of
which reprune holds a window; so beside its peak stands that without the other blocks. Needs no network; runs on a CPU
with smaller numbers, too.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from runs import add_shape, llama_of_shape, prune, random_text, textbook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    add_shape(parser)
    for name, value in (("blocks", 3), ("samples", 256), ("epochs", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rungs", nargs="+", default=["BR+GP", "BR+GP+CR"])
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = llama_of_shape(options.out / "model", options, options.blocks)
    text = random_text(options.out / "random.txt", 2 * options.samples * options.seqlen)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{name}; torch {torch.__version__}; blocks of {options.hidden}/{options.intermediate}, ", end="")
    print(f"{options.samples} x {options.seqlen} tokens, {options.epochs} epochs\n")
    print("| rung | way | seconds a block | peak memory (GB) | without the other blocks (GB) |\n|---|---|---|---|---|")
    for rung in options.rungs:
        common = {"calibration": text, "device": options.device}
        common |= {key: getattr(options, key) for key in ("samples", "seqlen", "epochs")}
        for way, run in (("textbook", _textbook), ("reprune", _reprune)):
            out = options.out / "sparse"
            shutil.rmtree(out, ignore_errors=True)
            found = run(model, out, rung, common, options)
            print(f"| {rung} | {way} | " + " | ".join(f"{value:.2f}" for value in found) + " |", flush=True)


def _textbook(
    model: Path, out: Path, rung: str, common: dict[str, Any], options: argparse.Namespace
) -> tuple[float, float, float]:
    found = textbook(model, out, rung, common)
    peak = found["peak_device"] or found["peak"]
    weights = 4 * (4 * options.hidden**2 + 3 * options.hidden * options.intermediate)
    others = options.blocks - (2 if "CR" in rung else 1)
    return found["seconds_a_block"], peak / 1e9, (peak - others * weights) / 1e9


def _reprune(
    model: Path, out: Path, rung: str, common: dict[str, Any], options: argparse.Namespace
) -> tuple[float, float, float]:
    record = prune(model, out, {"pruner": "sparsegpt", "reconstruct": rung, **common}, options.set)
    peak = record["peak_memory_bytes"]["device"] or record["peak_memory_bytes"]["host"]
    return record["seconds"] / options.blocks, peak / 1e9, peak / 1e9


if __name__ == "__main__":
    main()
