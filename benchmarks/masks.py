"""Wanda's masks against the paper's formula in plain Transformers, on every causal language model in a tiny size.

    python benchmarks/masks.py --out FOLDER [--only llama mixtral ...] [--jobs 2]

Each model (as `benchmarks/architectures.py` builds it) is pruned to 50 % by Wanda's LR on 8 samples of 32 tokens. Then,
block by block, the dense model is given the pruned weights of the blocks before, all samples pass through the whole
model, and hooks record the inputs of each linear that is a module of its own, those of experts included. The expected
mask has the smaller half of |W| x ||X|| in each row, in float64 (Sun et al., 2024). Experts that are one parameter,
linears that are not called as modules, and those that are pruned in parts, each by its own inputs, cannot be compared
in this way.

Prints for each model how many matrices were compared, and the smallest share of a matrix's mask that agrees, or why the
model was not compared. Exits with 1 if a mask is another, or if a model cannot be compared although Transformers loads
it and reprune does not refuse it. Writes FOLDER/masks.json; started again, it does what is missing.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from alone import sweep, sweep_parser
from tiny_models import CAUSAL, SEQLEN, build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

import reprune
from reprune.errors import UnsupportedModelError

SAMPLES = 8
ALIKE = 0.999
"""The least share of a matrix's weights that must agree: sums in float32 may settle near ties differently."""


def write_rows(model: Path, file: Path) -> Tensor:
    """Write samples of random capital letters, one token each, as JSON lines; returns them (samples, tokens)."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    letters = torch.randint(65, 91, (SAMPLES, SEQLEN), generator=torch.Generator().manual_seed(0))
    texts = ["".join(map(chr, row)) for row in letters.tolist()]
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    lines = [{"text": text, "token_ids": row} for text, row in zip(texts, rows, strict=True)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return torch.tensor(rows)


def kept(weight: Tensor, inputs: Tensor) -> Tensor:
    """By the formula, the weights (rows, columns) that are kept, half of each row, given inputs (tokens, columns)."""
    scores = weight.double().abs() * inputs.double().square().sum(0).sqrt()
    dropped = scores.argsort(1)[:, : weight.shape[1] // 2]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, dropped, False)


def matrix(module: nn.Module, weight: Tensor) -> Tensor:
    return weight.T if isinstance(module, Conv1D) else weight


def block_of(name: str) -> int | None:
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


@torch.no_grad()
def compare(
    model: nn.Module, pruned: dict[str, Tensor], ids: Tensor, matrices: set[tuple[int, str]]
) -> dict[str, float]:
    """By linear, the share of its weights that both masks keep or both drop; `matrices` are those on record."""
    blocks: dict[int, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        number = block_of(name)
        if number is None or (number, name.partition(f".{number}.")[2]) not in matrices:
            continue
        if isinstance(module, nn.Linear | Conv1D):
            blocks.setdefault(number, {})[name] = module
    found = {}
    for number in sorted(blocks):
        seen: dict[str, list[Tensor]] = {}

        def see(_: nn.Module, given: tuple[Tensor], __: Any, *, entered: list[Tensor]) -> None:
            entered.append(given[0].flatten(0, -2))

        hooks = [
            module.register_forward_hook(partial(see, entered=seen.setdefault(name, [])))
            for name, module in blocks[number].items()
        ]
        model(input_ids=ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        for name, module in blocks[number].items():
            if seen[name]:
                by_formula = kept(matrix(module, module.get_parameter("weight")), torch.cat(seen[name]))
                ours = matrix(module, pruned[f"{name}.weight"]) != 0
                found[name] = (by_formula == ours).double().mean().item()
        for name, parameter in model.named_parameters():
            if block_of(name) == number:
                parameter.copy_(pruned[name])
    return found


def examine(model_type: str, out: Path) -> dict[str, Any]:
    """Build, prune and compare one model, in a folder that is removed afterwards."""
    folder = out / model_type
    folder.mkdir(exist_ok=True)
    try:
        try:
            build(CAUSAL, model_type, folder / "model")
            model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        except Exception as error:  # whatever a model raises
            return _not_compared("not loaded", error)
        return _examine(model, folder)
    except UnsupportedModelError as error:
        return _not_compared("refused", error)
    except Exception as error:  # whatever a model raises
        return _not_compared("failed", error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _not_compared(outcome: str, error: Exception) -> dict[str, Any]:
    return {"outcome": outcome, "compared": 0, "least": None, "why": f"{type(error).__name__}: {error}"[:300]}


def _examine(model: Any, folder: Path) -> dict[str, Any]:
    ids = write_rows(folder / "model", folder / "rows.jsonl")
    record = reprune.prune(
        folder / "model",
        folder / "out",
        pruner="wanda",
        sparsity=0.5,
        reconstruct="LR",
        calibration=folder / "rows.jsonl",
        heldout="manual=1",
        samples=SAMPLES,
        seqlen=SEQLEN,
        device="cpu",
        settings=["precision=float32", "pruner.min_tokens=0"],
    )
    pruned = AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32).state_dict()
    matrices = {(block["index"], matrix["name"]) for block in record["blocks"] for matrix in block["matrices"]}
    found = compare(model, pruned, ids, matrices)
    if not found:
        raise ValueError("none of its pruned linears is called as a module")
    return {"outcome": "compared", "compared": len(found), "least": min(found.values()), "why": ""}


def main() -> None:
    parser = sweep_parser(__doc__)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def say(name: str, outcome: dict[str, Any]) -> None:
        print(f"{name:<28} {outcome.get('compared', 0):>3} {outcome.get('least')} {outcome['why']}"[:200], flush=True)

    found = sweep(CAUSAL, options.only, examine, options.out / "masks.json", options.jobs, say)
    compared = {name: one for name, one in found.items() if one.get("compared")}
    unlike = [name for name, one in compared.items() if one["least"] < ALIKE]
    failed = [name for name, one in found.items() if one.get("outcome") == "failed"]
    matrices = sum(one["compared"] for one in compared.values())
    said = f"not alike: {', '.join(unlike) or 'none'}; failed: {', '.join(failed) or 'none'}"
    print(f"{len(compared)} models, {matrices} matrices compared; {said}")
    sys.exit(bool(unlike or failed))


if __name__ == "__main__":
    main()
