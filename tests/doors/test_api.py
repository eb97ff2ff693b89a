"""The Python API accepts what a caller naturally gives, and a caller's PyTorch settings change no bit of a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import reprune
from reprune.doors.command.views_status import show_status
from reprune.doors.generation.generate import generate
from reprune.errors import InputError
from reprune.files.local import quoted_command
from reprune.math.ranks import ALONE, Together
from reprune.planning.generation.settings import generation
from tests import tiny
from tests.doors.conftest import Cli, record_of
from tests.doors.study.runs import QUICK
from tests.engine import together
from tests.model.test_undisturbed import SURROUNDINGS


def _weights(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))).hexdigest()


class _Meddling(reprune.Watcher):
    """Turns gradients off in each of its methods."""

    def epoch(self, *_: Any) -> None:
        torch.set_grad_enabled(False)

    def window_done(self, *_: Any) -> None:
        torch.set_grad_enabled(False)


class _Interrupting(reprune.Watcher):
    """Ends the run after its first window."""

    def window_done(self, *_: Any) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def done(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with ordinary arguments; tests must not change it."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "text.txt").write_text(tiny.text(6_000), encoding="utf-8")
    reprune.prune(llama, folder / "out", **QUICK | {"calibration": str(folder / "text.txt")})
    return folder / "out"


def _measured(model: Path) -> tuple[float, float, bool]:
    how: Any = {"seqlen": 24, "max_windows": 4, "device": "cpu", "precision": "float32"}
    perplexity = reprune.evaluate(model, "text.txt", **how).perplexity
    error = reprune.errors_against(model, "llama", "text.txt", **how).blocks[-1].normalized
    return perplexity, error, reprune.verify(model).passed


@pytest.mark.parametrize("name", ["inference_mode", "autocast", "float64", "meta by default"])
def test_what_a_caller_has_set_changes_no_bit(name: str, here: Path, done: Path) -> None:
    with SURROUNDINGS[name]():
        random, plan = torch.get_rng_state(), reprune.plan("llama", "out", **QUICK)
        assert plan.memory_bytes > 0
        assert plan.refusals == ()
        assert torch.equal(torch.get_rng_state(), random)
        reprune.prune("llama", "out", **QUICK)
        found = _measured(here / "out")
    assert _weights(here / "out") == _weights(done)
    assert found == _measured(done)


def test_half_precision_within_a_callers_autocast_is_as_without(here: Path) -> None:
    half = QUICK | {"settings": ["precision=bfloat16"]}
    reprune.prune("llama", "plain", **half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reprune.prune("llama", "within", **half)
    assert _weights(here / "within") == _weights(here / "plain")


def test_the_record_that_is_returned_is_the_one_on_disk(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reprune.prune("llama", "out", **QUICK) == record_of(Path("out"))
    with pytest.raises(KeyboardInterrupt):
        reprune.prune("llama", "again", **QUICK, watcher=_Interrupting())
    monkeypatch.chdir(here.parent)
    assert reprune.resume(here / "again") == record_of(here / "again")
    once, again = ((here / out / "recipe.yaml").read_text(encoding="utf-8") for out in ("out", "again"))
    assert "- ../text.txt\n" in once
    assert again == once, "wherever it goes on"


def test_a_watcher_is_told_of_no_more_epochs_than_there_are(here: Path) -> None:
    """Given one epoch, `auto` runs two in a window of two blocks."""
    told: dict[int, list[tuple[int, int]]] = {}

    class Counting(reprune.Watcher):
        def epoch(self, window: Any, epoch: Any, of: int) -> None:
            told.setdefault(len(window.blocks), []).append((epoch.number, of))

    reprune.prune("llama", "out", **{**QUICK, "epochs": 1}, reconstruct="auto", watcher=Counting())
    assert set(told[1]) == {(1, 1)}
    assert set(told[2]) == {(1, 2), (2, 2)}


def test_a_watcher_that_turns_gradients_off_changes_nothing(here: Path, done: Path) -> None:
    reprune.prune("llama", "out", **QUICK, watcher=_Meddling())
    assert _weights(here / "out") == _weights(done)
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("here")
def test_a_run_leaves_a_callers_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    reprune.prune("llama", "out", **QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_is_worked_on_is_told_from_one_that_was_left(
    here: Path, cli: Cli, capfd: pytest.CaptureFixture[str]
) -> None:
    doors: dict[str, Callable[[], object]] = {
        "prune": lambda: reprune.prune("llama", "out", **QUICK),
        "of it": lambda: reprune.prune("out", "other", **QUICK),
        "plan": lambda: reprune.plan("out", **QUICK),
        "verify": lambda: reprune.verify("out"),
        "report": lambda: reprune.report("out"),
        "evaluate": lambda: reprune.evaluate("out", "text.txt"),
        "against": lambda: reprune.errors_against("out", "llama", "text.txt"),
    }

    def check(running: bool, said: str, way_on: str) -> None:
        capfd.readouterr()
        assert reprune.status("out").running == running
        show_status(reprune.status("out"), Path("out"))
        assert capfd.readouterr().out.endswith(f"\n{said}\n")
        for door in doors.values():
            with pytest.raises(InputError, match=way_on):
                door()

    class Looking(reprune.Watcher):
        def window_done(self, window: Any, record: Any) -> None:
            check(True, "running", "another process is working on")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reprune.prune("llama", "out", **QUICK, watcher=Looking())
    check(False, "unfinished; go on with: reprune resume out", "reprune resume out")
    generated = cli("generate", "out", "--out", "texts.jsonl", "--samples", "2")
    assert generated.err == "error: out: holds an unfinished run; go on with 'reprune resume out'.\n"
    reprune.resume("out")
    assert not reprune.status("out").running


def test_a_window_that_was_done_on_another_machine_names_it_and_its_peak_and_time_count(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(reprune.Watcher):
        def window_done(self, window: Any, record: Any) -> None:
            raise KeyboardInterrupt

    there = {"system": "Linux riscv64", "threads": 64, "device": "cpu"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("reprune.engine.record.machine", lambda _: there)
        patch.setattr("reprune.engine.record.peak_memory_bytes", lambda _: {"host": 10**15, "device": 0})
        patch.setattr("reprune.engine.run.time", SimpleNamespace(monotonic=partial(next, count(0.0, 1e6))))
        reprune.prune("llama", "out", **QUICK, watcher=Ending())
    record = reprune.resume("out")
    assert record["machine"] != there
    assert [window.get("machine") for window in record["windows"]] == [there, None, None]
    assert record["peak_memory_bytes"]["host"] == 10**15
    assert record["windows"][0]["seconds"] == 1e6
    assert record["seconds"] == pytest.approx(sum(window["seconds"] for window in record["windows"]))


def test_a_study_is_no_model_and_no_run(here: Path, cli: Cli) -> None:
    (here / "grid").mkdir()
    (here / "grid" / "study.json").write_text("{}")
    said = (
        "error: grid: holds a study: 'reprune report grid' shows it, and the same 'reprune study' command goes "
        "on with it; with --keep-models, its cells' models are grid/cells/NAME.\n"
    )
    for command in ("status", "resume", "verify", "plan"):
        assert cli(command, "grid").err == said, command


def test_a_command_in_a_message_has_quotes_that_it_does_not_hold(here: Path, cli: Cli) -> None:
    (here / "a grid").mkdir()
    (here / "a grid" / "study.json").write_text("{}")
    assert "holds a study: \"reprune report 'a grid'\" shows it" in cli("verify", "a grid").err
    assert quoted_command("reprune", "resume", "out") == "'reprune resume out'"


def test_a_path_may_begin_with_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    (here / "recipe.yaml").write_text("sparsity: 0.25", encoding="utf-8")
    record = reprune.prune("~/llama", "~/out", recipe="~/recipe.yaml", **QUICK | {"epochs": 1})
    assert record["recipe"]["sparsity"] == "0.25"
    assert not (here / "~").exists()
    assert reprune.status("~/out").finished
    assert reprune.verify("~/out").passed
    with pytest.raises(reprune.InputError, match="this run is finished"):
        reprune.resume("~/out")
    assert str(reprune.report("~/out", "~/page.html")) == str(here / "page.html")
    assert "is not empty" in reprune.plan("llama", "~/out", **QUICK).refusals[0]
    with pytest.raises(reprune.InputError, match=str(here / "text.txt")):
        reprune.study("llama", "~/text.txt", pruners=["wanda"], rungs=["LR"], texts=["text.txt"])
    with pytest.raises(reprune.InputError, match=str(here / "text.txt")):
        generate("llama", "~/text.txt", samples=1, settings=generation({}))


def _together(out: str) -> None:
    """A script that a launcher starts several times."""
    ranks = Together(60)
    print(reprune.prune("llama", out, **QUICK, ranks=ranks)["ranks"])
    ranks.close()


def test_a_script_that_is_launched_says_whether_it_does_one_run_or_many(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [rank.wait(60) for rank in together.start(2, _together, "out")]
    assert [(one.code, one.out) for one in ended] == [(0, "2\n")] * 2
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="prune: a launcher has started this process as one of several"):
        reprune.prune("llama", "own", **QUICK)
    with pytest.raises(InputError, match="resume: a launcher"):
        reprune.resume("own")
    assert not (here / "own").exists()
    assert "ranks" not in reprune.prune("llama", "own", **QUICK, ranks=ALONE)


def test_sources_may_be_paths_alone_or_in_lists(here: Path, done: Path) -> None:
    text, device = here / "text.txt", torch.device("cpu")
    plain = reprune.plan("llama", **QUICK | {"heldout": "text.txt"})
    for given in (Path("text.txt"), [Path("text.txt")]):
        found = reprune.plan("llama", **QUICK | {"calibration": given, "heldout": given, "device": device})
        assert found.recipe == plain.recipe
        sources = {"calibration": given, "heldout": given}
        others = {key: value for key, value in QUICK.items() if key not in sources}
        assert reprune.plan("llama", recipe=sources, **others).recipe == plain.recipe
    how: Any = {"seqlen": 24, "max_windows": 1, "device": device, "precision": "float32"}
    assert reprune.evaluate(done, text, **how) == reprune.evaluate(done, "text.txt", **how)
    assert reprune.errors_against(done, "llama", text, **how).text == "text.txt"


def test_one_window_may_be_the_whole_model_and_a_rung_may_have_windows_larger_than_it(here: Path) -> None:
    def blocks(model: str | Path, *settings: str) -> list[list[int]]:
        options = QUICK | {"settings": ["precision=float32", *settings]}
        return [list(window.blocks) for window in reprune.plan(model, **options).schedule]

    assert blocks("llama", "schedule.size=3") == [[0], [0, 1], [0, 1, 2], [1, 2], [2]]
    assert blocks("llama", "schedule.size=1000", "schedule.stride=1000") == [[0, 1, 2]]
    tiny.save("llama", here / "single")
    config = json.loads((here / "single" / "config.json").read_text())
    (here / "single" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "layer_types": None}))
    assert blocks("single", "reconstruct=BR+GP+CR") == [[0], [0]]


def test_one_text_in_place_of_a_sequence_is_its_one_element(here: Path) -> None:
    settings = reprune.plan("llama", **QUICK | {"settings": "precision=float32"})
    assert settings.recipe == reprune.plan("llama", **QUICK).recipe
    axes: Any = {"pruners": "wanda", "rungs": "LR", "only": "attention", "texts": here / "text.txt"}
    record = reprune.study(
        "llama", "grid", **axes, text_seqlen=24, windows=2, **QUICK | {"settings": "distill.blocks=0"}
    )
    assert [(cell["pruner"], cell["rung"], cell["error"]) for cell in record["cells"]] == [("wanda", "LR", None)]
    assert list(record["measures"]["texts"]) == ["text.txt"]
    with pytest.raises(reprune.InputError, match="--zero-shot boolk: no such task"):
        reprune.zero_shot("llama", "boolk")
    with pytest.raises(reprune.InputError, match="--zero-shot boolk: no such task"):
        reprune.study("llama", "other", **axes, text_seqlen=24, windows=2, zero_shot="boolk", **QUICK)


@pytest.mark.usefixtures("here")
def test_a_recipe_may_be_that_of_a_plan_or_of_a_record() -> None:
    plan = reprune.plan("llama", **QUICK | {"sparsity": "2:4", "reconstruct": "LR"})
    record = {"recipe": plan.recipe.model_dump(mode="json"), "model": {"name": "theirs"}, "seed": 0}
    for recipe in (plan.recipe, record):
        assert reprune.plan("llama", recipe=recipe).recipe == plan.recipe
    assert reprune.plan("llama", recipe=plan.recipe, sparsity=0.25).recipe.sparsity == "0.25"
    for asked in ({"device": "cuda", "precision": "float16"}, {"device": "auto", "precision": "auto"}):
        elsewhere = reprune.plan("llama", recipe=plan.recipe.model_copy(update=asked), on="h100").recipe
        assert elsewhere == plan.recipe.model_copy(update=asked), "this machine has only looked at it"


@pytest.mark.parametrize(("out", "said"), [("link", "is a link to gone, "), ("link/out", "link is a link to gone, ")])
def test_a_link_to_nothing_is_refused_at_once(out: str, said: str, here: Path, cli: Cli) -> None:
    (here / "link").symlink_to("gone")
    ended = cli("prune", "no-model", "--out", out, "--calibration", "text.txt")
    assert (ended.code, ended.err) == (
        2,
        f"error: --out {out}: {said}which does not exist; make that folder, or give another.\n",
    )
    assert not (here / "gone").exists()


@pytest.mark.parametrize("function", [reprune.prune, reprune.study])
def test_it_is_said_where_a_recipe_file_alone_lets_code_run(
    function: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    for kind in (reprune.Watcher, reprune.StudyWatcher):
        monkeypatch.setattr(kind, "note", lambda _, text: notes.append(text))
    (here / "theirs.yaml").write_text("trust_remote_code: true")
    (here / "mine.yaml").write_text("seed: 0")
    said = ["theirs.yaml sets trust_remote_code: Python code that comes with the model is run"]
    for recipe, more, expected in [
        ("theirs.yaml", {}, said),
        (here / "theirs.yaml", {}, [f"{here}/{said[0]}"]),
        ("theirs.yaml", {"trust_remote_code": True}, []),
        ("theirs.yaml", {"settings": "trust_remote_code=false"}, []),
        ("mine.yaml", {"settings": "trust_remote_code=true"}, []),
        ({"trust_remote_code": True}, {}, []),
    ]:
        with pytest.raises(reprune.InputError, match="no-model"):
            function("./no-model", "out", recipe=recipe, **more)
        assert notes == expected
        notes.clear()
