"""How fast a model writes calibration texts, against the paper's procedure of one text at a time, alternating.

    python benchmarks/generation.py MODEL [--length 256] [--batch-size 64] [--texts 4] [--repeats 3]

Both do the same: a random first token, from the same candidates, four tokens by greedy choice, the same check of the
language, then sampling from the whole distribution up to --length tokens or the end of the text; no filter. "One at a
time" is Transformers' own `generate` with its cache of keys and values, with the model in the dtype it is loaded in.
One turn of it is --texts texts, one turn of reprune one round. Prints Markdown tables: medians, and the range in
brackets.
"""

from __future__ import annotations

import argparse
import itertools
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from turns import serve, spread, take_turns

from reprune.doors.devices import settle_precision
from reprune.doors.generation.local import LocalAuthor
from reprune.engine.peak_memory import forget_peak_memory
from reprune.model.locate import locate_model
from reprune.planning.generation.firsts import first_tokens
from reprune.planning.generation.language import language_of
from reprune.planning.generation.rounds import draft
from reprune.planning.generation.settings import PREFIX, Generation
from reprune.planning.tokenizer import load_tokenizer
from reprune.planning.tokens import beginning

OURS, PLAIN = "reprune", "one at a time"


def batched(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """A round: writes as many texts as begin with a prefix that passes."""
    folder = locate_model(options.model)
    tokenizer = load_tokenizer(folder, False)
    settings = Generation(length=options.length, batch_size=options.batch_size, filters=())
    author = LocalAuthor(folder, tokenizer, settings, "cpu", settle_precision("auto", "cpu"))
    firsts = first_tokens(tokenizer, author.rows)
    numbers = itertools.count()

    def measure() -> dict[str, Any]:
        kept = draft(author, firsts, settings, next(numbers)).lines
        return {"texts": len(kept), "tokens": sum(len(line["token_ids"]) for line in kept)}

    return measure


def one_at_a_time(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """The paper's procedure, with Transformers' own generation."""
    from transformers import AutoModelForCausalLM

    folder = locate_model(options.model)
    tokenizer = load_tokenizer(folder, False)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    firsts = first_tokens(tokenizer, len(model.get_input_embeddings().weight))
    start = beginning(tokenizer)
    generator = np.random.default_rng(0)
    torch.manual_seed(0)

    def text() -> int:
        """Write one text; returns its number of tokens."""
        while True:
            first = int(firsts.draw(generator, 1)[0])
            ids = torch.tensor([[*start, first]])
            greedy = {"do_sample": False, "top_k": None, "top_p": None}
            prefix = model.generate(ids, max_new_tokens=PREFIX - 1, min_new_tokens=PREFIX - 1, **greedy)
            if language_of(tokenizer.decode(prefix[0, len(start) :], skip_special_tokens=True)).code != "en":
                continue
            sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
            return model.generate(prefix, max_new_tokens=options.length - PREFIX, **sampling).shape[1] - len(start)

    def measure() -> dict[str, Any]:
        lengths = [text() for _ in range(options.texts)]
        return {"texts": len(lengths), "tokens": sum(lengths)}

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=(OURS, PLAIN), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        forget_peak_memory("cpu")
        serve((batched if options.worker == OURS else one_at_a_time)(options))
        return
    found = take_turns((OURS, PLAIN), options.repeats)
    print(
        f"texts of up to {options.length} tokens, {options.repeats} turns; {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {version('torch')}, Transformers {version('transformers')}\n"
    )
    print("| way | texts a turn | texts/min | tokens/s | peak memory |\n|---|---|---|---|---|")
    speeds = {way: [60 * one[way]["texts"] / one[way]["seconds"] for one in found] for way in (OURS, PLAIN)}
    for way in (OURS, PLAIN):
        tokens = [one[way]["tokens"] / one[way]["seconds"] for one in found]
        texts = spread([one[way]["texts"] for one in found], 0)
        peak = max(one[way]["peak"] for one in found)
        print(f"| {way} | {texts} | {spread(speeds[way], 1)} | {spread(tokens, 0)} | {peak / 1e9:.2f} GB |")
    ratios = [ours / plain for ours, plain in zip(speeds[OURS], speeds[PLAIN], strict=True)]
    print(f"\n{OURS} : {PLAIN}, in the same turn: {spread(ratios, 1)} times the texts")


if __name__ == "__main__":
    main()
