"""A protocol's name means one thing; the command shows every number with all that decides it, or bare, or as JSON."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import reprune
from reprune.doors.evaluation.protocols import PROTOCOLS, Cut, cut_text, describe
from reprune.doors.zeroshot import accuracy as zeroshot
from reprune.doors.zeroshot.accuracy import TaskScore, ZeroShot
from reprune.errors import InputError
from reprune.model import whole
from reprune.model.checkpoint import Checkpoint
from reprune.planning.documents import Documents
from tests import tiny
from tests.doors.conftest import QUICK, Cli

EXACT: dict[str, Any] = {"device": "cpu", "precision": "float32"}
ALL: dict[str, Any] = {"protocol": None, "seqlen": None, "max_windows": None}


def long_model(folder: Path, positions: int) -> Path:
    """A model of one block that accepts sequences up to that length."""
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=positions, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def tokens_of(text: str) -> int:
    return len(tiny.tokenizer(False)(text, add_special_tokens=False, verbose=False)["input_ids"])


@pytest.mark.parametrize(
    ("protocol", "positions", "seqlen", "windows", "name"),
    [
        ("wanda", 600, 600, None, "wanda"),
        ("wanda", 5000, 4096, None, "wanda"),
        ("paper", 2048, 2048, None, "paper"),
        ("paper", 4096, 2048, None, "paper"),
        ("short", 512, 512, 12, "short"),
        (None, 4096, 2048, None, "paper"),
        (None, 2048, 2048, None, "paper"),
        (None, 600, 600, None, "custom"),
    ],
)
def test_a_protocol_is_followed_to_the_letter(
    protocol: str | None, positions: int, seqlen: int, windows: int | None, name: str, here: Path
) -> None:
    model = long_model(here / "model", positions)
    (here / "text.txt").write_text(tiny.text(24_000))
    result = reprune.evaluate(model, "text.txt", protocol=protocol, **EXACT)
    every = tokens_of(tiny.text(24_000)) // (seqlen - 1)
    assert every > 12 or windows is None
    assert (result.protocol, result.seqlen, result.windows) == (name, seqlen, windows or every)
    alike = reprune.evaluate(model, "text.txt", seqlen=seqlen, max_windows=windows, **EXACT)
    assert (alike.perplexity, alike.protocol) == (result.perplexity, "custom")


@pytest.mark.parametrize(
    ("options", "windows", "name"),
    [
        ({"protocol": "wanda"}, 3, "wanda"),
        ({"seqlen": 512}, 3, "custom"),
        ({"seqlen": 512, "max_windows": 5}, 5, "custom"),
        ({"protocol": "short"}, 12, "short"),
    ],
)
def test_all_of_a_text_are_the_windows_that_the_field_measures_of_it(
    options: dict[str, Any], windows: int, name: str, here: Path
) -> None:
    documents = Documents("c4", (tiny.text(24_000),), windows=3)
    found = cut_text(long_model(here / "model", 512), documents, Cut.of(**ALL | options))
    assert (found.protocol, found.ids.shape) == (name, (windows, 512))


def test_the_first_windows_of_the_paper_are_not_the_paper(here: Path) -> None:
    model = long_model(here / "model", 2048)
    assert reprune.evaluate(model, "text.txt", max_windows=1, **EXACT).protocol == "custom"


@pytest.mark.parametrize(
    ("protocol", "positions", "message"),
    [
        (
            "paper",
            1024,
            "its windows have 2048 tokens, but model takes at most 1024; use --protocol wanda or short, or --seq",
        ),
        (
            "short",
            511,
            "its windows have 512 tokens, but model takes at most 511; use --protocol wanda, or --seqlen 511",
        ),
        (
            "short",
            512,
            r"12 windows of 512 tokens, but text\.txt gives [0-9]; give a longer text, or --seqlen 512",
        ),
        ("long", 512, "expected wanda, paper, short, published, gptq; or give --seqlen and --windows"),
    ],
)
def test_a_protocol_that_cannot_be_followed_is_refused(protocol: str, positions: int, message: str, here: Path) -> None:
    with pytest.raises(InputError, match=f"^--protocol {protocol}: .*{message}"):
        reprune.evaluate(long_model(here / "model", positions), "text.txt", protocol=protocol, **EXACT)


@pytest.mark.parametrize(("protocol", "positions", "seqlen"), [("published", 48, 48), ("gptq", 4096, 2048)])
def test_published_figures_are_of_windows_after_one_bos(protocol: str, positions: int, seqlen: int, here: Path) -> None:
    model = long_model(here / "model", positions)
    found = reprune.evaluate(model, "text.txt", protocol=protocol, **EXACT)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer((here / "text.txt").read_text(encoding="utf-8"), return_tensors="pt").input_ids
    windows = ids[:, : ids.shape[1] // seqlen * seqlen].view(-1, seqlen)
    with torch.no_grad():
        losses = [float(loaded(window[None], labels=window[None]).loss) for window in windows]
    assert ids[0, 0] == tokenizer.bos_token_id
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert (found.bos, found.begun, found.seqlen, found.windows) == (False, True, seqlen, len(windows))
    said = describe(found.record())
    cut = f"{len(windows)} windows of {seqlen} tokens (BOS once)"
    assert said == f"{protocol}: {cut}, not overlapping"
    assert describe({**found.record(), "windows": 1}).startswith(f"{protocol}: 1 window of {seqlen} tokens (")
    assert describe({**found.record(), "begun": False}) == said.replace("BOS once", f"no BOS, {seqlen}")


@pytest.mark.parametrize(("options", "flag"), [({"seqlen": 64}, "--seqlen 64"), ({"max_windows": 3}, "--windows 3")])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_with_a_length_or_a_number_of_windows_is_refused(
    options: dict[str, int], flag: str, protocol: str, llama: Path, here: Path
) -> None:
    with pytest.raises(InputError, match=f"leave out either {flag} or --protocol"):
        reprune.evaluate(llama, "text.txt", protocol=protocol, **options)


def test_a_result_says_all_that_decides_it(here: Path) -> None:
    model = tiny.save("llama", here / "model", torch.bfloat16)
    result = reprune.evaluate(model, "text.txt", seqlen=16, max_windows=3, **EXACT)
    assert json.loads(json.dumps(result.record())) == {
        "perplexity": result.perplexity,
        "model": "model",
        "fingerprint": Checkpoint(model).fingerprint(),
        "text": "text.txt",
        "text_sha256": hashlib.sha256((here / "text.txt").read_bytes()).hexdigest(),
        "protocol": "custom",
        "seqlen": 16,
        "windows": 3,
        "tokens": 45,
        "bos": True,
        "begun": True,
        "precision": "float32",
        "weights_dtype": "bfloat16",
        "calibration_overlap": None,
    }


def test_tokens_without_a_row_in_the_embedding_are_refused(here: Path) -> None:
    model = tiny.save("llama", here / "model")
    config = tiny.CONFIGS["llama"]()
    config.vocab_size = 100
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    with pytest.raises(
        InputError, match=r"model: its tokenizer yields the id \d+, but its embedding has only 100 rows"
    ):
        reprune.evaluate(model, "text.txt", seqlen=16, max_windows=3)


FLAGS = ["--text", "text.txt", "--seqlen", "32", "--windows", "5", "--device", "cpu", "--precision", "float32"]


def test_the_command_shows_what_decides_a_number(cli: Cli, here: Path) -> None:
    said = cli("evaluate", "llama", *FLAGS)
    result = reprune.evaluate("llama", "text.txt", seqlen=32, max_windows=5, **EXACT)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        f"perplexity {result.perplexity:.4f}",
        f"model      llama, fingerprint {result.fingerprint[:12]}",
        "weights    saved in float32, products in float32",
        f"text       text.txt, sha256 {result.text_sha256[:12]}",
        "protocol   custom: 5 windows of 32 tokens (BOS + 31), not overlapping",
        "predicted  155 tokens",
    ]
    assert cli("evaluate", "llama", *FLAGS, "-q").out == f"{result.perplexity:.4f}\n"
    said = cli("evaluate", "llama", *FLAGS, "--json")
    assert (said.err, json.loads(said.out)) == ("", {"perplexity": result.record()})


def test_a_text_of_fewer_windows_than_asked_for_is_noted(cli: Cli) -> None:
    flags = ["--text", "text.txt", "--seqlen", "128", "--against", "llama"]
    every = json.loads(cli("evaluate", "llama", *flags, "--json").out)
    windows = every["perplexity"]["windows"]
    said = cli("evaluate", "llama", *flags, "--windows", windows + 1, "--json")
    assert (said.code, json.loads(said.out)) == (0, every)
    note = f"note: text.txt gives only {windows} windows of 128 tokens,"
    assert said.err == f"{note}\n      so fewer than --windows {windows + 1} are measured\n"
    assert cli("evaluate", "llama", *flags, "--windows", windows, "--json").err == ""


def test_a_window_without_bos_is_shown_so(cli: Cli, here: Path) -> None:
    tiny.save("llama", here / "plain", bos=False)
    assert "5 windows of 32 tokens (no BOS, 32), not overlapping" in cli("evaluate", "plain", *FLAGS).out
    said = cli("evaluate", "plain", "--text", "text.txt", "--protocol", "published").out
    assert f" windows of {tiny.POSITIONS} tokens (no BOS, {tiny.POSITIONS}), not overlapping" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to measure: expected --text SOURCE for perplexity, or --zero-shot TASKS."),
        (["--against", "llama"], "--against llama: says how to measure, but not what; give --text SOURCE too."),
        (
            ["--text", "text.txt", "--no-perplexity"],
            "--no-perplexity: leaves nothing to measure on a text; give --against DENSE too.",
        ),
        (["--protocol", "short"], "--protocol short: says how to measure, but not what; give --text SOURCE too."),
        (
            ["--zero-shot", "rte", "--windows", "3"],
            "--windows 3: says how to measure, but not what; give --text SOURCE too.",
        ),
        (
            ["--text", "text.txt", "--zero-shot-limit", "3"],
            "--zero-shot-limit 3: says how to measure, but not what; give --zero-shot TASKS too.",
        ),
        (
            ["--text", "text.txt", "--zero-shot-data", "rows"],
            "--zero-shot-data rows: says how to measure, but not what; give --zero-shot TASKS too.",
        ),
        (
            ["--text", "text.txt=3"],
            "--text text.txt=3: takes no COUNT; use --windows to read only the start of a text.",
        ),
        (
            ["--text", "text.txt", "--seqlen", "32", "--text", "other.txt"],
            "--text text.txt --text other.txt: one text is measured at a time; give one.",
        ),
        (
            ["--text", "text.txt", "--protocol", "short", "--windows", "3"],
            "--protocol short: sets the windows itself; leave out either --windows 3 or --protocol.",
        ),
    ],
)
def test_what_makes_no_sense_is_one_message(flags: list[str], message: str, cli: Cli) -> None:
    said = cli("evaluate", "llama", *flags)
    assert (said.code, said.out, said.err) == (2, "", f"error: {message}\n")


def test_the_help_fits_80_columns(cli: Cli) -> None:
    said = cli("evaluate", "--help")
    assert [line for line in said.out.splitlines() if len(line) > 80] == []
    assert all(name in said.out for name in PROTOCOLS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of zero-shot evaluation, which is replaced by a stand-in."""
    calls: list[Any] = []

    def zero_shot(model: str, tasks: list[str], **options: Any) -> ZeroShot:
        calls.append((model, tasks, {key: options[key] for key in ("data", "limit", "device", "precision")}))
        options["notify"](f"note: {'long ' * 20}note")
        options["progress"](1, 1)
        scores = (
            TaskScore("boolq", "acc", 0.6201, 0.0085, 3270, "a" * 64, "validation"),
            TaskScore("arc_challenge", "acc", 0.25, None, 1, "b" * 64, "test"),
        )
        limit = options["limit"]
        return ZeroShot("llama", "f" * 64, "float32", "float32", limit, "zeroshot", "lm-eval 0.4.13", scores)

    monkeypatch.setattr(zeroshot, "zero_shot", zero_shot)
    return calls


