"""What GPUs can do. Asks the GPU itself; knows no models."""

from __future__ import annotations

import torch


def is_ampere(device: torch.device | str) -> bool:
    """Whether a GPU is NVIDIA's Ampere or newer, or AMD's.

    Such a GPU has units for bfloat16 products, and PyTorch's kernels for attention in half precision share keys there.
    """
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
