"""How far `reprune plan` is off: its forecasts of time and memory against the runs, over ten varied recipes.

    python benchmarks/forecast.py --out FOLDER --model MODEL [--only 1 5] [--device cpu]

Each recipe is planned and then run, each in a process of its own. The models are two Llamas of random weights with
MODEL's tokenizer, and MODEL itself in the last two recipes. Prints a Markdown table; time and memory are those that
`reprune.json` records, memory on a GPU that of its allocations there. Targets: memory within 15 %, time within 40 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from runs import peaks, planned, prune, random_llama
from transformers import AutoTokenizer

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
SHOWN = ("pruner", "samples", "seqlen", "epochs")


def like(given: Path, folder: Path, sizes: dict[str, int]) -> Path:
    """Write a model of random weights with another's tokenizer, unless it is there; returns its folder."""
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(given)
        random_llama(folder, **sizes, vocab_size=len(tokenizer))
        tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--only", type=int, nargs="+", default=[])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    models = {
        "small": like(options.model, options.out / "small", SMALL),
        "wide": like(options.model, options.out / "wide", WIDE),
        "given": options.model,
    }
    print("| model | rung, pruner, samples, tokens, epochs, settings | seconds | forecast | memory (GB) | forecast |")
    print("|---|---|---|---|---|---|")
    off: list[tuple[float, float]] = []
    for number, (name, rung, flags, settings) in enumerate(RECIPES, 1):
        if options.only and number not in options.only:
            continue
        flags = {"reconstruct": rung, "calibration": "manual", "device": options.device, **flags}
        plan = planned(models[name], flags, settings)
        record = prune(models[name], options.out / "sparse", flags, settings)
        seconds, (memory, expected) = record["seconds"], peaks(record, plan)
        off.append((plan["seconds"] / seconds - 1, expected / memory - 1))
        what = ", ".join([rung, *(str(value) for key, value in flags.items() if key in SHOWN), *settings])
        print(
            f"| {name} | {what} | {seconds:.1f} | {plan['seconds']:.1f} ({off[-1][0]:+.0%}) "
            f"| {memory / 1e9:.2f} | {expected / 1e9:.2f} ({off[-1][1]:+.0%}) |",
            flush=True,
        )
    for what, place in (("time", 0), ("memory", 1)):
        print(f"\n{what}: off by at most {max(abs(one[place]) for one in off):.0%}")


if __name__ == "__main__":
    main()
