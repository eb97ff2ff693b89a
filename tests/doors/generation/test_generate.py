"""`reprune generate` has a model write texts to a file with all about them, which no interruption changes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from reprune.doors.generation import generate as module
from reprune.doors.generation import local
from reprune.doors.generation.generate import generate
from reprune.engine.record import versions
from reprune.errors import InputError
from reprune.model.sampler import Sampler
from reprune.planning.generation import corpus, rounds
from reprune.planning.generation.corpus import Corpus
from reprune.planning.generation.language import Language
from reprune.planning.generation.settings import Generation, generation
from tests import tiny
from tests.doors.conftest import Cli
from tests.engine import together

SMALL = Generation(length=24, least=8, batch_size=6, filters=("duplicates", "likelihood"))
FLAGS = [
    "--samples",
    "9",
    "--length",
    "24",
    "--least",
    "8",
    "--batch-size",
    "6",
    "--filters",
    "duplicates",
    "likelihood",
]
BOUND = 60
EXACT = {"device": "cpu", "precision": "float32"}


def reads(text: str) -> Language:
    """A stand-in for the language of a text, as a tiny model writes none: half of all beginnings are English."""
    return Language("en" if sum(map(ord, text)) % 2 else "de", 0.75)


@pytest.fixture(autouse=True)
def half_is_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "language_of", reads)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_text_is_what_the_model_would_have_written(llama: Path, here: Path) -> None:
    """The twin: the whole model without a cache. It checks the greedy tokens, and the likelihood of the others."""
    manifest = generate(llama, here / "self.jsonl", samples=9, settings=SMALL, **EXACT)
    model = AutoModelForCausalLM.from_pretrained(llama)
    tokenizer = tiny.tokenizer()
    found = lines(here / "self.jsonl")
    assert len(found) == manifest["texts"] == manifest["counts"]["kept"] == 9
    for line in found:
        ids = line["token_ids"]
        assert 8 <= len(ids) <= 24
        assert line["text"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert line["first_token"] == ids[0] > 2
        assert reads(line["prefix"]).code == "en"
        with torch.no_grad():
            logits = model(torch.tensor([[1, *ids]])).logits[0].double()
        assert logits[1:5].argmax(1).tolist() == ids[1:5], "four by greedy choice"
        drawn = logits[5:-1].log_softmax(1).gather(1, torch.tensor(ids[5:])[:, None])
        assert line["mean_log_probability"] == pytest.approx(float(drawn.mean()), abs=1e-3)
        assert line["ended"] == (len(ids) < 24)
    rejected = lines(here / "self.rejected.jsonl")
    assert len(rejected) == sum(count for name, count in manifest["counts"].items() if name.startswith("rejected"))
    assert all(reads(line["prefix"]).code == "de" for line in rejected if line["rejected"] == "prefix")
    assert manifest["made_by"]["settings"]["length"] == 24
    assert manifest["made_by"]["model"]["name"] == "llama"


def test_what_is_drawn_is_decided_by_the_seed_and_the_rounds_number(llama: Path) -> None:
    def drawn(seed: int, number: int) -> list[rounds.Written]:
        author = local.LocalAuthor(llama, tiny.tokenizer(), Generation(length=24, seed=seed), "cpu", "float32")
        return author.write([(70, 71, 72, 73, 74)] * 2, number)

    assert drawn(0, 5) == drawn(0, 5)
    assert drawn(0, 5) not in (drawn(0, 6), drawn(1, 5), drawn(1, 4))


def test_the_file_is_calibrated_on_with_the_tokens_as_they_were_written(here: Path, cli: Cli) -> None:
    generate("llama", "self.jsonl", samples=9, settings=SMALL, **EXACT)
    said = cli(
        *("prune", "llama", "--out", "out", "--pruner", "wanda", "--reconstruct", "LR", "--seqlen", "12"),
        *("--calibration", "self.jsonl=6", "--heldout", "self.jsonl=2"),
    )
    assert (said.code, said.err) == (0, "")
    record = json.loads((here / "out" / "reprune.json").read_text())
    assert [(one["name"], one["count"], one["role"]) for one in record["data"]["sources"]] == [
        ("self.jsonl", 6, "calibration"),
        ("self.jsonl", 2, "heldout"),
    ]


@contextmanager
def stopped(when: int = 0) -> Iterator[list[None]]:
    """Interrupt at the given step of the model; with 0, only note the steps."""
    step, steps = Sampler._last_logits, list[None]()

    def noted(*arguments: Any) -> torch.Tensor:
        steps.append(None)
        if len(steps) == when:
            raise KeyboardInterrupt
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "_last_logits", noted)
        yield steps


def test_an_interrupted_file_ends_as_one_that_was_not(llama: Path, here: Path) -> None:
    with stopped() as steps:
        generate("llama", "whole/self.jsonl", samples=9, settings=SMALL, **EXACT)
    for when in (1, len(steps) // 2, len(steps)):
        folder = here / "cut" / str(when)
        with pytest.raises(KeyboardInterrupt), stopped(when):
            generate("llama", folder / "self.jsonl", samples=9, settings=SMALL, **EXACT)
        assert not (folder / "self.manifest.json").exists()
        generate("llama", folder / "self.jsonl", samples=9, settings=SMALL, **EXACT)
        assert files(folder) == files(here / "whole")
    again = files(here / "whole")
    manifest = generate("llama", "whole/self.jsonl", samples=9, settings=SMALL, **EXACT)
    assert manifest["texts"] == 9
    assert files(here / "whole") == again, "a file that is whole is left as it is"


@pytest.mark.parametrize("steps", [(4,), (1, 2, 5), (8,)])
def test_a_file_that_is_asked_for_more_ends_as_one_that_was_at_once(steps: tuple[int, ...], here: Path) -> None:
    generate("llama", "whole/self.jsonl", samples=9, settings=SMALL, **EXACT)
    for samples in (*steps, 9):
        assert generate("llama", "grown/self.jsonl", samples=samples, settings=SMALL, **EXACT)["texts"] == samples
        assert len(lines(here / "grown" / "self.jsonl")) == samples
    assert files(here / "grown") == files(here / "whole")
    with pytest.raises(InputError, match=r"has 9 texts already; give --samples 9 or more, or another file"):
        generate("llama", "grown/self.jsonl", samples=8, settings=SMALL, **EXACT)
    with pytest.raises(InputError, match=r"begun with other settings \(seed 0, now 9\)"):
        generate("llama", "grown/self.jsonl", samples=12, settings=SMALL.model_copy(update={"seed": 9}), **EXACT)
    assert files(here / "grown") == files(here / "whole")


def test_a_file_is_not_gone_on_with_by_another_tokenizer(here: Path) -> None:
    tokenizer = shutil.copytree("llama", here / "own") / "tokenizer.json"
    generate("own", "self.jsonl", samples=3, settings=SMALL, **EXACT)
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(InputError, match=r"begun with other settings \(the model's tokenizer\.json\); give the same"):
        generate("own", "self.jsonl", samples=4, settings=SMALL, **EXACT)


def test_a_file_is_not_gone_on_with_by_other_versions(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate("llama", "self.jsonl", samples=3, settings=SMALL, **EXACT)
    monkeypatch.setattr(module, "versions", lambda: {**versions(), "torch": "1.0"})
    with pytest.raises(InputError, match=r"begun with other settings \(torch .*, now 1\.0\); give the same"):
        generate("llama", "self.jsonl", samples=4, settings=SMALL, **EXACT)


def test_a_file_that_is_written_to_is_kept_from_other_processes(here: Path) -> None:
    class Looking(module.GenerationWatcher):
        def round_done(self, kept: int, wanted: int, counts: Any) -> None:
            with pytest.raises(InputError, match="another process is working on this file"):
                generate("llama", "self.jsonl", samples=3, settings=SMALL, **EXACT)
            looked.append(kept)

    looked: list[int] = []
    generate("llama", "self.jsonl", samples=3, settings=SMALL, **EXACT, watcher=Looking())
    assert looked[-1] == 3


def test_growing_that_is_interrupted_goes_on(here: Path) -> None:
    generate("llama", "whole/self.jsonl", samples=9, settings=SMALL, **EXACT)
    generate("llama", "grown/self.jsonl", samples=4, settings=SMALL, **EXACT)
    with pytest.raises(KeyboardInterrupt), stopped(1):
        generate("llama", "grown/self.jsonl", samples=9, settings=SMALL, **EXACT)
    assert len(files(here / "grown")) == 4, "the ledger of rounds is there again"
    generate("llama", "grown/self.jsonl", samples=9, settings=SMALL, **EXACT)
    assert files(here / "grown") == files(here / "whole")


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_copy_by_hard_links_grows_by_itself(interrupted: bool, here: Path) -> None:
    """As `cp -al` makes one in a moment; of files that are whole, and of others."""
    generate("llama", "whole/self.jsonl", samples=9, settings=SMALL, **EXACT)
    generate("llama", "begun/self.jsonl", samples=4, settings=SMALL, **EXACT)
    if interrupted:
        with pytest.raises(KeyboardInterrupt), stopped(1):
            generate("llama", "begun/self.jsonl", samples=9, settings=SMALL, **EXACT)
    before = files(here / "begun")
    shutil.copytree(here / "begun", here / "copy", copy_function=os.link)
    for folder in (here / "copy", here / "begun"):
        generate("llama", folder / "self.jsonl", samples=9, settings=SMALL, **EXACT)
        assert files(folder) == files(here / "whole")
        assert folder.name == "begun" or files(here / "begun") == before


def _killed(step: int, *arguments: str) -> None:
    """The command line, killed in its second round before durable step number `step`."""
    add, append, left = Corpus.add, corpus.append_line, [-1]

    def adding(self: Corpus, found: Any) -> None:
        left[0] = step if self.next_round == 1 else -1
        add(self, found)

    def appending(path: Path, line: str) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        append(path, line)

    rounds.language_of = reads
    Corpus.add, corpus.append_line = adding, appending  # type: ignore[method-assign]  # that is the fault
    together.command(*arguments)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_killed_process_is_gone_on_with(step: int, here: Path, cli: Cli) -> None:
    """In a separate process, before it writes what it kept, what it rejected, or that the round is done."""
    arguments = ["generate", "llama", *FLAGS, "--samples", "24", "--device", "cpu", "--precision", "float32", "--out"]
    assert cli(*arguments, "whole/self.jsonl").code == 0
    assert together.start_alone(_killed, step, *arguments, "cut/self.jsonl").wait(BOUND).code == -signal.SIGKILL
    said = cli(*arguments, "cut/self.jsonl")
    assert (said.code, said.err) == (0, "")
    assert files(here / "cut") == files(here / "whole")


def test_what_is_printed_fits_a_narrow_terminal_and_says_why(here: Path, cli: Cli) -> None:
    said = cli("generate", "llama", "--out", "self.jsonl", *FLAGS, "--show")
    assert (said.code, said.err) == (0, "")
    assert [line for line in said.out.splitlines() if len(line) > 80] == []
    assert "9/9 texts of " in said.out
    assert "texts      self.jsonl: 9\n" in said.out
    assert "rejected   prefix " in said.out
    assert said.out.count("\nkept: prefix reads as en, length ") == 9
    quiet = cli("generate", "llama", "--out", "self.jsonl", *FLAGS, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    other = cli("generate", "llama", "--out", "self.jsonl", *FLAGS, "--seed", "1")
    assert other.code == 2
    way_on = "give the same again, or another file."
    assert other.err == f"error: --out self.jsonl: was begun with other settings (seed 0, now 1); {way_on}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "0"], "--samples 0: expected at least 1."),
        (["--length", "5"], "--length 5: input should be greater than 5."),
        (
            ["--length", "200"],
            "--length 200: llama takes at most 128 tokens, 1 of which begin each text; give --length 127",
        ),
        (["--least", "30"], "least 30 is more than length 24."),
        (["--temperature", "0"], "--temperature 0.0: input should be greater than 0."),
        (["--top-p", "1.5"], "--top-p 1.5: input should be less than 1."),
        (["--top-p", "1"], "--top-p 1.0: input should be less than 1. Leave it out to draw from all tokens."),
        (
            ["--top-k", "0"],
            "--top-k 0: input should be greater than or equal to 1. Leave it out to draw from all tokens.",
        ),
        (["--batch-size", "2147483648"], "--batch-size 2147483648: input should be less than 2147483648."),
        (["--language", "xx"], "--language xx: expected any, or a code of ISO 639 among "),
        (
            ["--filters", "none", "duplicates"],
            "--filters none: stands alone; leave it or the others out.",
        ),
        (
            ["--filters", "typos"],
            "filters: expected some of language, repetition, code, duplicates, ",
        ),
        (["--out", "self.txt"], "--out self.txt: expected a file that ends in .jsonl."),
        (["--endpoint-model", "m"], "--endpoint-model m: names a model of a server; give its --endpoint URL too."),
    ],
)
def test_wrong_uses_are_refused_and_nothing_is_written(flags: list[str], message: str, here: Path, cli: Cli) -> None:
    before = set(here.iterdir())
    said = cli("generate", "llama", "--out", "self.jsonl", *FLAGS, *flags)
    assert said.code == 2
    assert said.err.startswith(f"error: {message}")
    assert set(here.iterdir()) == before


def test_beside_anothers_file_nothing_is_written(here: Path, cli: Cli) -> None:
    (here / "self.rejected.jsonl").write_text("years of work", encoding="utf-8")
    before = set(here.iterdir())
    said = cli("generate", "llama", "--out", "self.jsonl", *FLAGS)
    assert (said.code, set(here.iterdir())) == (2, before)
    assert said.err == "error: --out self.jsonl: self.rejected.jsonl exists already; give another file.\n"


@pytest.mark.parametrize("out", ["text.txt/self.jsonl", "text.txt/below/self.jsonl"])
def test_a_place_that_cannot_be_written_is_refused(out: str, here: Path, cli: Cli) -> None:
    before = set(here.iterdir())
    said = cli("generate", "llama", "--out", out, *FLAGS)
    assert said.code == 2
    assert said.err == f"error: --out {out}: a file is in the place of one of its folders; give another file.\n"
    assert set(here.iterdir()) == before


def test_a_name_that_is_too_long_is_refused(here: Path, cli: Cli) -> None:
    said = cli("generate", "llama", "--out", f"{'a' * 300}.jsonl", *FLAGS)
    assert (said.code, f"({os.strerror(errno.ENAMETOOLONG)}); give another file.\n" in said.err) == (2, True)


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOSPC, 1)])
def test_a_folder_without_the_right_to_write_is_refused_and_a_full_one_fails(
    number: int, code: int, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system would say it, which lets root write everywhere."""

    def touch(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "touch", touch)
    said = cli("generate", "llama", "--out", "self.jsonl", *FLAGS)
    refused = f"error: --out self.jsonl: cannot be written ({os.strerror(number)}); give another file.\n"
    full = f"error: {os.strerror(number)}: self.jsonl\n"
    assert (said.code, said.err) == (code, refused if code == 2 else full)
    assert not list(here.glob("self*"))


