"""A terminal shows what others wrote, and never obeys it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from reprune.doors.printable import printable
from tests.doors.conftest import QUICK, Cli


def test_only_what_a_terminal_would_obey_is_replaced() -> None:
    assert printable("a\tb\nc é 語 [/x]") == "a\tb\nc é 語 [/x]"
    assert printable("\x1b[2K\r\x07\x9b1A") == "\ufffd[2K\ufffd\ufffd\ufffd1A"


def test_names_in_a_record_and_in_errors_move_no_cursor(cli: Cli, here: Path) -> None:
    assert cli("prune", "llama", "--out", "out", *QUICK, "-q").code == 0
    record = json.loads((here / "out" / "reprune.json").read_text())
    record["recipe"]["model"] = "\x1b[1A\x1b[2Kllama"
    record["files"]["\x1b[8m"] = "0"
    (here / "out" / "reprune.json").write_text(json.dumps(record))
    for said in (cli("status", "out"), cli("verify", "out"), cli("plan", "\x1b[2Jmodel")):
        assert "\ufffd" in said.out + said.err
        assert "\x1b" not in said.out + said.err


def test_where_standard_error_is_closed_no_message_gets_into_the_output(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("prune", "llama", "--out", "out", *QUICK, "-q").code == 0
    monkeypatch.setattr(sys, "stderr", None)
    said = cli("evaluate", "out", "--text", "text.txt", "--seqlen", "32", "--json")  # on what it is calibrated on
    assert (said.code, [*json.loads(said.out)]) == (0, ["perplexity"])
