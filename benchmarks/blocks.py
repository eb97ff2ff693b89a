"""Seconds a block, and peak memory, on blocks of a large model's shape: reprune and the textbook procedure.

    python benchmarks/blocks.py --out FOLDER --device cuda [--hidden 4096 --intermediate 11008 --heads 32 --blocks 3]
        [--samples 64] [--seqlen 1024] [--epochs 10] [--rungs BR+GP BR+GP+CR] [--precisions float32 auto]
        [--set solver.micro_batch_size=2]

By default the blocks are those of Llama-7B and the setting is the paper's, whose peaks are 5.7 GB (BR+GP) and 10.6 GB
(BR+GP+CR), one block or two at a time. Only the samples are fewer, a quarter of the paper's 256: seconds grow with
them, peaks do not, except for the textbook's on a GPU. Writes a Llama of random weights and a text of random words,
runs each way in a process of its own (SparseGPT, 50 %), and prints a Markdown table. The textbook computes in float32,
reprune in float32 and in its default precision. The textbook holds the whole model and the states of all samples on the
device, reprune one window and a few batches; so the table also has the textbook's peak without the other blocks and, on
a GPU, without the states. Needs no network; with smaller numbers it runs on a CPU too. Started again with the same
options, it does what is missing (FOLDER/blocks.json).
"""

from __future__ import annotations

import argparse
import json
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
    for name, value in (("blocks", 3), ("samples", 64), ("epochs", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rungs", nargs="+", default=["BR+GP", "BR+GP+CR"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "auto"])
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = llama_of_shape(options.out / "model", options, options.blocks)
    text = random_text(options.out / "random.txt", 2 * options.samples * options.seqlen)
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "CPU"
    common = {"calibration": text, "device": options.device}
    common |= {key: getattr(options, key) for key in ("samples", "seqlen", "epochs")}
    rest = ("out", "rungs", "precisions")
    settings = {key: value for key, value in vars(options).items() if key not in rest}
    settings |= {"machine": name, "torch": torch.__version__}
    file = options.out / "blocks.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if found.get("settings") != settings:
        found = {"settings": settings, "runs": {}}
    print(f"{name}; torch {torch.__version__}; blocks of {options.hidden}/{options.intermediate}, ", end="")
    print(f"{options.samples} x {options.seqlen} tokens, {options.epochs} epochs\n")
    print("| rung | way | products | seconds a block | peak memory (GB) | of a window (GB) |")
    print("|---|---|---|---|---|---|")
    for rung in options.rungs:
        for precision in (None, *options.precisions):
            way = "textbook" if precision is None else "reprune"
            key = f"{rung} {way} {precision}"
            if key not in found["runs"]:
                out = options.out / "sparse"
                shutil.rmtree(out, ignore_errors=True)
                found["runs"][key] = (
                    _textbook(model, out, rung, common, options)
                    if precision is None
                    else _reprune(model, out, rung, common, options, precision)
                )
                file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            products, *numbers = found["runs"][key]
            print(f"| {rung} | {way} | {products} | " + " | ".join(f"{one:.2f}" for one in numbers) + " |", flush=True)


def _textbook(model: Path, out: Path, rung: str, common: dict[str, Any], options: argparse.Namespace) -> list[Any]:
    found = textbook(model, out, rung, common)
    peak = found["peak_device"] or found["peak"]
    weights = 4 * (4 * options.hidden**2 + 3 * options.hidden * options.intermediate)
    beside = weights * (options.blocks - (2 if "CR" in rung else 1))
    if found["peak_device"]:  # where the student's and the teacher's states are too, for BR also the first block's
        beside += 4 * options.samples * options.seqlen * options.hidden * (3 if rung == "BR" else 2)
    return ["float32", found["seconds_a_block"], peak / 1e9, (peak - beside) / 1e9]


def _reprune(
    model: Path, out: Path, rung: str, common: dict[str, Any], options: argparse.Namespace, precision: str
) -> list[Any]:
    flags = {"pruner": "sparsegpt", "reconstruct": rung, **common}
    record = prune(model, out, flags, [f"precision={precision}", *options.set])
    peak = record["peak_memory_bytes"]["device"] or record["peak_memory_bytes"]["host"]
    return [record["recipe"]["precision"], record["seconds"] / options.blocks, peak / 1e9, peak / 1e9]


if __name__ == "__main__":
    main()
