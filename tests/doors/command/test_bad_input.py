"""What cannot be used is refused with one message that names it, exit code 2, and nothing written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.doors.command.refused import refused
from tests.doors.conftest import QUICK, Cli


@pytest.fixture(autouse=True)
def strange(here: Path) -> None:
    """Files and folders that are not what they are passed as."""
    files = {
        "afile": "x",
        "empty.txt": " \n",
        "short.txt": "too short",
        "rows.jsonl": '{"body": "a", "title": "b"}\n',
        "torn.jsonl": '{"text": "a"}\n{"text": \n',
        "full/thing": "",
        "bad.yaml": "samples: [1\n",
        "list.yaml": "- samples\n",
        "key.yaml": "sparsty: 0.5\n",
        "deep.yaml": "solver:\n  learning_rate: 1\n",
        "value.yaml": "pruner: wnda\n",
        "no-weights/config.json": '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
        "pickled/config.json": '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
        "pickled/pytorch_model.bin": "x",
        "encoder/config.json": '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}',
        "encoder/model.safetensors": "x",
        "two-parts/config.json": '{"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}',
        "two-parts/model.safetensors": "\2\0\0\0\0\0\0\0{}",
        "torn/config.json": '{"model_type": ',
        "unfinished/.reprune/run.json": "{}",
        "sparse/config.json": '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
        "sparse/model.safetensors": "x",
        "sparse/reprune.json": "{}",
    }
    for name, content in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(content)
    (here / "latin1.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (here / "empty").mkdir()


_MODELS = [
    ("./nowhere", "./nowhere: no such folder"),
    ("two/slashes/nowhere", "two/slashes/nowhere: no such folder"),
    ("owner/no-such-model", "owner/no-such-model: no folder here"),
    ("no such--model", "no such--model"),
    ("missing.gguf", "missing.gguf: no such file"),
    ("afile", "afile: is not a GGUF file"),
    ("empty", "empty: has no config.json"),
    ("no-weights", "no-weights: holds no *.safetensors"),
    ("pickled", "pytorch_model.bin"),
    ("encoder", "BertForMaskedLM"),
    ("two-parts", "two-parts: bart is an encoder-decoder; a decoder is needed"),
    ("torn", "torn: its config.json cannot be read"),
]


@pytest.mark.parametrize("command", ["prune", "plan", "evaluate"])
@pytest.mark.parametrize(("model", "expected"), _MODELS)
def test_a_model_that_cannot_be_used_is_refused(command: str, model: str, expected: str, here: Path, cli: Cli) -> None:
    flags = {"prune": ["--out", "out", *QUICK], "plan": QUICK, "evaluate": ["--text", "text.txt"]}
    refused(cli, here, [command, model, *flags[command]], expected)


_FLAGS: list[object] = [
    (["--pruner", "wnda"], "wnda"),
    (["--pruner", ""], "pruner"),
    *[(["--sparsity", text], f"got {text}") for text in ("0", "1", "1.5", "-1", "nan", "inf", "4:2", "0:4", "4:4")],
    *[(["--sparsity", text], repr(text)) for text in ("abc", "", "2:4:8", "2:x", "1/2", ":")],
    (["--sparsity", "3:5"], "self_attn.q_proj: the pattern 3:5 needs"),
    (["--sparsity", "1:64"], "mlp.up_proj: the pattern 1:64 needs"),
    (["--reconstruct", "GP"], "GP"),
    (["--reconstruct", "br"], "br"),
    *[(["--samples", text], "samples") for text in ("0", "-1", "x", "1.5", "")],
    *[(["--seqlen", text], "seqlen") for text in ("0", "1", "129", "99999999999", "x")],
    *[(["--epochs", text], "epochs") for text in ("0", "-1", "x")],
    *[(["--lr", text], "lr") for text in ("0", "-1", "nan", "inf", "x")],
    *[(["--batch-size", text], "batch") for text in ("0", "-1", "x")],
    *[(["--seed", text], "seed") for text in ("-1", "x", str(2**63))],
    *[(["--device", text], text) for text in ("cuda:99", "tpu", "cuda:x", "mps")],
    (["--nope", "1"], "--nope"),
    (["--samples"], "--samples"),
    (["another-model"], "another-model"),
]


@pytest.mark.parametrize(("flags", "expected"), _FLAGS)
def test_a_flag_with_an_impossible_value_is_refused(flags: list[str], expected: str, here: Path, cli: Cli) -> None:
    refused(cli, here, ["prune", "llama", "--out", "out", *QUICK, *flags], expected)


_SOURCES: list[tuple[list[str], str]] = [
    (["missing.txt"], "'missing.txt': expected a file"),
    (["/nowhere/a.jsonl"], "'/nowhere/a.jsonl': expected a file"),
    (["empty.txt"], "'empty.txt': expected text"),
    (["short.txt"], "'short.txt': expected"),
    (["latin1.txt"], "'latin1.txt', line 1: expected UTF-8"),
    (["afile"], "'afile': expected a file ending in"),
    (["empty"], "'empty': expected"),
    (["rows.jsonl"], "body (string), title (string)"),
    (["rows.jsonl:nope"], "'nope'"),
    (["torn.jsonl"], "'torn.jsonl', line 2"),
    (["text.txt:column"], "'column'"),
    (["wikitext"], "did you mean 'wikitext2'?"),
    (["c4:en"], "'c4:en'"),
    (["text.txt=0"], "'text.txt=0': expected a COUNT of at least 1"),
    (["text.txt=-2"], "'text.txt=-2': expected a COUNT of at least 1"),
    (["text.txt=many"], "'text.txt=many'"),
    (["text.txt=100000"], "'text.txt': expected"),
    (["manual=1", "text.txt=100000"], "'text.txt': expected"),
    (["=4"], "'=4': expected SOURCE[=COUNT]"),
    ([""], "''"),
    ([], "requires an argument"),
]


@pytest.mark.parametrize("flag", ["--calibration", "--heldout"])
@pytest.mark.parametrize(("sources", "expected"), _SOURCES)
def test_a_source_that_gives_no_samples_is_refused(
    flag: str, sources: list[str], expected: str, here: Path, cli: Cli
) -> None:
    given = QUICK if flag == "--heldout" else QUICK[2:]
    said = refused(cli, here, ["prune", "llama", "--out", "out", *given, flag, *sources], expected)
    assert str(here) not in said.err or sources == ["empty"], "a source is named as it was given"


_RECIPES: list[object] = [
    (["--set", "schedule.size"], "--set schedule.size: expected key.path=value"),
    (["--set", "=1"], "--set =1: expected key.path=value"),
    (["--set", "schedule..size=1"], "--set schedule..size=1: expected key.path=value"),
    (["--set", "schedule.sze=2"], "schedule.sze: unknown key; did you mean size?"),
    (["--set", "solver.adam.lr=2"], "solver.adam: unknown key"),
    (["--set", "sample=2"], "sample: unknown key; did you mean samples?"),
    (["--set", "schedule=3"], "schedule: "),
    (["--set", "schedule.stride=2"], "stride 2 is larger than size 1"),
    (["--set", "schedule.size=0"], "schedule.size: "),
    (["--set", "schedule.size=4"], "schedule.size 4: llama has 3 blocks; give at most 3"),
    (["--set", f"schedule.size={10**21}"], f"schedule.size {10**21}: llama has 3 blocks"),
    (["--set", "solver.name=sgd"], "sgd"),
    (["--set", "solver.betas=[1, 2]"], "solver.betas: expected two numbers of at least 0 and below 1"),
    (["--set", "solver.betas=[0.9]"], "solver.betas"),
    (["--set", "samples=["], "--set samples=[: the value is not valid YAML"),
    (["--set", "samples.x=1"], "samples: "),
    (["--set", "exclude=[nothing]"], "exclude: 'nothing' matches no matrix"),
    (["--set", "exclude=['*']"], "no linear is left to prune in any block"),
    (["--set", "precision=float8"], "float8"),
    (["--set", "teacher=none"], "teacher: "),
    (["--set", "streams.memory=lots"], "lots"),
    (["--set", "pruner.damping=0"], "pruner.damping: "),
    (["--set", "pruner.block_size=0"], "pruner.block_size: "),
    (["--set", "seed=1.5"], "seed: "),
    (["--set", "samples=true"], "samples: "),
    (["--set", "model=another"], "model"),
    (
        ["--recipe", "missing.yaml"],
        "--recipe missing.yaml: cannot be read (No such file or directory); check the path.",
    ),
    (["--recipe", "empty"], "--recipe empty: cannot be read"),
    (
        ["--recipe", "latin1.txt"],
        "--recipe latin1.txt: cannot be read (it is not UTF-8); convert it to UTF-8.",
    ),
    (["--recipe", "bad.yaml"], "--recipe bad.yaml: not valid YAML"),
    (["--recipe", "list.yaml"], "--recipe list.yaml: expected keys and values"),
    (["--recipe", "afile"], "--recipe afile: expected keys and values"),
    (["--recipe", "key.yaml"], "sparsty: unknown key; did you mean sparsity?"),
    (["--recipe", "deep.yaml"], "solver.learning_rate: unknown key"),
    (["--recipe", "value.yaml"], "wnda"),
]


@pytest.mark.parametrize(("flags", "expected"), _RECIPES)
@pytest.mark.parametrize("command", ["prune", "plan"])
def test_a_recipe_or_a_setting_that_cannot_be_used_is_refused(
    command: str, flags: list[str], expected: str, here: Path, cli: Cli
) -> None:
    out = ["--out", "out"] if command == "prune" else []
    refused(cli, here, [command, "llama", *out, *QUICK, *flags], expected)


_LONG = "x" * 300
"""A name that the system refuses to look up, like a folder inside one that may not be entered."""


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("afile", "--out afile: is a file"),
        ("full", "--out full: is not empty"),
        ("unfinished", "'reprune resume unfinished'"),
        ("llama", "--out llama: is not empty"),
        ("", "is not empty"),
        ("afile/below", "--out afile/below"),
        (_LONG, f"{_LONG}: cannot be read (File name too long)"),
        (f"{_LONG}/below", f"{_LONG}/below: cannot be read (File name too long)"),
        (os.fsdecode(b"caf\xe9"), "has bytes that are not UTF-8"),
    ],
)
def test_an_out_path_that_cannot_hold_a_result_is_refused(out: str, expected: str, here: Path, cli: Cli) -> None:
    refused(cli, here, ["prune", "llama", "--out", out, *QUICK], expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_folder_without_the_right_to_write_is_refused(here: Path, cli: Cli) -> None:
    (here / "locked").mkdir(mode=0o555)
    refused(cli, here, ["prune", "llama", "--out", "locked/out", *QUICK], "locked cannot be written to")


def test_two_mistakes_are_told_in_one_message(here: Path, cli: Cli) -> None:
    said = refused(cli, here, ["prune", "llama", "--out", "out", "--samples", "0", "--lr", "-1"], "samples")
    assert "solver.lr" in said.err
    assert len(said.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prune"], "MODEL"),
        (["prune", "llama"], "--out"),
        (["prune", "--out", "out"], "MODEL"),
        (["plan"], "MODEL"),
        (["plan", "llama", "--device", "cuda:99"], "cuda:99"),
        (["plan", "llama", "--seqlen", "129"], "129"),
        (["plan", "llama", "--out", "full", "-q"], "--out full: is not empty"),
        (["resume"], "DIR"),
        (["resume", "nowhere"], "nowhere: holds no unfinished run"),
        (["resume", "full"], "full: holds no unfinished run"),
        (["resume", "afile"], "afile"),
        (["plan", "llama", "--out", _LONG, *QUICK, "-q"], "cannot be read (File name too long)"),
        (["resume", _LONG], "cannot be read (File name too long)"),
        (["status", _LONG], "cannot be read (File name too long)"),
        (["verify", _LONG], "cannot be read (File name too long)"),
        (["demo", "--out", _LONG], "cannot be read (File name too long)"),
        (["study", "llama", "--out", _LONG, *QUICK], "cannot be read (File name too long)"),
        (["prune", "llama", "--out", "out", *QUICK, "--rank-timeout", "inf"], "--rank-timeout"),
        (["resume", "full", "again"], "again"),
        (["status"], "DIR"),
        (["status", "nowhere"], "nowhere: holds no run"),
        (["status", "full"], "full: holds no run"),
        (["status", "afile"], "afile: holds no run"),
        (["status", "unfinished"], "unfinished"),
        (["resume", "unfinished"], "unfinished"),
        (["evaluate", "llama"], "--text"),
        (["evaluate", "--text", "text.txt"], "MODEL"),
        (["prune", "sparse", "--out", "out"], "sparse: is sparse already"),
        (["plan", "sparse"], "sparse: is sparse already"),
        (["verify"], "DIR"),
        (["verify", "nowhere"], "nowhere: holds no result"),
        (["verify", "full"], "full: holds no result"),
        (["verify", "afile"], "afile: holds no result"),
        (["verify", "sparse"], "it holds no 'blocks'"),
        (["verify", "unfinished"], "'reprune resume unfinished'"),
        (["demo", "--out", "full"], "--out full: holds thing"),
        (["demo", "--out", "afile"], "--out afile: is a file"),
        (["demo", "--out", "/dev/null"], "--out /dev/null: is a file; give a folder"),
        (["demo", "model"], "model"),
        (["prone"], "prone"),
        (["--prune"], "--prune"),
    ],
)
def test_bad_arguments_of_each_command_are_refused(arguments: list[str], expected: str, here: Path, cli: Cli) -> None:
    refused(cli, here, arguments, expected)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--text", "short.txt"], "text 'short.txt': expected at least 127 tokens"),
        (["--text", "missing.txt"], "'missing.txt'"),
        (["--text", "empty.txt"], "'empty.txt'"),
        (["--text", "wikitext"], "did you mean 'wikitext2'?"),
        (["--text", "rows.jsonl"], "body (string), title (string)"),
        (["--text", ""], "''"),
        (["--text", "text.txt=0"], "'text.txt=0'"),
        (["--text", "text.txt=4"], "text.txt=4"),
        *[(["--windows", text], "--windows") for text in ("0", "-1", "x")],
        *[(["--seqlen", text], "--seqlen") for text in ("-1", "0", "1", "129", "x")],
        (["--device", "tpu"], "--device tpu"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--precision", "int8"], "int8"),
        (["--zero", "x"], "--zero"),
    ],
)
def test_bad_arguments_of_evaluate_are_refused(flags: list[str], expected: str, here: Path, cli: Cli) -> None:
    text = [] if "--text" in flags else ["--text", "text.txt"]
    refused(cli, here, ["evaluate", "llama", *text, *flags], expected)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--against", "nowhere"], "nowhere"),
        (["--against", "other"], "differ in their architecture (llama and gpt2)"),
        (["--zero-shot", "boolque"], "--zero-shot boolque: no such task"),
        (["--zero-shot", "boolq", "--zero-shot-data", "nowhere"], "--zero-shot-data nowhere: no such folder"),
        (["--zero-shot", "boolq", "--zero-shot-data", _LONG], "cannot be read (File name too long)"),
        (["--zero-shot", "boolq", "--zero-shot-data", "/dev/null"], "--zero-shot-data /dev/null: no such folder"),
        (["--zero-shot", "boolq", "--zero-shot-limit", "0"], "--zero-shot-limit 0"),
    ],
)
def test_evaluate_refuses_bad_arguments_before_it_measures_anything(
    flags: list[str], expected: str, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save("gpt2", here / "other")
    monkeypatch.setattr("reprune.doors.evaluation.evaluate.evaluate", lambda *_, **__: pytest.fail("it was measured"))
    refused(cli, here, ["evaluate", "llama", "--text", "text.txt", *flags, "--json"], expected)


_STATUS = '{"recipe": {"model": "m", "sparsity": 0.5, "reconstruct": "LR", %s}, "windows": [{}]}'


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", "[]", '{"windows": []}', '{"recipe": [], "windows": [{}]}', '{"recipe": {}, "windows": ["x"]}'),
        *(_STATUS % part for part in ('"pruner": 5', '"pruner": {"name": "wanda"}, "allocation": 5')),
        _STATUS % '"pruner": {"name": "wanda"}',
    ],
)
def test_status_refuses_a_damaged_record(content: str, here: Path, cli: Cli) -> None:
    (here / "full" / "reprune.json").write_text(content)
    refused(cli, here, ["status", "full"], "reprune.json")


def test_every_command_is_refused_on_windows(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    said = refused(cli, here, ["status", "nowhere"], "reprune needs Linux or macOS; on Windows, run it in WSL.")
    assert said.out == ""
