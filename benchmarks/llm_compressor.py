"""Pruning with reprune and with llm-compressor on the same samples: time, memory, quality and masks, alternating.

    python benchmarks/llm_compressor.py MODEL --python PYTHON --documents FILE --text SOURCE --out FOLDER
        [--pruners wanda sparsegpt] [--sparsity 0.5] [--dtype float32] [--rungs LR] [--repeats 3] [--samples 32]
        [--seqlen 256]

PYTHON is the interpreter of a separate environment with `pip install llmcompressor`. FILE has one document a line, JSON
with its `text`. Repeat n draws its samples with seed n: the first tokens of documents that are long enough, and for
reprune an eighth as many again as held-out samples, its default. --dtype is that of llm-compressor's model and
products; reprune chooses its own.
Seconds are those of the whole process, from its start to the model on disk; memory is the peak of its resident pages.
Not timed, and by reprune for both: perplexity (protocol `short`) and the last block's error relative to the dense
model's, on --text, and the share of the pruned weights on whose mask both agree.
Writes FOLDER/llm_compressor.json and FOLDER/llm_compressor.md: medians, and the range in brackets; ratios compare the
same repeat. Started again with the same settings, it does what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from runs import pruning, watched, words
from safetensors.torch import load_file
from speed import beside, measure, processor
from transformers import AutoTokenizer
from turns import spread


def draw(options: argparse.Namespace, seed: int) -> tuple[Path, Path]:
    """Write calibration samples and held-out ones, each a document's first tokens; returns both files."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    documents = [json.loads(line)["text"] for line in options.documents.read_text(encoding="utf-8").splitlines()]
    random.Random(seed).shuffle(documents)
    rows = list[str]()
    for document in documents:
        if len(rows) == options.samples + options.heldout:
            break
        tokens = tokenizer(document).input_ids[: options.seqlen]
        if len(tokens) == options.seqlen:
            rows.append(json.dumps({"text": tokenizer.decode(tokens), "token_ids": tokens}) + "\n")
    files = options.out / "calibration.jsonl", options.out / "heldout.jsonl"
    for file, some in zip(files, (rows[: options.samples], rows[options.samples :]), strict=True):
        file.write_text("".join(some), encoding="utf-8")
    return files


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder, by name."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def agreement(ours: Path, theirs: Path) -> float:
    """The share of weights, in the matrices that we have pruned, that both keep or both set to zero."""
    of_theirs, same, weights = tensors(theirs), 0, 0
    for name, tensor in tensors(ours).items():
        if tensor.dim() == 2 and 4 * int((tensor == 0).sum()) > tensor.numel():
            same += int(((tensor == 0) == (of_theirs[name] == 0)).sum())
            weights += tensor.numel()
    return same / weights


def commands(options: argparse.Namespace, pruner: str, files: tuple[Path, Path]) -> dict[str, list[str]]:
    """The command of each way, without its folder; llm-compressor's comes first."""
    theirs = {"rows": files[0], "pruner": pruner, "sparsity": options.sparsity, "dtype": options.dtype}
    ours = {
        "pruner": pruner,
        "sparsity": options.sparsity,
        "calibration": files[0],
        "heldout": f"{files[1]}={options.heldout}",
        "samples": options.samples,
        "seqlen": options.seqlen,
    }
    script = Path(__file__).with_name("oneshot.py")
    found = {"llm-compressor": [options.python, str(script), options.model, *words(theirs)]}
    for rung in options.rungs:
        found[f"reprune {rung}"] = pruning(options.model, {"reconstruct": rung, **ours})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--python", required=True)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pruners", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--sparsity", default="0.5")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rungs", nargs="+", default=["LR"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.set_defaults(device="cpu")
    options = parser.parse_args()
    options.heldout = max(1, options.samples // 8)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "llm_compressor.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"runs": {}}
    ask = "from importlib.metadata import version; print(*map(version, ('llmcompressor', 'torch', 'transformers')))"
    theirs = subprocess.run([options.python, "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    made = {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": {
            "reprune": [version(name) for name in ("reprune", "torch", "transformers")],
            "llm-compressor": theirs,
        },
        "settings": {
            key: Path(str(getattr(options, key))).name
            for key in ("model", "documents", "text", "sparsity", "dtype", "samples", "seqlen")
        },
    }
    if found["runs"] and any(found.get(key) != value for key, value in made.items()):
        parser.error(f"{file} has runs of other settings, versions or another machine; give another --out")
    found |= made
    for seed in range(options.repeats):
        files = draw(options, seed)
        for pruner in options.pruners:
            _repeat(options, pruner, seed, commands(options, pruner, files), found["runs"])
            file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    table = _table(found)
    (options.out / "llm_compressor.md").write_text(table, encoding="utf-8")
    print(table)


def _repeat(
    options: argparse.Namespace, pruner: str, seed: int, ways: dict[str, list[str]], runs: dict[str, Any]
) -> None:
    """Run what one repeat lacks; llm-compressor's model stays until all are compared with it."""
    missing = [way for way in ways if str(seed) not in runs.get(f"{pruner}, {way}", {})]
    if not missing:
        return
    of_theirs = options.out / "llm-compressor"
    for way in dict.fromkeys(["llm-compressor", *missing]):
        out = of_theirs if way == "llm-compressor" else options.out / "reprune"
        shutil.rmtree(out, ignore_errors=True)
        with (options.out / "log.txt").open("w", encoding="utf-8") as log:
            took = watched([*ways[way], "--out", str(out)], "VmHWM", log)
        took |= measure(out, options)
        if way != "llm-compressor":
            took["agreement"] = agreement(out, of_theirs)
        runs.setdefault(f"{pruner}, {way}", {})[str(seed)] = took
        print(f"{pruner}, {way}, seed {seed}: {took}", flush=True)
    for folder in (of_theirs, options.out / "reprune"):
        shutil.rmtree(folder, ignore_errors=True)


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['machine']}; reprune, torch and transformers {' '.join(found['versions']['reprune'])}; "
        f"llm-compressor, torch and transformers {' '.join(found['versions']['llm-compressor'])}",
        ", ".join(f"{name} {value}" for name, value in found["settings"].items()),
        "",
        "| pruner | way | seconds | times as fast | peak memory (GB) | of theirs | perplexity | error | same mask |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in sorted(found["runs"].items()):
        pruner, way = name.split(", ")
        pairs = [(found["runs"][f"{pruner}, llm-compressor"][seed], run) for seed, run in runs.items()]
        same = spread([100 * run.get("agreement", 1.0) for _, run in pairs], 2) + " %"
        lines.append(f"| {pruner} | {way} | " + " | ".join([*beside(pairs), same]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