def test_zero_shot_needs_no_text_and_is_shown_as_a_table(cli: Cli, asked: list[Any]) -> None:
    said = cli("evaluate", "llama", "--zero-shot", "boolq,arc_challenge", "--device", "cpu")
    assert (said.code, said.err) == (0, "")
    assert asked == [
        ("llama", ["boolq,arc_challenge"], {"data": None, "limit": None, "device": "cpu", "precision": "auto"})
    ]
    assert said.out.splitlines()[2:4] == [
        "zero-shot  llama, fingerprint ffffffffffff; products in float32",
        "data       zeroshot, all rows; lm-eval 0.4.13",
    ]
    rows = [re.split(r"  +", line.strip()) for line in said.out.splitlines()[5:]]
    assert rows == [
        ["boolq", "3,270", "62.01 ± 0.85 %", "acc"],
        ["arc_challenge", "1", "25.00 %", "acc"],
        ["mean", "43.51 %"],
    ]
    assert [line for line in said.out.splitlines() if len(line) > 80] == []


def test_zero_shot_takes_several_values_and_a_folder(cli: Cli, asked: list[Any], here: Path) -> None:
    (here / "rows").mkdir()
    rows = {
        "boolq": {"passage": "Ice is cold.", "question": "is ice cold", "label": 1},
        "rte": {"premise": "Ice is cold.", "hypothesis": "Ice is warm.", "label": "not_entailment"},
    }
    for name, row in rows.items():
        (here / "rows" / f"{name}_dev.jsonl").write_text(json.dumps(row), encoding="utf-8")
    flags = ["--zero-shot-data", "rows", "--zero-shot-limit", "7", "--precision", "float32"]
    said = cli("evaluate", *flags, *FLAGS[:-2], "--json", "--zero-shot", "boolq", "rte", "llama")
    assert said.code == 0
    (call,) = asked
    assert call[:2] == ("llama", ["boolq", "rte"])
    assert call[2] == {"data": Path("rows"), "limit": 7, "device": "cpu", "precision": "float32"}
    record = json.loads(said.out)
    assert list(record) == ["perplexity", "zero_shot"]
    assert record["zero_shot"]["mean"] == pytest.approx(0.43505)
    notes = ["note: " + " ".join(["long"] * 15), "      " + "long " * 5 + "note"]
    assert said.err.splitlines() == notes, "what is no JSON goes elsewhere"


