"""Distillation is reported before it, while it runs, at its end, and in the report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reprune.doors.report.write import report
from tests.doors.conftest import QUICK, Cli, record_of
from tests.doors.report.pages import page
from tests.doors.report.records import run_record
from tests.engine.test_ledger import InterruptAt, Interrupted

DISTILL = ["--set", "distill.blocks=2", "--set", "distill.lr=1%"]


@pytest.mark.parametrize("flags", [[], ["-v"]])
def test_a_run_shows_its_divergences_in_80_columns(cli: Cli, flags: list[str]) -> None:
    said = cli("prune", "llama", "--out", "out", *QUICK, *DISTILL, *flags)
    assert said.code == 0
    change = r"[\d.e-]+ > [\d.e-]+"
    assert re.search(r"KL\(dense \|\| sparse\).*\n(.*\n)*? +4/4  1-2 +[\d.e-]+.* +[\d.e-]+.* s ", said.out)
    assert re.search(rf"^distilled +blocks 1-2: KL.*\n +held-out {change} nats per token$", said.out, re.MULTILINE)
    verbose = re.findall(r"epoch \d/2: calibration ([\d.e-]+( %)?), held-out", said.out)
    assert [bool(share) for _, share in verbose] == ([True] * 6 + [False] * 2 if flags else [])
    assert max(map(len, said.out.splitlines())) <= 80
    step = record_of(Path("out"))["distillation"]
    assert f"{step['heldout_divergence']['after']:.3g} nats" in said.out


def test_status_speaks_of_a_step_that_is_done_but_not_settled(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("reprune.doors.progress._Lines.window_done", lambda _, *done: InterruptAt(3).window_done(*done))
        cli("prune", "llama", "--out", "out", *QUICK, *DISTILL)
    said = cli("status", "out")
    assert "4 of 4 windows finished" in said.out
    assert re.search(r"last: blocks \[1, 2\], distilled: held-out divergence [\d.e-]+ > [\d.e-]+\n", said.out)
    assert cli("resume", "out").code == 0
    assert cli("status", "out").out == re.sub(r"unfinished;.*", "finished", said.out)


def test_a_plan_says_what_is_distilled_and_refuses_what_cannot_be(cli: Cli) -> None:
    said = cli("plan", "llama", *QUICK, *DISTILL)
    assert said.code == 0
    assert "distill    the last 2 blocks, 2 epochs at 1%" in said.out
    refused = cli("plan", "llama", *QUICK, "--set", "distill=7")
    assert (refused.code, "distill.blocks 7: llama has 3 blocks; give that or less." in refused.err) == (2, True)
    wrong = cli("plan", "llama", *QUICK, "--set", "distill.lr=-1")
    assert (wrong.code, "distill.lr: expected a number above 0" in wrong.err) == (2, True)


STEP = {
    "index": 4,
    "distilled": True,
    "blocks": [2, 3],
    "heldout_divergence": {"before": 0.5, "after": 0.4},
    "last_block": {"relative_heldout_error": {"before": 0.02, "after": 0.03}},
    "epochs": [
        {"epoch": 1, "calibration_divergence": 0.3, "heldout_divergence": 0.45},
        {"epoch": 2, "calibration_divergence": 0.2, "heldout_divergence": 0.39},
    ],
    "kept_epoch": 2,
    "seconds": 3.0,
}


def test_a_report_has_a_section_of_its_own(tmp_path: Path) -> None:
    plain = page(tmp_path / "plain", run_record())
    assert "Predictions of the last blocks" not in plain.text
    text = page(tmp_path / "run", run_record(distillation=STEP)).text
    assert "Blocks 2-3 were fitted once more" in text
    assert "went from 0.5000 to 0.4000 nats per token (\N{MINUS SIGN}20.0 %)" in text
    assert "compares outputs and not predictions, went from 2.00 % to 3.00 %." in text


def test_a_report_of_a_real_run_can_be_made(cli: Cli) -> None:
    cli("prune", "llama", "--out", "out", *QUICK, *DISTILL)
    assert "Divergence of predictions by epoch" in report(Path("out")).read_text(encoding="utf-8")


def test_a_descent_that_becomes_nan_is_told_and_changes_nothing(here: Path, cli: Cli) -> None:
    said = cli("prune", "llama", "--out", "failed", *QUICK, "--set", "distill.blocks=1", "distill.lr=1e39")
    assert said.code == 0
    found = " ".join(said.out.split())
    assert "note: distillation of blocks [2]: the loss became nan in epoch 1; lower distill.lr" in found
    assert "it became NaN or infinite (see notes); the best state is kept" in found
    assert max(map(len, said.out.splitlines())) <= 80
    step = record_of(here / "failed")["distillation"]
    (failure,), (note,) = step["failures"], step["notes"]
    assert failure in note
    assert (step["kept_epoch"], step["epochs"]) == (0, [])
    assert step["heldout_divergence"]["before"] == step["heldout_divergence"]["after"]
