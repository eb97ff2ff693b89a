"""What a plan says is what there will be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doors.conftest import Cli


@pytest.mark.parametrize(
    ("flags", "samples", "heldout"),
    [
        (["--calibration", "text.txt"], "32 of 24 tokens from text.txt", "4 from the same"),
        (["--calibration", "text.txt=8", "manual=3"], "11 of 24 tokens from text.txt=8, manual=3", "2 from the same"),
        (["--calibration", "text.txt", "--heldout", "manual=5"], "32 of 24 tokens from text.txt", "5 from manual=5"),
        (["--self-generate", "9"], "9 of 24 tokens from the model's own texts=9", "2 from the same"),
        (
            ["--calibration", "text.txt=8", "--self-generate", "9"],
            "17 of 24 tokens from text.txt=8, the model's own texts=9",
            "3 from the same",
        ),
    ],
)
def test_a_plan_counts_the_samples_that_there_will_be(
    flags: list[str], samples: str, heldout: str, here: Path, cli: Cli
) -> None:
    said = cli("plan", "llama", *flags, "--seqlen", "24", "--samples", "32").out.splitlines()
    assert f"samples    {samples}" in said
    assert f"held out   {heldout}" in said
