"""Machines that a run can be forecast for without having one: shares of the peaks in their data sheets.

Matrix products of the sizes in blocks reach about half of a GPU's peak, and operations that only move bytes about five
sixths of its bandwidth. States cross from the host at about half of the link's rate, and are counted as if nothing
were computed meanwhile; copies within the host, to and from pinned memory, are not counted. These shares are estimates:
they have not been compared with runs on these machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from reprune.engine.exchange import NVLINK, Network, find_network
from reprune.engine.speed import Speed
from reprune.errors import InputError

_PRODUCTS, _TRAFFIC, _LINK = 0.5, 0.83, 0.5
_IN_ONE = 8  # GPUs of a machine


@final
@dataclass(frozen=True)
class Machine:
    """One GPU and its link to the host; all rates are peaks."""

    name: str
    bfloat16: float  # floating-point operations per second of dense products, accumulated in float32
    float32: float  # the same in float32, without TF32
    bandwidth: float  # bytes per second, of its memory
    link: float  # bytes per second, from the host
    memory_bytes: int
    between: Network  # that connects several of them in one machine

    def speed(self, precision: str) -> Speed:
        """The expected speed, with products in a recipe's precision."""
        products = self.float32 if precision == "float32" else self.bfloat16
        return Speed(_PRODUCTS * products, _PRODUCTS * self.float32, _TRAFFIC * self.bandwidth, _LINK * self.link)

    def network(self, name: str | None, processes: int) -> Network:
        """The network of this name; by default the one within a machine, or for more GPUs one between machines.

        Raises:
            InputError: there is no such network, or these GPUs do not have it.
        """
        if name == NVLINK and not self.between.name.startswith("NVLink"):
            raise InputError(f"--network {name}: {self.name} has no NVLink; give 100g, or leave --network out.")
        if name == NVLINK or (name is None and processes <= _IN_ONE):
            return self.between
        return find_network(name or "100g")


_H100S = find_network(NVLINK)
_A100S, _4090S = Network("NVLink of A100", 300e9, _H100S.latency), Network("PCIe 4.0", 32e9, _H100S.latency)

MACHINES = {
    "h100": Machine("one H100 (SXM, 80 GB)", 989e12, 67e12, 3.35e12, 64e9, 80 * 10**9, _H100S),
    "a100": Machine("one A100 (SXM, 80 GB)", 312e12, 19.5e12, 2.04e12, 32e9, 80 * 10**9, _A100S),
    "4090": Machine("one GeForce RTX 4090 (24 GB)", 165e12, 82.6e12, 1.01e12, 32e9, 24 * 10**9, _4090S),
}
"""Peaks from NVIDIA's data sheets (H100 and A100 Tensor Core GPU; Ada GPU architecture)."""


def find_machine(name: str) -> Machine:
    """The machine of this name; raises `InputError` if there is none."""
    if name not in MACHINES:
        raise InputError(f"--on {name}: expected one of {', '.join(MACHINES)}.")
    return MACHINES[name]
