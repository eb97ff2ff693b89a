"""How far `reprune plan` is off: its forecast of time and memory beside what then happens, over ten varied recipes.

    python benchmarks/forecast.py --out FOLDER --model MODEL [--only 1 5]

Each recipe is planned and then run, each in a process of its own. The models are two Llamas of random weights with
MODEL's tokenizer, and MODEL itself in the last two recipes. Prints a Markdown table; time and memory are those that
`reprune.json` records. Targets: memory within 15 %, time within 40 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import reprune

SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}
WIDE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16}
RECIPES: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("small", "LR", {"pruner": "wanda", "samples": 64, "seqlen": 256}, []),
    ("small", "BR+GP", {"pruner": "sparsegpt", "samples": 32, "seqlen": 256, "epochs": 3}, []),
    ("small", "BR+GP+CR", {"pruner": "sparsegpt", "samples": 32, "seqlen": 128, "epochs": 2}, []),
    ("small", "BR", {"pruner": "magnitude", "samples": 64, "seqlen": 128, "epochs": 2}, ["guard=off"]),
    ("wide", "LR", {"pruner": "sparsegpt", "samples": 32, "seqlen": 512}, []),
    ("wide", "BR+GP", {"pruner": "wanda", "samples": 16, "seqlen": 512, "epochs": 2}, ["solver.micro_batch_size=2"]),
    ("wide", "LR", {"pruner": "sparsegpt", "samples": 32, "seqlen": 256}, ["solver.start=least-squares"]),
    ("wide", "BR+GP+CR", {"pruner": "wanda", "samples": 16, "seqlen": 256, "epochs": 2}, ["solver.rank=16"]),
    ("given", "LR", {"pruner": "wanda", "samples": 32, "seqlen": 256}, []),
    ("given", "BR+GP", {"pruner": "sparsegpt", "samples": 16, "seqlen": 256, "epochs": 2}, []),
]


def random_llama(folder: Path, sizes: dict[str, int], like: Path) -> Path:
    """Write a model of random weights, unless it is there."""
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(like)
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=2048))
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def planned(model: Path, rung: str, options: dict[str, Any], settings: list[str]) -> Any:
    return reprune.plan(model, reconstruct=rung, calibration="manual", settings=settings, **options).forecast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--only", type=int, nargs="+", default=[])
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = {
        "small": random_llama(options.out / "small", SMALL, options.model),
        "wide": random_llama(options.out / "wide", WIDE, options.model),
        "given": options.model,
    }
    if options.worker:
        name, rung, flags, settings = RECIPES[options.worker - 1]
        found = planned(models[name], rung, flags, settings)
        print(json.dumps({"seconds": found.seconds, "memory": found.memory_bytes}))
        return
    print("| model | rung, pruner, samples, tokens, epochs, settings | seconds | forecast | memory (GB) | forecast |")
    print("|---|---|---|---|---|---|")
    off: list[tuple[float, float]] = []
    for number, (name, rung, flags, settings) in enumerate(RECIPES, 1):
        if options.only and number not in options.only:
            continue
        again = [sys.executable, __file__, "--out", str(options.out), "--model", str(options.model)]
        said = subprocess.run([*again, "--worker", str(number)], check=True, capture_output=True, text=True).stdout
        plan = json.loads(said.splitlines()[-1])
        out = options.out / "sparse"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "reprune", "prune", str(models[name]), "--out", str(out), "--quiet"]
        command += ["--reconstruct", rung, "--calibration", "manual"]
        command += [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        command += [word for setting in settings for word in ("--set", setting)]
        subprocess.run(command, check=True)
        record = json.loads((out / "reprune.json").read_text(encoding="utf-8"))
        seconds, memory = record["seconds"], record["peak_memory_bytes"]["host"]
        off.append((plan["seconds"] / seconds - 1, plan["memory"] / memory - 1))
        what = ", ".join([rung, *map(str, flags.values()), *settings])
        print(
            f"| {name} | {what} | {seconds:.1f} | {plan['seconds']:.1f} ({off[-1][0]:+.0%}) "
            f"| {memory / 1e9:.2f} | {plan['memory'] / 1e9:.2f} ({off[-1][1]:+.0%}) |",
            flush=True,
        )
    for what, place in (("time", 0), ("memory", 1)):
        print(f"\n{what}: off by at most {max(abs(one[place]) for one in off):.0%}")


if __name__ == "__main__":
    main()
