"""A PyTorch that is built for one process does all that one process does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch.distributed as dist

from reprune.errors import InputError
from reprune.math.ranks import Together

_WITHOUT = """
import sys
import torch.distributed as dist
dist.is_available = lambda: False
sys.modules["torch.distributed.rendezvous"] = None
"""


def test_a_pytorch_without_distributed_is_enough_for_one_process() -> None:
    """In a process of its own: this one has imported it already."""
    code = f"{_WITHOUT}from reprune.math.ranks import ALONE; print(ALONE.add([1.0]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[1.0]\n"), done.stderr


def test_and_is_refused_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"is built without torch\.distributed, .*; start one process"):
        Together(1)
