"""Time and memory against blocks, hidden size, samples and sample length; and forecasts for large models.

    python benchmarks/scale.py --out FOLDER [--only blocks hidden samples seqlen large several] [--device cpu]

Runs `reprune prune` (SparseGPT, BR+GP, 2 epochs) on Llamas of random weights, one quantity varied at a time, each run
in a process of its own, and compares each with the forecast of `reprune plan`. A straight line is fitted to each
quantity (to the square of the hidden size, as the weights grow with it), and the point furthest off the line is named.
Then it forecasts Llama-7B, 70B and 405B by `reprune plan --on`. Of these models only the configuration and the headers
of their tensors exist, in files without contents. Last come the hours of 7B and 70B on several GPUs.
Writes FOLDER/scale.json and FOLDER/scale.md. Started again, it does the runs that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import peaks, planned, prune, random_llama, random_text, write_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from reprune.engine.machines import find_machine

BASE = {"blocks": 4, "hidden": 512, "samples": 32, "seqlen": 256}
VARIED = {
    "blocks": (4, 8, 16, 32),
    "hidden": (256, 512, 1024, 2048),
    "samples": (16, 32, 64, 128),
    "seqlen": (128, 256, 512, 1024),
}
POWER = {"blocks": 1, "hidden": 2, "samples": 1, "seqlen": 1}
SHAPES = {  # hidden, intermediate, blocks, heads, key-value heads, words: from their papers and configurations
    "Llama-7B": (4096, 11008, 32, 32, 32, 32000),
    "Llama-70B": (8192, 28672, 80, 64, 8, 32000),
    "Llama-405B": (16384, 53248, 126, 128, 8, 128256),
}
PARTS = [*VARIED, "large", "several"]
CREWS = ((1, "nvlink"), (8, "nvlink"), (64, "100g"))  # processes, each with a GPU, and their network
COMPACT, LESS = "solver.compact=true", ["solver.micro_batch_size=1", "solver.checkpointing=true"]
SPARING = [[], [COMPACT], [COMPACT, *LESS], ["solver.rank=64", *LESS]]  # the first that fits is taken


def run(point: dict[str, int], out: Path, device: str) -> dict[str, Any]:
    """One run, and its forecast."""
    model = random_llama(
        out / f"llama-{point['blocks']}-{point['hidden']}",
        hidden_size=point["hidden"],
        intermediate_size=3 * point["hidden"],
        num_hidden_layers=point["blocks"],
        num_attention_heads=point["hidden"] // 64,
        num_key_value_heads=point["hidden"] // 64,
    )
    text = random_text(out / "random.txt", 2 * max(VARIED["samples"]) * max(VARIED["seqlen"]))
    flags = {"pruner": "sparsegpt", "reconstruct": "BR+GP", "calibration": str(text), "epochs": 2, "device": device}
    flags |= {name: point[name] for name in ("samples", "seqlen")}
    forecast = planned(model, flags)
    record = prune(model, out / "sparse", flags)
    memory, expected = peaks(record, forecast)
    return {
        "seconds": record["seconds"],
        "memory": memory,
        "forecast_seconds": forecast["seconds"],
        "forecast_memory": expected,
    }


def line(values: list[int], found: list[float], power: int) -> str:
    """How far the furthest point is from a straight line through all, and the power with which values grow."""
    x, y = np.array(values, dtype=float) ** power, np.array(found)
    slope, start = np.polyfit(x, y, 1)
    off = (y - (slope * x + start)) / y
    worst = int(np.abs(off).argmax())
    growth = np.log(y[-1] / y[0]) / np.log(x[-1] / x[0])
    return f"off a straight line by {off[worst]:+.0%} at {values[worst]}; grows with its power {growth:.2f}"


def without_contents(folder: Path, shape: tuple[int, ...]) -> Path:
    """Write a Llama whose files have headers and the right sizes, but take no disk; returns its folder."""
    hidden, intermediate, blocks, heads, kv_heads, words = shape
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=words, max_position_embeddings=4096, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    write_tokenizer(folder)
    with torch.device("meta"):
        names = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    of: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, dims in names.items():
        part = name.split(".")[2] if name.startswith("model.layers.") else "outside"
        of.setdefault(f"model-{part}.safetensors", {})[name] = dims
    for file, tensors in of.items():
        header, end = {}, 0
        for name, dims in tensors.items():
            begin, end = end, end + 2 * int(np.prod(dims))
            header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(folder / file, 8 + len(text) + end)
    index = {name: file for file, tensors in of.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def large(name: str, rung: str, machine: str, out: Path) -> dict[str, Any]:
    """The forecast for the paper's setting, with settings that spare memory if it does not fit without them."""
    model = without_contents(out / name, SHAPES[name])
    flags = {"pruner": "sparsegpt", "reconstruct": rung, "calibration": "manual", "samples": 256, "seqlen": 1024}
    limit = find_machine(machine).memory_bytes
    tried: dict[str, Any] = {}
    for settings in SPARING:
        tried = {**planned(model, {**flags, "on": machine}, settings), "settings": settings}
        tried["fits"] = tried["device_bytes"] <= limit
        if tried["fits"] or rung == "LR":
            break
    return tried


