"""The main job on every causal language model that the installed Transformers registers, each in a tiny size.

    python benchmarks/architectures.py --out FOLDER [--only llama mixtral ...] [--jobs 2] [--page docs/architectures.md]

With --parts: on every model that reads images or audio too, each as a whole, instead.

Each architecture's default configuration is shrunk, built with random weights and saved. From disk it is pruned with
Wanda 2:4, BR+GP and with SparseGPT 50 %, BR+GP+CR (2 samples), and with LR by both pruners for comparison. Then these
are checked:

- streaming: each block's outputs under streaming equal those in the whole model (1e-5, relative, float32);
- predictions: the logits computed from the last block's states, for distillation, equal those of the whole model
  (1e-5), or reprune says that there are none;
- sparsity: every linear of every block, except routers of experts, is on record and has its zeros;
- error: the last block's calibration error is not above LR's with the same pruner (without the guard, which compares
  another error);
- outside: every tensor outside the blocks is bit-identical to the original;
- reloaded: plain Transformers loads the result with no tensor missing, unexpected or of another shape, its blocks give
  the same outputs as under streaming, and `reprune verify` finds nothing.

Prints a line for each model: passed, refused (reprune says why), failed, or not built (Transformers itself fails here).
Writes FOLDER/architectures.json (or several_parts.json) and, with --page, the page with the tables of both. Started
again, it does what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alone import read, sweep, sweep_parser
from main_job import examine
from tiny_models import CAUSAL, SEVERAL_PARTS, write_text

CAUSAL_FILE, PARTS_FILE = "architectures.json", "several_parts.json"
OUTCOMES = ("passed", "refused", "failed", "not built")


def main() -> None:
    parser = sweep_parser(__doc__)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    write_text(options.out)
    kinds, file = (SEVERAL_PARTS, PARTS_FILE) if options.parts else (CAUSAL, CAUSAL_FILE)

    def say(name: str, outcome: dict[str, Any]) -> None:
        print(f"{name:<28} {outcome['outcome']:<9} {outcome['why']}"[:400], flush=True)

    found = sweep(kinds, options.only, partial(examine, kinds), options.out / file, options.jobs, say)
    print(summary(found))
    if options.page:
        options.page.write_text(
            page(*(read(options.out / name) for name in (CAUSAL_FILE, PARTS_FILE))), encoding="utf-8"
        )
    sys.exit(any(one["outcome"] == "failed" for one in found.values()))


def summary(found: Mapping[str, Mapping[str, Any]]) -> str:
    counts = {outcome: sum(one["outcome"] == outcome for one in found.values()) for outcome in OUTCOMES}
    built = len(found) - counts["not built"]
    share = counts["passed"] / max(built, 1)
    return (
        f"{len(found)} registered, {built} built: "
        + ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if outcome != "not built")
        + f" ({share:.1%} passed)"
    )


INTRODUCTION = """# Architectures

There is no list of supported architectures: reprune finds out what a model is made of by running it
([how](architecture.md)). Only a trial shows whether this works. This table has a trial of every causal language model
that Transformers registers:

    python benchmarks/architectures.py --out sweep --page docs/architectures.md

Each default configuration is shrunk (4 blocks of width 64), built with random weights, saved, and pruned from disk with
Wanda 2:4, BR+GP and with SparseGPT 50 %, BR+GP+CR (2 samples of 32 tokens). A model has passed if

- every linear of every block that runs on text has its zeros (except routers of experts);
- plain Transformers loads the result without a missing or unexpected tensor, and computes the same as reprune did block
  by block (1e-5);
- the last block's calibration error is not above that of pruning alone (without the guard, which compares another
  error);
- `reprune verify` finds nothing.

This tests the form only; it says nothing about quality. "Not built" are configurations that Transformers itself does
not build or run on their own. (gemma3n needs the package timm for its images.) Of an encoder-decoder such as BART, the
decoder is built here, of which Transformers makes a model of its own (`BartForCausalLM`); the whole model is refused.

A refused model is refused before anything is written, for the reason in the table. Published configurations are not
always the default ones. In GLM-5 (glm_moe_dsa, glm5_next) and Mistral Large 4 (mistral_large4), as in HY 4 (hy_v4),
some blocks may use the tokens that an earlier block's indexer has chosen (`shared` among their `indexer_types`).
These pass too, with 8 tokens chosen of 32 as well as with all.

All of this is in float32 on the CPU. Most real runs have products in bfloat16, and many are on a GPU. So the same
models are also pruned in these ways (SparseGPT 50 %, BR+GP), as far as a machine without a GPU can tell:

    python benchmarks/devices.py --out sweep

The device there is simulated: it computes on the CPU, refuses CPU tensors among its own as CUDA does, and its autocast
has CUDA's rules. Of the 186 models that can be pruned, all work in float32 on that device, all but ergo and xmod in
bfloat16 and in float16, and all but these two and dbrx in bfloat16 on the CPU. Those three combine tensors of two
dtypes; with `precision: auto`, the default, they are run in float32, and a note says so.
"""


PARTS = """
## Models that read images or audio too

Models of several parts, such as Gemma 3 or Qwen2.5-VL, are calibrated on text alone. The blocks of their language model
are pruned. The towers for images and audio, and the modules that connect them to the language model, stay as they are.
This table has everything that Transformers registers as reading more than text, or as transcribing speech:

    python benchmarks/architectures.py --parts --out sweep --page docs/architectures.md

Models are built and pruned as above, each as a whole of its own class, and pass by the same conditions; in addition
every tensor outside the blocks must be bit-identical. Here "not built" also covers models whose own forward fails on
text in this release of Transformers. (Llama 4's fails with images too; reprune prunes it, but nothing is known of its
quality.) Refused are encoder-decoders, and models that need an image or sound to run. ERNIE 4.5 VL has experts for
images alone; with the flag that its row names they stay dense, and the model is pruned. No model is shown an image
here; one test shows an image to a Gemma 3, dense and sparse (`tests/engine/test_parts.py`).
"""


def page(causal: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """The page of the documentation."""
    versions = f"with Transformers {version('transformers')}, torch {version('torch')}"
    lines = [INTRODUCTION, f"{summary(causal)}, {versions}.", "", *table(causal)]
    if parts:
        lines += [PARTS, f"{summary(parts)}, {versions}.", "", *table(parts)]
    return "\n".join(lines) + "\n"


def table(found: Mapping[str, Any]) -> list[str]:
    """A row for each architecture."""
    lines = ["| architecture | outcome | matrices pruned | streaming off by | why |", "|---|---|---|---|---|"]
    for name, one in sorted(found.items()):
        experts = f", {one['experts']} of experts in a block" if one.get("experts") else ""
        matrices = f"{one['matrices']}{experts}" if "matrices" in one else ""
        streaming = f"{one['streaming']:.0e}" if "streaming" in one else ""
        why = one["why"].replace("|", "/").replace("dense: ", "")
        lines.append(f"| {name} | {one['outcome']} | {matrices} | {streaming} | {why} |")
    return lines


if __name__ == "__main__":
    main()
