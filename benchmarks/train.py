"""Trains small models of real architectures on real text, to study pruning on more than one model.

    python benchmarks/train.py --out FOLDER --form llama --millions 3 --texts a.txt b.jsonl manual [--passes 2]

Forms: llama, opt and mixtral (4 experts, 2 a token), of about 1, 3 or 10 million weights. The tokenizer (byte-level BPE
of 4096 tokens) is trained on the same texts. Texts are any sources that reprune calibrates on, all documents of each.
Adam, with a learning rate for each size, a warm-up, and a decay to a tenth; batches of 4 x 256 tokens; products in
bfloat16 where the processor has them. A checkpoint is written every 200 steps, and the same command continues from it.
In the end FOLDER is an ordinary model folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from runs import byte_level
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from reprune.doors.devices import settle_precision
from reprune.planning.sources import find_source

VOCABULARY, TOKENS, BATCH, EVERY = 4096, 256, 4, 200
SIZES = {1: (128, 4, 4), 3: (224, 4, 7), 10: (384, 5, 6)}  # millions: hidden size, blocks, heads
RATES = {1: 3.125e-3, 3: 1e-3, 10: 6e-4}  # millions: the highest learning rate


def build(form: str, millions: int) -> Any:
    """The model with its architecture's random initial weights."""
    hidden, blocks, heads = SIZES[millions]
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "max_position_embeddings": 2 * TOKENS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    if form == "opt":
        return OPTForCausalLM(OPTConfig(**common, ffn_dim=4 * hidden, word_embed_proj_dim=hidden, dropout=0.0))
    inner = 32 * round(hidden * 8 / 3 / 32)
    if form == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, intermediate_size=inner))
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": heads}
    return MixtralForCausalLM(
        MixtralConfig(**common, **experts, intermediate_size=inner // 4 // 32 * 32, output_router_logits=True)
    )


def tokenizer(texts: list[str], folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, trained once on the texts; every text begins with BOS."""
    file = folder / "tokenizer.json"
    if not file.exists():
        raw = byte_level(texts, vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"])
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        raw.save(str(file))
    return PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def read(sources: list[str]) -> list[str]:
    """All documents of some sources."""
    found: list[str] = []
    for name in sources:
        found += list(find_source(name).load("train"))
    return found


def batches(ids: Tensor, passes: int) -> list[Tensor]:
    """The beginnings of all samples, in batches, shuffled anew in every pass."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.arange(0, len(ids) - TOKENS, TOKENS - 1)
    every: list[Tensor] = []
    for _ in range(passes):
        order = starts[torch.randperm(len(starts), generator=generator)]
        every += [batch for batch in order.split(BATCH) if len(batch) == BATCH]
    return every


def rate(step: int, steps: int, highest: float) -> float:
    """The learning rate: it rises over 100 steps, then falls along a cosine to a tenth."""
    warm = min((step + 1) / 100, 1.0)
    return highest * warm * (0.55 + 0.45 * math.cos(math.pi * step / steps))


def train(model: Any, ids: Tensor, options: argparse.Namespace, products: torch.dtype) -> None:
    """Take all remaining steps."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    state, every = options.out / "training", batches(ids, options.passes)
    first = _restore(model, optimizer, state)
    began, total = time.monotonic(), 0.0
    model.train()
    for step in range(first, len(every)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, len(every), RATES[options.millions])
        samples = torch.stack([ids[start : start + TOKENS - 1] for start in every[step]])
        samples = torch.cat([torch.ones(BATCH, 1, dtype=torch.int64), samples], dim=1)
        with torch.autocast("cpu", dtype=products, enabled=products != torch.float32):
            loss = model(input_ids=samples, labels=samples).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item() / EVERY
        if (step + 1) % EVERY == 0:
            _keep(model, optimizer, state, step + 1)
            seconds = (time.monotonic() - began) / (step + 1 - first)
            print(f"step {step + 1} of {len(every)}: loss {total:.3f}, {seconds:.2f} s a step", flush=True)
            total = 0.0


def _keep(model: Any, optimizer: torch.optim.Optimizer, folder: Path, step: int) -> None:
    """Write weights and moments; the file with their step is written last."""
    folder.mkdir(exist_ok=True)
    moments = {
        f"{number}/{name}": tensor
        for number, values in optimizer.state_dict()["state"].items()
        for name, tensor in values.items()
    }
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, tensors in (("weights", weights), ("moments", moments)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}-{step}.safetensors")
    (folder / "step.json").write_text(json.dumps(step), encoding="utf-8")
    for file in folder.glob("*.safetensors"):
        if not file.stem.endswith(f"-{step}"):
            file.unlink()


@torch.no_grad()
def _restore(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Load the last checkpoint; returns how many steps it has done."""
    if not (folder / "step.json").exists():
        return 0
    step = int(json.loads((folder / "step.json").read_text(encoding="utf-8")))
    kept: Mapping[str, Tensor] = load_file(folder / f"weights-{step}.safetensors")
    for name, parameter in model.named_parameters():
        parameter.copy_(kept[name])
    whole = optimizer.state_dict()
    for key, tensor in load_file(folder / f"moments-{step}.safetensors").items():
        number, name = key.split("/")
        whole["state"].setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict(whole)
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--form", choices=("llama", "opt", "mixtral"), required=True)
    parser.add_argument("--millions", type=int, choices=tuple(SIZES), required=True)
    parser.add_argument("--texts", nargs="+", required=True)
    parser.add_argument("--passes", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = read(options.texts)
    words = tokenizer(texts, options.out)
    ids = torch.cat([torch.tensor(words(text)["input_ids"]) for text in texts])
    model = build(options.form, options.millions)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.form}: {count / 1e6:.1f} million weights, {len(ids) / 1e6:.2f} million tokens", flush=True)
    train(model, ids, options, torch.bfloat16 if settle_precision("auto", "cpu") == "bfloat16" else torch.float32)
    model.to(torch.bfloat16).save_pretrained(options.out)
    words.save_pretrained(options.out)


if __name__ == "__main__":
    main()