def several(name: str, batch: int, ranks: int, network: str, out: Path) -> float:
    """The forecast hours of BR+GP on so many H100s, with 1024 samples of 1024 tokens."""
    model = without_contents(out / name, SHAPES[name])
    flags = {"pruner": "sparsegpt", "reconstruct": "BR+GP", "calibration": "manual", "samples": 1024, "seqlen": 1024}
    more = {"batch_size": batch, "on": "h100", "ranks": ranks, "network": network}
    return planned(model, {**flags, **more})["seconds"] / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "scale.json"
    done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def once(key: str, make: Callable[[], Any]) -> Any:
        if key not in done:
            done[key] = make()
            file.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
            print(key, done[key], flush=True)
        return done[key]

    parts = [f"torch {torch.__version__}, {torch.get_num_threads()} threads"]
    for name in (name for name in VARIED if name in options.only):
        rows = []
        for value in VARIED[name]:
            point = {**BASE, name: value}
            found = once(
                ", ".join(f"{key} {count}" for key, count in point.items()),
                lambda p=point: run(p, options.out, options.device),
            )
            rows.append((value, found))
        parts.append(_table(name, rows))
    if "large" in options.only:
        lines = [
            "| model | rung | on | hours | device memory | host memory | disk | with |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for model in SHAPES:
            for rung in ("LR", "BR+GP", "BR+GP+CR"):
                for machine in ("h100", "4090"):
                    key = f"{model}, {rung}, {machine}"
                    found = once(key, lambda a=(model, rung, machine): large(*a, options.out))
                    cells = [f"{found['seconds'] / 3600:.1f}", f"{found['device_bytes'] / 1e9:.1f} GB"]
                    cells += [f"{found['memory_bytes'] / 1e9:.0f} GB", f"{found['disk_bytes'] / 1e9:.0f} GB"]
                    if not found["fits"]:
                        cells[1] += ", does not fit"
                    lines.append(
                        f"| {key.replace(', ', ' | ')} | {' | '.join(cells)} | {', '.join(found['settings'])} |"
                    )
        parts.append("\n".join(lines))
    if "several" in options.only:
        lines = ["| model | batch | one | 8, NVLink | 64, 100 Gbit/s |", "|---|---|---|---|---|"]
        for model in ("Llama-7B", "Llama-70B"):
            for batch in (8, 64):
                hours = [
                    once(
                        f"{model}, batch {batch}, {ranks}",
                        lambda a=(model, batch, ranks, network): several(*a, options.out),
                    )
                    for ranks, network in CREWS
                ]
                lines.append(f"| {model} | {batch} | {' | '.join(f'{one:.2f}' for one in hours)} |")
        parts.append("\n".join(lines))
    table = "\n\n".join(parts) + "\n"
    (options.out / "scale.md").write_text(table, encoding="utf-8")
    print(table)


def _table(name: str, rows: list[tuple[int, dict[str, Any]]]) -> str:
    lines = [f"| {name} | seconds | forecast | memory (GB) | forecast |", "|---|---|---|---|---|"]
    for value, one in rows:
        seconds, memory = one["seconds"], one["memory"]
        lines.append(
            f"| {value} | {seconds:.1f} | {one['forecast_seconds']:.1f} ({one['forecast_seconds'] / seconds - 1:+.0%}) "
            f"| {memory / 1e9:.2f} | {one['forecast_memory'] / 1e9:.2f} ({one['forecast_memory'] / memory - 1:+.0%}) |"
        )
    values = [value for value, _ in rows]
    fits = (f"\n{what}: {line(values, [one[what] for _, one in rows], POWER[name])}" for what in ("seconds", "memory"))
    lines += fits
    return "\n".join(lines)


if __name__ == "__main__":
    main()
