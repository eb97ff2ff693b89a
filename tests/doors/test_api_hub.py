"""A model of the Hub: what is refused before it is downloaded, and the name and commit that it has on record."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import reprune
from reprune.doors.generation.generate import generate
from reprune.errors import InputError
from reprune.planning.generation.settings import generation
from tests import tiny
from tests.doors.conftest import Cli, record_of
from tests.doors.study.runs import QUICK

COMMIT = "0123456789" * 4


@pytest.mark.parametrize("door", ["api.prune", "planned.plan"])
@pytest.mark.parametrize(
    "given", [{"calibration": "gone.txt"}, {"heldout": "gone.txt"}, {"samples": 1, "calibration": ["c4", "ptb"]}]
)
def test_a_text_that_cannot_be_is_refused_before_the_model_is_downloaded(
    door: str, given: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = door.partition(".")
    find = "find_headers" if module == "planned" else "find_model"
    monkeypatch.setattr(f"reprune.doors.{module}.{find}", lambda *_, **__: pytest.fail("the model is downloaded"))
    for wrong in (given, {"device": "cuda:99"}):
        with pytest.raises(InputError, match=r"gone\.txt|samples: expected at least one|--device cuda:99"):
            getattr(reprune, name)("owner/model", here / "out", **wrong)


@pytest.mark.parametrize(
    ("module", "call", "wrong"),
    [
        ("evaluation.evaluate", lambda: reprune.evaluate("owner/model", "gone.txt"), r"'gone\.txt': expected a file"),
        ("evaluation.evaluate", lambda: reprune.evaluate("owner/model", "text.txt", device="cuda:99"), "cuda:99"),
        ("evaluation.against", lambda: reprune.errors_against("a/b", "c/d", "gone.txt"), r"'gone\.txt': expected a"),
        ("planned", lambda: reprune.study("owner/model", "s", **QUICK, texts="gone.txt"), r"'gone\.txt': expected a"),
        ("planned", lambda: reprune.study("owner/model", "s", **QUICK, protocol="long"), "--protocol long: expected"),
        ("planned", lambda: reprune.study("owner/model", "s", **QUICK, zero_shot="boolk"), "--zero-shot boolk: no"),
        (
            "generation.generate",
            lambda: generate("owner/model", "o.jsonl", samples=1, settings=generation({}), device="cuda:99"),
            "cuda:99",
        ),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_cannot_be_measured_or_used_is_refused_before_the_model_is_downloaded(
    module: str, call: Callable[[], object], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"reprune.doors.{module}.find_model", lambda *_, **__: pytest.fail("the model is downloaded"))
    with pytest.raises(InputError, match=wrong):
        call()


def test_evaluate_refuses_before_it_compares_what_it_would_refuse_to_measure_on(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = "reprune.doors.evaluation.against.find_model"
    monkeypatch.setattr(found, lambda *_, **__: pytest.fail("the model is downloaded"))
    for flags, wrong in ((["--device", "cuda:99"], "--device cuda:99"), (["--text", "gone.txt"], "'gone.txt'")):
        text = [] if "--text" in flags else ["--text", "text.txt"]
        said = cli("evaluate", "owner/model", "--against", "owner/dense", *text, *flags)
        assert (said.code, wrong in said.err) == (2, True)


@pytest.fixture
def repository(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """owner/tiny in the cache of Hub models, with two revisions of one commit."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    for revision in ("main", "step3000"):
        (repository / "refs" / revision).write_text(COMMIT)
    shutil.copytree(llama, repository / "snapshots" / COMMIT)
    return repository


@pytest.mark.usefixtures("repository")
def test_the_commit_of_a_hub_model_is_on_record(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(tiny.text(6_000), encoding="utf-8")
    reprune.prune("owner/tiny@step3000", tmp_path / "out", **QUICK | {"calibration": str(tmp_path / "text.txt")})
    model = record_of(tmp_path / "out")["model"]
    assert (model["name"], model["commit"]) == ("owner/tiny@step3000", COMMIT)


def test_messages_call_a_hub_model_by_its_id(repository: Path, tmp_path: Path) -> None:
    for given, message in {
        "seqlen=4096": "--seqlen 4096: owner/tiny takes at most 128 tokens; give that or less",
        "distill=99": "distill.blocks 99: owner/tiny has 3 blocks",
    }.items():
        with pytest.raises(InputError, match=message):
            reprune.prune("owner/tiny", tmp_path / "out", calibration="manual", settings=given)
    with pytest.raises(InputError, match=r"^--seqlen 500: owner/tiny takes"):
        reprune.evaluate("owner/tiny", "manual", seqlen=500)
    with pytest.raises(InputError, match=r"^--length 5000: owner/tiny takes"):
        generate("owner/tiny", tmp_path / "o.jsonl", samples=1, settings=generation({"length": 5000}))
    other = tiny.save("qwen2", tmp_path / "other")
    with pytest.raises(InputError, match=r"^other and owner/tiny differ in their architecture \(qwen2 and llama\)"):
        reprune.errors_against(other, "owner/tiny", "manual", seqlen=8)
    (repository / "snapshots" / COMMIT / "reprune.json").touch()
    way = rf"\(To prune .*, 'hf download owner/tiny --revision {COMMIT} --local-dir FOLDER', remove reprune\.json there"
    with pytest.raises(InputError, match=rf"^owner/tiny: is sparse already, .* {way}"):
        reprune.plan("owner/tiny")