def test_bare_numbers_come_one_a_line(cli: Cli, asked: list[Any]) -> None:
    said = cli("evaluate", "llama", *FLAGS, "--against", "llama", "--zero-shot", "boolq", "-q")
    perplexity, error, mean = said.out.splitlines()
    assert float(perplexity) > 1
    assert (error, mean) == ("0.000000", "0.4350")
    assert said.err == ""


def test_errors_alone_never_load_the_model_whole(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it does not fit in memory, the message names what does."""

    def load_model(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(whole, "load_model", load_model)
    monkeypatch.setattr("reprune.doors.evaluation.evaluate.load_model", load_model)
    found = reprune.errors_against("llama", "llama", "text.txt", seqlen=32, max_windows=5, **EXACT)
    asked = ("evaluate", "llama", *FLAGS, "--against", "llama")
    said = cli(*asked, "--no-perplexity", "--json")
    assert (said.code, said.err, json.loads(said.out)) == (0, "", {"against": found.record()})
    remedy = (
        "; perplexity needs the whole model in memory, but --against only a block; leave perplexity out with "
        "--no-perplexity."
    )
    said = cli(*asked, "-q")
    assert (said.code, said.out, said.err) == (1, "", f"error: out of memory{remedy}\n")
    assert cli("evaluate", "llama", *FLAGS, "-q").err == "error: out of memory\n"


def test_a_text_that_was_calibrated_on_is_noticed(cli: Cli, here: Path) -> None:
    (here / "other.txt").write_text(tiny.LICENCE)  # not from the manual, which repeats passages
    assert cli("prune", "llama", "--out", "out", *QUICK, "-q").code == 0
    cut = ("--seqlen", "64", "--device", "cpu")
    said = cli("evaluate", "out", "--text", "text.txt", *cut).out
    assert re.search(r"note: text.txt holds \d+% of what this model was calibrated on", " ".join(said.split()))
    for more in ((), ("--no-perplexity",)):
        both = cli("evaluate", "out", "--text", "text.txt", *cut, "--against", "llama", *more).out
        assert both.count("note:") == both.count("note: text.txt holds") == 1
    assert "note:" not in cli("evaluate", "out", "--text", "other.txt", *cut).out
    assert "note:" not in cli("evaluate", "llama", "--text", "text.txt", *cut).out
    assert cli("evaluate", "out", "--text", "text.txt", *cut, "-q").out.count("\n") == 1
    records = [
        reprune.evaluate(model, text, seqlen=64, device="cpu").record()
        for model, text in (("out", "text.txt"), ("out", "other.txt"), ("llama", "text.txt"))
    ]
    held, other, dense = (record["calibration_overlap"] for record in records)
    assert (held > 0.02, other < 0.02, dense) == (True, True, None)
    assert reprune.errors_against("out", "llama", "text.txt", seqlen=64, device="cpu").calibration_overlap == held
    (here / "twice.txt").write_text(
        (here / "text.txt").read_text() * 2
    )  # so that what the last window leaves out is in an earlier one
    # 12 tokens, one of them BOS, are less than any passage.
    short, long = (reprune.evaluate("out", "twice.txt", seqlen=tokens, device="cpu") for tokens in (12, 64))
    assert short.calibration_overlap == pytest.approx(long.calibration_overlap, abs=0.05)
    (here / "out" / "reprune.json").write_text("{}")
    assert "note:" not in cli("evaluate", "out", "--text", "text.txt", *cut).out
