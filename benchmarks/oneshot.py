"""llm-compressor's `oneshot` on samples of tokens, for `benchmarks/llm_compressor.py`; run by a Python that has it.

    python benchmarks/oneshot.py MODEL --rows FILE --pruner PRUNER --sparsity S --dtype DTYPE --out FOLDER

FILE has one sample a line, with its `token_ids`. All linears of the blocks are pruned, and no others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

MODIFIERS = {"sparsegpt": "SparseGPTModifier", "wanda": "WandaPruningModifier"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--pruner", choices=MODIFIERS, required=True)
    parser.add_argument("--sparsity", required=True, help="a share, or N:M")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from llmcompressor import modifiers, oneshot  # reprune's environment lacks it

    rows = [json.loads(line)["token_ids"] for line in options.rows.read_text(encoding="utf-8").splitlines()]
    of_pattern = ":" in options.sparsity
    modifier = getattr(modifiers.pruning, MODIFIERS[options.pruner])(
        sparsity=0.5 if of_pattern else float(options.sparsity),
        mask_structure=options.sparsity if of_pattern else "0:0",
        targets=["Linear"],
        ignore=["re:.*lm_head"],
    )
    oneshot(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)),
        tokenizer=AutoTokenizer.from_pretrained(options.model),
        dataset=Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]),
        recipe=[modifier],
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
        shuffle_calibration_samples=False,
        save_compressed=False,
        output_dir=str(options.out),
    )


if __name__ == "__main__":
    main()