def test_a_length_that_is_not_given_is_the_models_limit(here: Path, cli: Cli) -> None:
    flags = [flag for flag in FLAGS if flag not in ("--length", "24")]
    assert cli("generate", "llama", "--out", "self.jsonl", *flags, "-q").code == 0
    manifest = json.loads(next(here.glob("self*.json")).read_text(encoding="utf-8"))
    assert manifest["made_by"]["settings"]["length"] == tiny.POSITIONS - 1, "beside BOS"
    assert max(len(line["token_ids"]) for line in lines(here / "self.jsonl")) == tiny.POSITIONS - 1
    for fitting in (generation({"length": tiny.POSITIONS - 1}), generation({"least": tiny.POSITIONS - 1})):
        assert module._fitting(here / "llama", fitting, 1, False).length == tiny.POSITIONS - 1
    least = cli("generate", "llama", "--out", "other.jsonl", *flags, "--least", "200")
    assert (least.code, least.out) == (2, "")
    assert "takes at most 128 tokens" in least.err


def test_where_nothing_passes_it_says_so_and_ends(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "language_of", lambda text: Language("de", 0.9))
    with pytest.raises(
        InputError, match=r"20 rounds in a row gave no text that passes \(begun 240, rejected prefix 240\)"
    ):
        generate("llama", "self.jsonl", samples=9, settings=SMALL, **EXACT)


