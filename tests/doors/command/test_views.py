"""What a plan shows is what a run will do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import tiny
from tests.doors.conftest import QUICK, Cli


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


BY_NAME = ["--set", "sparsity_by_name={down_proj: 0.3, 1.self_attn.o_proj: 2:4}"]


def test_a_plan_shows_which_linears_have_a_sparsity_of_their_own(here: Path, cli: Cli) -> None:
    said = cli("plan", "llama", *QUICK, *BY_NAME, "--set", "allocation=owl").out
    assert "prune      sparsegpt at 0.5, others by name: " in said
    assert "allocation owl: more sparsity for blocks that bear more" in said
    rows = [" ".join(line.split()) for line in said.splitlines()]
    assert "0-2 mlp.down_proj (0.3) 32 x 64" in rows
    assert "1 self_attn.o_proj (2:4) 32 x 32" in rows
    assert "0, 2 self_attn.o_proj 32 x 32" in rows


def test_experts_with_a_sparsity_of_their_own_are_counted_apart(here: Path, cli: Cli) -> None:
    tiny.save("mixtral", here / "mixtral")
    said = cli("plan", "mixtral", *QUICK, "--set", 'sparsity_by_name={"*.down_proj.0": 0.3}').out
    assert re.search(r"0-2 +mlp\.experts\.down_proj\.\* \(0\.3\) +1 expert: 32 x 64", said)
    assert re.search(r"0-2 +mlp\.experts\.down_proj\.\* +3 experts: 32 x 64", said)


@pytest.mark.parametrize(
    ("flags", "sparsity", "zeros"),
    [
        ([], "0.5", "50.00% zeros"),
        (BY_NAME, "0.5, others by name", "% zeros"),
        (["--set", "allocation=owl", *BY_NAME], "0.5 (owl), others by name", "% zeros"),
    ],
)
def test_status_and_verify_say_what_decides_the_sparsity(
    flags: list[str], sparsity: str, zeros: str, here: Path, cli: Cli
) -> None:
    cli("prune", "llama", "--out", "out", *QUICK, "--reconstruct", "LR", *flags)
    assert f"sparsegpt {sparsity}, LR" in cli("status", "out").out.splitlines()[0]
    assert any(line.endswith(f"{zeros}, pattern {sparsity}") for line in cli("verify", "out").out.splitlines())
