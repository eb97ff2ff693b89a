"""Memory depends on the window, not on the model: prunes a random Llama of over 6 GB and watches anonymous memory.

    python benchmarks/memory.py --out FOLDER [--blocks 46] [--device cpu]

Writes the model shard by shard (bfloat16, hidden size 2048), runs `reprune prune` (Wanda, LR) on it in a process of
its own, and prints the peak of that process's anonymous resident memory, read from /proc every 50 ms (Linux).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from runs import pruning, watched, write_tokenizer
from safetensors.torch import save_file
from transformers import LlamaConfig

HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 8192, 32000


def write_model(folder: Path, blocks: int) -> None:
    """Write the model."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=blocks, num_attention_heads=16,
        num_key_value_heads=16, vocab_size=VOCABULARY, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    files: dict[str, str] = {}
    total = 0

    def write(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        nonlocal total
        tensors = {
            key: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else (torch.randn(shape, generator=generator) * 0.02).bfloat16()
            for key, shape in shapes.items()
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files.update(dict.fromkeys(tensors, name))
        total += sum(tensor.nbytes for tensor in tensors.values())

    attention = {f"self_attn.{key}_proj": (HIDDEN, HIDDEN) for key in "qkvo"}
    wide = {"mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN)}
    linears = {**attention, **wide, "mlp.down_proj": (HIDDEN, INTERMEDIATE)}
    norms = {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    for index in range(blocks):
        shapes = {f"model.layers.{index}.{key}.weight": shape for key, shape in {**linears, **norms}.items()}
        write(f"model-{index:05d}.safetensors", shapes)
    outside = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    write("model-outside.safetensors", {f"{key}.weight": shape for key, shape in outside.items()})
    index_file = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    write_tokenizer(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=46)
    parser.add_argument("--reconstruct", default="LR")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model, result = options.out / "random-llama", options.out / "sparse"
    shutil.rmtree(result, ignore_errors=True)
    if not (model / "tokenizer.json").exists():
        shutil.rmtree(model, ignore_errors=True)
        write_model(model, options.blocks)
    total = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    flags = {"pruner": "wanda", "reconstruct": options.reconstruct, "calibration": "manual", "device": options.device}
    flags |= {"samples": 8, "seqlen": 128, "epochs": 1, "out": result}
    took = watched(pruning(model, flags), "RssAnon")
    print(
        f"model {total / 1e9:.2f} GB on disk, {options.blocks} blocks; Wanda, {options.reconstruct}: "
        f"{took['seconds']:.0f} s, peak anonymous resident memory {took['peak'] / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
