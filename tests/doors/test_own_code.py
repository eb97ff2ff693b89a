"""A model that comes with code of its own goes through every command with the flag that lets the code run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.doors.conftest import QUICK, Cli
from tests.doors.study.runs import ONE
from tests.engine.test_ledger import homemade  # noqa: F401  # a fixture

_CODE = """
from transformers import PreTrainedTokenizerFast
class T(PreTrainedTokenizerFast):
    pass
"""

_OWN = [word for key in ("language=any", "filters=[]", "batch_size=4") for word in ("--set", f"self_generate.{key}")]
_SHORT = ["--length", "12", "--language", "any", "--filters", "none", "--batch-size", "4"]
_TEXT = ["--text", "text.txt", "--windows", "2"]
_COMMANDS = {
    "plan": ["plan", "MODEL", *QUICK, "--self-generate", "2"],
    "prune": ["prune", "MODEL", "--out", "out", *QUICK, "--self-generate", "2", *_OWN],
    "verify": ["verify", "out"],
    "evaluate": ["evaluate", "out", *_TEXT, "--seqlen", "24"],
    "against": ["evaluate", "out", *_TEXT, "--seqlen", "24", "--against", "MODEL", "--no-perplexity"],
    "zero-shot": ["evaluate", "out", "--zero-shot", "rte", "--zero-shot-data", "rows"],
    "generate": ["generate", "MODEL", "--out", "own.jsonl", "--samples", "2", *_SHORT],
    "study": ["study", "MODEL", "--out", "s", *ONE, *QUICK, *_TEXT, "--text-seqlen", "24"],
}


@pytest.mark.usefixtures("homemade")
def test_every_command_takes_the_flag_to_all_that_loads_the_model(tmp_path: Path, cli: Cli) -> None:
    """Also to its tokenizer, whose code is in the same file here."""
    model = tmp_path / "model"
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "code.T"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "code.py").write_text((model / "code.py").read_text() + _CODE)
    Path("rows").mkdir()
    row = {"premise": "Ice is cold.", "hypothesis": "Ice is warm.", "label": "not_entailment"}
    Path("rows", "rte_dev.jsonl").write_text(json.dumps(row))
    for name, words in _COMMANDS.items():
        command = [str(model) if word == "MODEL" else word for word in words]
        refused = cli(*command)
        assert (refused.code, "give --trust-remote-code" in refused.err) == (2, True), name
        said = cli(*command, "--trust-remote-code")
        assert (said.code, said.err) == (0, ""), name
