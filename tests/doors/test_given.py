"""What is given in the forms that callers have it in is one recipe's content."""

from __future__ import annotations

from pathlib import Path

import torch

from reprune.doors.given import nested_flags


def test_what_is_given_alone_or_in_lists_has_its_place_in_a_recipe() -> None:
    found = nested_flags(
        epochs=3,
        pruner="wanda",
        calibration=Path("a.txt"),
        heldout=["b.txt", Path("c.txt")],
        include="*.mlp.*",
        exclude=[],
        device=torch.device("cuda", 1),
        samples=4,
        seqlen=None,
    )
    assert found == {
        "pruner": {"name": "wanda"},
        "solver": {"epochs": 3},
        "calibration": ["a.txt"],
        "heldout": ["b.txt", "c.txt"],
        "include": ["*.mlp.*"],
        "device": "cuda:1",
        "samples": 4,
    }
