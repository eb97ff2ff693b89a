"""Attention in half precision on a CPU: reprune's plain products against PyTorch's fused kernel, alternating.

    python benchmarks/attention.py [--shapes 8x4x1x256x256 8x4x1x1024x256x512] [--repeats 5]

A shape is samples x query heads x key heads x tokens x size of a head, causal; a sixth number is the size of a sliding
window, given as a mask, as Transformers does. Queries, keys and values are random. Prints milliseconds of the forward
pass and of forward and backward (median and range), the kernel's divided by reprune's in the same turn, and how far the
outputs and the worst of the three gradients are from those in float32, as a norm relative to theirs.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from turns import spread

from reprune.model.half_attention import HalfAttention

_SHAPES = (
    *("8x4x1x256x256", "8x14x2x256x64", "8x16x8x512x128", "8x32x32x1024x128", "1x32x8x2048x128"),
    "8x4x1x1024x256x512",
)
_WAYS = {"kernel": nullcontext, "reprune": HalfAttention}


@dataclass(frozen=True)
class Case:
    """What attention is computed of: query, key and value of (samples, heads, tokens, size), in bfloat16."""

    states: tuple[Tensor, Tensor, Tensor]
    mask: Tensor | None
    outer: Tensor  # the gradient of the outputs

    @classmethod
    def of(cls, shape: str) -> Case:
        samples, heads, key_heads, tokens, size, *window = map(int, shape.split("x"))
        generator = torch.Generator().manual_seed(0)

        def states(count: int) -> Tensor:
            one = torch.randn(samples, tokens, count, size, generator=generator)
            return one.bfloat16().transpose(1, 2)

        mask = None
        if window:
            at = torch.arange(tokens)
            behind = at[:, None] - at
            mask = ((behind >= 0) & (behind < window[0])).expand(samples, 1, -1, -1)
        return cls((states(heads), states(key_heads), states(key_heads)), mask, states(heads))

    def outputs(self, *states: Tensor) -> Tensor:
        query, key, _ = states
        return scaled_dot_product_attention(
            *states, attn_mask=self.mask, is_causal=self.mask is None, enable_gqa=query.shape[1] != key.shape[1]
        )

    def forward(self, way: str) -> tuple[Tensor, ...]:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), _WAYS[way]():
            return (self.outputs(*self.states),)

    def both(self, way: str) -> tuple[Tensor, ...]:
        """Outputs, and the gradients of query, key and value."""
        states = [one.detach().requires_grad_() for one in self.states]
        with torch.autocast("cpu", dtype=torch.bfloat16), _WAYS[way]():
            outputs = self.outputs(*states)
        return outputs.detach(), *torch.autograd.grad(outputs, states, self.outer)

    def exact(self) -> tuple[Tensor, ...]:
        """The same in float32."""
        states = [one.float().requires_grad_() for one in self.states]
        outputs = self.outputs(*states)
        return outputs.detach(), *torch.autograd.grad(outputs, states, self.outer.float())

    def off(self, way: str) -> tuple[float, float]:
        """How far the outputs, and the worst gradient, are from those in float32."""
        pairs = zip(self.both(way), self.exact(), strict=True)
        outputs, *gradients = (float((one.float() - other).norm() / other.norm()) for one, other in pairs)
        return outputs, max(gradients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=_SHAPES)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}; {options.repeats} turns\n"
    )
    print("| shape | way | forward, ms | forward and backward, ms | times as fast | outputs off | gradients off |")
    print("|---|---|---|---|---|---|---|")
    for shape in options.shapes:
        case = Case.of(shape)
        off = {way: case.off(way) for way in _WAYS}  # warms up
        forward: dict[str, list[float]] = {way: [] for way in _WAYS}
        both: dict[str, list[float]] = {way: [] for way in _WAYS}
        for _ in range(options.repeats):
            for way in _WAYS:
                forward[way].append(_milliseconds(case.forward, way))
                both[way].append(_milliseconds(case.both, way))
        ratios = [slow / fast for slow, fast in zip(both["kernel"], both["reprune"], strict=True)]
        for way in _WAYS:
            faster = spread(ratios, 2) if way == "reprune" else ""
            outputs, gradients = off[way]
            print(
                f"| {shape} | {way} | {spread(forward[way], 1)} | {spread(both[way], 1)} | {faster} | "
                f"{outputs:.2%} | {gradients:.2%} |",
                flush=True,
            )


def _milliseconds(step: Callable[[str], tuple[Tensor, ...]], way: str) -> float:
    began = time.perf_counter()
    step(way)
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