def test_a_text_ends_where_the_configuration_says_and_where_it_is_no_text() -> None:
    model = tiny.build("llama")
    assert local.ends_of(model, tiny.tokenizer()) == {0, 1, 2}
    model.generation_config.eos_token_id = [5, 6]
    assert local.ends_of(model, tiny.tokenizer()) == {0, 1, 2, 5, 6}
    for strange in ("</s>", 2.0, 2**63, [5, None], [[5]]):
        model.generation_config.eos_token_id = strange
        with pytest.raises(InputError, match=r"its eos_token_id is .*; expected the number of a token"):
            local.ends_of(model, tiny.tokenizer())


def test_settings_have_a_key_of_their_own() -> None:
    one, other = generation({"length": 64}), generation({"length": 65})
    assert one.key("model") == generation({"length": 64, "seed": None}).key("model")
    assert len({one.key("model"), other.key("model"), one.key("another")}) == 3


def test_rounds_that_keep_nothing_end_it_only_in_a_row(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other round here keeps nothing."""
    judged, plain = list[rounds.Draft](), rounds.judge

    def every_other(draft: rounds.Draft, filters: Any, wanted: int) -> rounds.Round:
        judged.append(draft)
        return plain(draft, filters, 1) if len(judged) % 2 else rounds.Round()

    monkeypatch.setattr(module, "_HOPELESS", 2)
    monkeypatch.setattr(module, "judge", every_other)
    manifest = generate("llama", here / "self.jsonl", samples=3, settings=SMALL, **EXACT)
    assert (manifest["texts"], manifest["rounds"]) == (3, 5)
