"""The procedure as the paper states it, written as plainly as possible: the baseline of `benchmarks/speed.py`.

    python benchmarks/textbook.py MODEL --out FOLDER --rung BR+GP --calibration SOURCE

The whole model in float32, one sample at a time; a Gram matrix for each linear; SparseGPT column by column with its
lazy updates of 128 columns (Frantar and Alistarh 2023); Adam over the parameters of a block or a window, weights
multiplied by their mask in each forward pass, gradients of a batch summed sample by sample (Shin et al. 2024, section 3
and "Setting"). No guard, no held-out samples, and no errors that the procedure does not need. It knows decoders whose
blocks are `model.model.layers` and whose linears are `nn.Linear`. Samples are drawn as reprune draws them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

from reprune.engine.peak_memory import peak_memory_bytes
from reprune.planning.samples import draw_samples
from reprune.planning.sources import parse_source
from reprune.planning.tokenizer import load_tokenizer

BLOCK_COLUMNS, DAMPING, BATCH, LR = 128, 0.01, 8, 2e-4


@final
class Mask(nn.Module):
    """Multiplies a weight by its mask wherever the weight is used."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class StopForward(Exception):
    """Ends a forward pass at the first block, whose inputs are then known."""


def block_inputs(model: nn.Module, samples: Tensor) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """The states (1, tokens, hidden) that enter the first block, for each sample; and each block's other arguments."""
    states: list[Tensor] = []
    arguments: list[dict[str, Any]] = []
    layers = model.model.layers

    def saw(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if layer is layers[0]:
            states.append(args[0] if args else kwargs["hidden_states"])
        if len(arguments) == len(layers):
            raise StopForward
        arguments.append({key: value for key, value in kwargs.items() if key != "hidden_states"})

    hooks = [layer.register_forward_pre_hook(saw, with_kwargs=True) for layer in layers]
    for sample in samples:  # all have one length, so the first sample's other arguments serve all
        with suppress(StopForward):
            model.model(sample[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return states, arguments


def run(layers: list[nn.Module], arguments: list[dict[str, Any]], state: Tensor) -> Tensor:
    """One sample's states through blocks."""
    for layer, kwargs in zip(layers, arguments, strict=True):
        output = layer(state, **kwargs)
        state = output[0] if isinstance(output, tuple) else output
    return state


@contextmanager
def gram_matrices(layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within this context, each linear of the block sums the Gram matrix of its inputs."""
    grams: dict[str, Tensor] = {}
    hooks = []
    for name, linear in linears(layer):
        grams[name] = torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device)

        def saw(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            X = args[0].reshape(-1, args[0].shape[-1])
            grams[name] += X.T @ X

        hooks.append(linear.register_forward_pre_hook(saw))
    try:
        yield grams
    finally:
        for hook in hooks:
            hook.remove()


def linears(layer: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]


def sparsegpt(W: Tensor, gram: Tensor, sparsity: float) -> tuple[Tensor, Tensor]:
    """A matrix (rows, columns) pruned, and its mask."""
    W, H = W.clone(), gram.clone()
    columns = W.shape[1]
    dead = H.diagonal() == 0
    H[dead, dead] = 1.0
    W[:, dead] = 0.0
    H += torch.eye(columns, device=H.device) * DAMPING * H.diagonal().mean()
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    mask = torch.ones_like(W, dtype=torch.bool)
    for start in range(0, columns, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, columns)
        block = W[:, start:end].clone()
        pruned, errors, factor = torch.zeros_like(block), torch.zeros_like(block), U[start:end, start:end]
        scores = block**2 / factor.diagonal() ** 2
        threshold = scores.flatten().sort().values[int(scores.numel() * sparsity)]
        keep = scores >= threshold
        for column in range(end - start):
            w = block[:, column]
            q = torch.where(keep[:, column], w, 0.0)
            pruned[:, column] = q
            errors[:, column] = (w - q) / factor[column, column]
            block[:, column:] -= errors[:, column : column + 1] @ factor[column : column + 1, column:]
        W[:, start:end] = pruned
        mask[:, start:end] = keep
        W[:, end:] -= errors @ U[start:end, end:]
    return W, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rung", choices=("LR", "BR", "BR+GP", "BR+GP+CR"), default="BR+GP")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    began = time.monotonic()
    torch.set_float32_matmul_precision("highest")  # the environment may have allowed TF32, as NVIDIA's containers do
    tokenizer = load_tokenizer(options.model, False)
    source = [parse_source(options.calibration)]
    samples = draw_samples(tokenizer, source, [], options.samples, options.seqlen, options.seed).calibration
    samples = samples.to(options.device)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(options.device).eval()
    model.requires_grad_(False)
    blocks_began = time.monotonic()
    prune(model, samples, options.rung, options.sparsity, options.epochs, options.seed)
    if torch.device(options.device).type == "cuda":
        torch.cuda.synchronize(options.device)
    blocks_seconds = time.monotonic() - blocks_began
    model.to("cpu", torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    peak = peak_memory_bytes(options.device)
    found = {
        "seconds": time.monotonic() - began,
        "seconds_a_block": blocks_seconds / len(model.model.layers),
        "peak": peak["host"],
        "peak_device": peak["device"],
    }
    (options.out / "textbook.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def prune(model: nn.Module, samples: Tensor, rung: str, sparsity: float, epochs: int, seed: int) -> None:
    """Prune and reconstruct in place."""
    torch.manual_seed(seed)
    with torch.no_grad():
        student, arguments = block_inputs(model, samples)
    teacher = list(student)  # the dense model's own stream, with which GP compares
    targets: list[Tensor] = []
    layers = list(model.model.layers)
    size = 2 if "CR" in rung else 1
    for number, window in enumerate(windows(len(layers), size)):
        blocks, kwargs = [layers[i] for i in window], [arguments[i] for i in window]
        if number < len(layers):  # the window's last block is fresh
            with torch.no_grad():
                if "GP" in rung:
                    targets = teacher = [run(blocks[-1:], kwargs[-1:], state) for state in teacher]
                elif rung == "BR":
                    targets = [run(blocks[-1:], kwargs[-1:], state) for state in student]
                prune_block(blocks, kwargs, student, sparsity)
        if rung != "LR":
            train(blocks, kwargs, student, targets, epochs)
        if len(window) == size or number >= len(layers):  # its first block is final
            parametrize_no_more(blocks[0])
            with torch.no_grad():
                student = [run(blocks[:1], kwargs[:1], state) for state in student]


def windows(blocks: int, size: int) -> list[range]:
    """One block after the other, or the overlapping pairs [0], [0, 1], ..., [L-2, L-1], [L-1]."""
    return [range(max(start, 0), min(start + size, blocks)) for start in range(1 - size, blocks)]


def prune_block(blocks: list[nn.Module], kwargs: list[dict[str, Any]], student: list[Tensor], sparsity: float) -> None:
    """Prune the last of these blocks; the states given enter the first."""
    with gram_matrices(blocks[-1]) as grams:
        for state in student:
            run(blocks, kwargs, state)
    for name, linear in linears(blocks[-1]):
        weight, mask = sparsegpt(linear.weight, grams[name], sparsity)
        linear.weight.copy_(weight)
        parametrize.register_parametrization(linear, "weight", Mask(mask))


def train(
    blocks: list[nn.Module], kwargs: list[dict[str, Any]], student: list[Tensor], targets: list[Tensor], epochs: int
) -> None:
    """Adam over all parameters of these blocks."""
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=LR, betas=(0.9, 0.95))
    batches = math.ceil(len(student) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * batches))
    for _ in range(epochs):
        for batch in torch.randperm(len(student)).split(BATCH):
            for index in batch.tolist():
                loss = (run(blocks, kwargs, student[index]) - targets[index]).square().mean() / len(batch)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    for parameter in parameters:
        parameter.requires_grad_(False)


def parametrize_no_more(block: nn.Module) -> None:
    """Make masked weights plain parameters."""
    for _, linear in linears(block):
        parametrize.remove_parametrizations(linear, "weight")


if __name__ == "__main__":
    main()
