"""SparseGPT on one matrix: reprune's sweep over stacked, blocked columns against the plain column loop, alternating.

    python benchmarks/sparsegpt.py [--rows 2048] [--columns 2048] [--sparsity 0.5] [--repeats 5] [--device cpu]

The plain loop is that of `benchmarks/textbook.py`: lazy updates of 128 columns, one column at a time within them. Both
begin with the same Gram matrix of random inputs. Prints seconds (median and range), their ratio in the same turn, and
how many weights have another mask.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from textbook import sparsegpt
from torch import Tensor
from turns import spread

from reprune.math.patterns import Unstructured
from reprune.math.sparsegpt import SparseGPT
from reprune.math.statistics import Gram


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("highest")  # the environment may have allowed TF32, as NVIDIA's containers do

    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(options.columns, options.columns, generator=generator) / options.columns**0.5
    X = torch.randn(4 * options.columns, options.columns, generator=generator) @ (mixing + torch.eye(options.columns))
    W = (torch.randn(options.rows, options.columns, generator=generator) * 0.02).to(device)
    gram = Gram(options.columns, device)
    gram.update(X.to(device))
    pattern = Unstructured(options.sparsity)

    def ours() -> Tensor:
        return SparseGPT().prune([W], gram, pattern)[0].mask

    def plain() -> Tensor:
        return sparsegpt(W, gram.matrix, options.sparsity)[1]

    found: dict[str, list[float]] = {"reprune": [], "plain": []}
    masks = [_timed(ours, device)[1], _timed(plain, device)[1]]  # warms up
    for _ in range(options.repeats):
        for name, way in (("reprune", ours), ("plain", plain)):
            found[name].append(_timed(way, device)[0])
    ratios = [slow / fast for fast, slow in zip(found["reprune"], found["plain"], strict=True)]
    print(f"{options.rows} x {options.columns}, {options.sparsity:.0%}; {device}, {platform.machine()}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {version('torch')}; {options.repeats} turns\n")
    print("| way | seconds |\n|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {spread(seconds, 3)} |")
    differ = int((masks[0] != masks[1]).sum())
    print(f"\nplain : reprune {spread(ratios, 2)}; {differ} of {masks[0].numel()} weights differ in their mask")


def _timed(way: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    began = time.perf_counter()
    mask = way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, mask


if __name__ == "__main__":
    main()
