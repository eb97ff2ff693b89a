"""How fast perplexity is measured, against a plain loop over `model(x, labels=x).loss`; the two alternate.

    python benchmarks/perplexity.py MODEL --text test.txt [--seqlen 2048] [--windows 4] [--repeats 3]

Each way runs in a process of its own, so that its peak memory is its own. All are started first and then take turns, so
that other load on the machine affects all alike. The plain loop takes one window at a time without gradients, with the
model in the dtype that Transformers loads it in by default, and in float32. Prints Markdown tables: medians, and the
range in brackets.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from turns import serve, spread, take_turns

from reprune.doors.evaluation.perplexity import perplexity
from reprune.doors.evaluation.protocols import Cut, cut_text, open_text
from reprune.engine.peak_memory import forget_peak_memory
from reprune.model.block import Precision
from reprune.model.locate import locate_model
from reprune.model.whole import load_model

WAYS = ("reprune bfloat16", "plain as loaded", "reprune float32", "plain float32")
CLOCKS = ("seconds", "busy")
RATIOS = (
    ("reprune bfloat16", "plain as loaded"),
    ("reprune bfloat16", "plain float32"),
    ("reprune float32", "plain float32"),
)


def measurer(way: str, folder: Path, ids: torch.Tensor) -> Callable[[], float]:
    """Load the model; returns a function that measures its perplexity on ids (windows, tokens)."""
    if way.startswith("reprune"):
        precision = Precision(torch.bfloat16 if way.endswith("bfloat16") else torch.float32)
        model = load_model(folder, torch.device("cpu"), precision=precision)
        return lambda: perplexity(model, ids, precision)
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, **({"dtype": torch.float32} if "float32" in way else {}))
    plain.eval()

    @torch.no_grad()
    def loop() -> float:
        return math.exp(sum(plain(x, labels=x).loss.item() for x in ids.split(1)) / len(ids))

    return loop


def work(way: str, options: argparse.Namespace) -> None:
    """In a worker: measure when asked to."""
    ids = windows(options)
    forget_peak_memory("cpu")
    measure = measurer(way, locate_model(options.model), ids)
    serve(lambda: {"perplexity": measure(), "tokens": ids[:, 1:].numel()})


def windows(options: argparse.Namespace) -> torch.Tensor:
    cut = Cut.of(None, options.seqlen, options.windows)
    return cut_text(locate_model(options.model), open_text(options.text), cut).ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options)
        return
    found = take_turns(options.ways, options.repeats)
    exact = found[0].get("plain float32", {}).get("perplexity")
    print(
        f"{options.windows} windows of {options.seqlen} tokens, {options.repeats} rounds; {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {version('torch')}, Transformers {version('transformers')}\n"
    )
    print("| way | tokens/s | tokens/CPU-s | peak memory | perplexity | off plain float32 |\n|---|---|---|---|---|---|")
    speeds = {
        way: [[one[way]["tokens"] / one[way][clock] for one in found] for clock in CLOCKS] for way in options.ways
    }
    for way in options.ways:
        value = found[0][way]["perplexity"]
        off = "" if exact is None else f"{abs(value / exact - 1):.1e}"
        peak = max(one[way]["peak"] for one in found)
        said = " | ".join(spread(speed, 0) for speed in speeds[way])
        print(f"| {way} | {said} | {peak / 1e9:.2f} GB | {value:.4f} | {off} |")
    print("\n| in the same round | times as fast | by CPU time |\n|---|---|---|")
    for ours, plain in RATIOS:
        if ours in speeds and plain in speeds:
            pairs = zip(speeds[ours], speeds[plain], strict=True)
            ratios = [[one / other for one, other in zip(*pair, strict=True)] for pair in pairs]
            print(f"| {ours} : {plain} | {' | '.join(spread(ratio, 2) for ratio in ratios)} |")


if __name__ == "__main__":
    main()
