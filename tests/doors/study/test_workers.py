"""What a study asks of a Ray cluster, and what its workers do, shown with a stand-in for Ray."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
import ray

from reprune.doors.study import cluster as module
from reprune.doors.study.cell import CellTask, Outcome
from reprune.doors.study.cluster import OnRay, do_cell
from reprune.doors.study.grid import Cell
from reprune.doors.study.measures import Bench, Measures, Text
from reprune.doors.study.needs import Needs
from reprune.doors.study.record import StudyFolder, new_cell, read_apart, read_study, save_apart
from reprune.doors.study.run import study
from reprune.doors.study.watcher import StudyWatcher
from reprune.engine.record import versions
from reprune.errors import InputError
from reprune.planning.recipe import Recipe
from tests.doors.study.runs import SETTINGS, copy_of
from tests.doors.study.test_going_on import Heard


class _Ray:
    """A stand-in for Ray: it has nodes, of which the first is dead, and loses each worker `lost` times."""

    exceptions = ray.exceptions
    versions: Mapping[str, str] | None = versions()  # on all nodes; None: reprune is not there

    def __init__(self, *nodes: Mapping[str, float], lost: int = 0) -> None:
        self._nodes = nodes
        self._lost = lost
        self.begun: list[tuple[Any, ...]] = []
        self.asked: list[Any] = []
        self.settings: list[dict[str, Any]] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": number > 0, "Resources": node, "NodeID": str(number) * 56, "NodeManagerHostname": "there"}
            for number, node in enumerate(self._nodes)
        ]

    def remote(self, *work: Any) -> Any:
        """Stands in for `ray.remote` of a function, and for `remote` of its arguments."""
        (self.begun if len(work) > 1 else self.asked).append(work)
        return object() if len(work) > 1 else self

    def options(self, **settings: Any) -> Any:
        self.settings.append(settings)
        return self

    def wait(self, running: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return running[:num_returns], running[num_returns:]

    def get(self, ended: Any) -> Any:
        if ended is self:  # the answer of `versions`
            if self.versions is None:
                raise ray.exceptions.RaySystemError("Traceback:\nNo module named 'reprune'")
            return self.versions
        if len(self.begun) <= self._lost:
            raise ray.exceptions.WorkerCrashedError
        return {"status": "pending", "seconds": 3.0}, Outcome({}), ["a note"]


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("head:6379", [("head", 6379)]),
        ("ray://head:10001", [("head", 10001)]),
        ("[fd00::1]:6379", [("fd00::1", 6379)]),
        ("ray://[fd00::1]:10001", [("fd00::1", 10001)]),
        ("auto", []),
        ("local", []),
        ("head:port", []),
    ],
)
def test_a_host_and_its_port_are_asked_whether_a_cluster_is_there(
    address: str, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, int]] = []

    def create_connection(place: tuple[str, int], timeout: float) -> Any:
        found.append(place)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(module.socket, "create_connection", create_connection)
    module._check_reachable(address)
    assert found == asked


@pytest.mark.parametrize(
    ("address", "told", "given"),
    [
        ("", None, {"address": "local", "include_dashboard": False, "object_store_memory": 100_000_000}),
        ("", "auto", {"address": "auto"}),
        ("local", "auto", {"address": "local"}),
    ],
)
def test_a_cluster_is_the_one_named_or_that_of_the_environment_or_a_new_one(
    address: str, told: str | None, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda **settings: begun.append(settings)))
    for name in ("RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    if told is not None:
        monkeypatch.setenv("RAY_ADDRESS", told)
    OnRay(address, Path(".cells"), StudyWatcher())
    assert begun == [{**given, "log_to_driver": False, "logging_level": logging.ERROR}]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0", "Ray tells its makers nothing unless it is asked to"


def test_a_cluster_that_cannot_be_used_is_refused_with_the_first_sentence_of_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("Could not find any\n running Ray instance. Please specify the one to connect to.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(InputError) as refused:
        OnRay("auto", Path(".cells"), StudyWatcher())
    assert str(refused.value) == "--ray auto: no cluster that can be used (Could not find any running Ray instance)."
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^--ray needs Ray; install it with: pip install 'reprune\[ray\]'$"):
        OnRay("auto", Path(".cells"), StudyWatcher())


@pytest.mark.parametrize(
    ("wanted", "at_once"), [(Needs(1, 0, 10), 6), (Needs(2, 0, 10), 3), (Needs(1, 0, 40), 3), (Needs(1, 1, 10), 2)]
)
def test_as_many_cells_are_done_at_a_time_as_nodes_that_live_have_room_for(
    wanted: Needs, at_once: int, tmp_path: Path
) -> None:
    crew = object.__new__(OnRay)
    dead = {"CPU": 64.0, "memory": 1e12, "GPU": 8.0}
    crew._ray = _Ray(dead, {"CPU": 4.0, "memory": 100.0, "GPU": 2.0}, {"CPU": 2.0, "memory": 50.0})
    crew.check({"a": wanted})
    assert crew.at_once == at_once
    crew.check({"a": wanted, "b": Needs(2, 0, 10)})
    assert crew.at_once == min(at_once, 3), "of the cells that need most"
    largest = r"\(the largest: 4 CPU, 2 GPU, 0\.0 GB of memory\)"
    with pytest.raises(InputError, match=rf"cell b needs 1 CPU, 3 GPU, 0\.0 GB of memory; no node has that {largest}"):
        crew.check({"a": wanted, "b": Needs(1, 3, 10)})
    crew.check({})
    crew._apart = tmp_path
    assert (crew.at_once, list(crew.do([]))) == (1, []), "of a study that is done already"


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (
            {**versions(), "torch": "1.0"},
            r"--ray: node there has torch 1\.0 \(here .*\); install the same on all nodes",
        ),
        (None, r"--ray: node there cannot load reprune \(No module named 'reprune'\); install it there"),
    ],
)
def test_a_node_that_cannot_do_a_cell_as_here_is_refused(there: Mapping[str, str] | None, message: str) -> None:
    crew = object.__new__(OnRay)
    crew._ray = _Ray({}, {"CPU": 0.0, "memory": 9.0}, {"CPU": 1.0, "memory": 9.0})
    crew._ray.versions = there
    with pytest.raises(InputError, match=message):
        crew.check({"a": Needs(1, 0, 1)})
    crew.check({})  # no node has anything to do

    (asked,) = crew._ray.settings
    place = asked.pop("scheduling_strategy")
    assert (place.node_id, place.soft) == ("2" * 56, False), "of the nodes that live, the one with a core"
    assert asked == {"num_cpus": 0, "max_retries": 0}, "though its cores are busy"


def test_a_node_that_lacks_the_package_of_a_pruner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "versions", lambda *pruners: {**versions(), **dict.fromkeys(pruners, "2.0")})
    crew = object.__new__(OnRay)
    crew._ray = _Ray({}, {"CPU": 1.0, "memory": 9.0})
    with pytest.raises(InputError, match=r"--ray: node there has mine none \(here 2\.0\); install the same"):
        crew.check({"a": Needs(1, 0, 1)}, ["mine"])
    assert crew._ray.asked[-1] == ("mine",)


_BENCH = Bench(Measures(("test.txt",), zero_shot_data=Path("rows")), "cpu", "float32", False)


@pytest.mark.parametrize("model", ["llama", "owner/tiny"])
def test_a_worker_is_given_what_its_cell_needs_and_paths_that_hold_on_all_nodes(model: str, here: Path) -> None:
    here = here.resolve()
    crew = object.__new__(OnRay)
    crew._ray, crew._apart, crew._watcher = _Ray(), Path(".cells"), StudyWatcher()
    crew._needs = {"a": Needs(2, 1, 30)}
    recipe, text = Recipe(model=model, calibration=["text.txt=4"]), Text("test.txt", "test.txt", "ab" * 32)
    task = CellTask({"name": "a"}, (1, 1), recipe, Path("s/cells/a"), _BENCH, [text], False)
    list(crew.do([task]))
    assert crew._ray.settings == [{"name": "a", "num_cpus": 2, "num_gpus": 1, "memory": 30, "max_retries": 0}]
    ((given, apart, mark, cpus),) = crew._ray.begun
    assert (apart, mark, cpus) == (here / ".cells", (here / ".cells" / "mark").read_text(), 2)
    assert given.recipe.model == (str(here / model) if model == "llama" else model), "a link keeps its name"
    assert (given.recipe.calibration, given.folder) == ([f"{here}/text.txt=4"], here / "s" / "cells" / "a")
    assert [one.source for one in given.texts] == [f"{here}/test.txt"]
    assert given.bench.measures.zero_shot_data == here / "rows"


@pytest.mark.parametrize("lost", [0, 1, module.RETRIES, module.RETRIES + 1])
def test_a_cell_whose_workers_are_lost_again_and_again_fails_in_the_end(lost: int, here: Path) -> None:
    notes: list[str] = []
    crew = object.__new__(OnRay)
    crew._ray, crew._apart, crew._watcher = _Ray(lost=lost), here / ".cells", StudyWatcher()
    crew._watcher.note = notes.append  # type: ignore[method-assign]
    crew._needs = {"a": Needs(1, 0, 1)}
    started: list[Any] = []
    crew._watcher.cell_started = lambda cell, *place: started.append((cell["name"], *place))  # type: ignore[method-assign]
    task = CellTask({"name": "a"}, (2, 5), Recipe(model="llama"), here / "s", _BENCH, (), False)
    left = {**new_cell(Cell("wanda", "LR", "all", 0), "0.5"), "name": "a", "seconds": 7.0}
    (here / ".cells").mkdir()
    save_apart(here / ".cells", left)
    done = crew.do([task])
    same, outcome = next(done)
    assert same is task
    assert list(done) == []
    assert started == [("a", 2, 5)]
    assert [path.name for path in (here / ".cells").iterdir()] == ["mark"]
    died = "its worker was lost (The worker died unexpectedly while executing this task)"
    assert [note for note in notes if "lost" in note] == [f"cell a: {died}; another goes on with it"] * min(
        lost, module.RETRIES
    )
    if lost > module.RETRIES:
        assert outcome == Outcome(error=f"{died}, as were {module.RETRIES} before it")
        assert task.cell == left, "what the workers had done stays on record"
    else:
        assert outcome == Outcome({})
        assert (task.cell["seconds"], notes[-1]) == (3.0, "a note")


def test_a_fault_of_the_program_in_a_worker_ends_the_study(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = object.__new__(OnRay)
    crew._ray, crew._apart, crew._watcher = _Ray(), here / ".cells", StudyWatcher()
    crew._needs = {"a": Needs(1, 0, 1)}
    fault = ray.exceptions.RayTaskError("do_cell", "a traceback", ValueError("a fault"))
    monkeypatch.setattr(_Ray, "get", Mock(side_effect=fault))
    task = CellTask({"name": "a"}, (1, 1), Recipe(model="llama"), here / "s", _BENCH, (), False)
    with pytest.raises(ray.exceptions.RayTaskError):
        list(crew.do([task]))
    assert len(crew._ray.begun) == 1, "the same would happen again"


def test_a_worker_goes_on_with_what_an_earlier_one_left_and_gives_back_each_note_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = new_cell(Cell("wanda", "LR", "all", 0), "0.5")
    (here / ".cells").mkdir()
    (here / ".cells" / "mark").write_text("mark")
    save_apart(here / ".cells", {**begun, "seconds": 7.0})
    threads: list[int] = []

    def attempt(task: CellTask, shared: None, save: Callable[[], None], watcher: StudyWatcher) -> Outcome:
        task.cell["measuring_seconds"] = 3.0
        save()
        for _ in range(2):
            watcher.note("of a measure")
        with watcher.pruning() as run:
            run.note("of a run")
        return Outcome(model="f")

    monkeypatch.setattr(module, "attempt", attempt)
    monkeypatch.setattr(module.torch, "set_num_threads", threads.append)
    task = CellTask(begun, (1, 1), Recipe(model="llama"), here / "s", _BENCH, (), False)
    cell, outcome, notes = do_cell(task, here / ".cells", "mark", 3)
    assert (cell["seconds"], cell["measuring_seconds"]) == (7.0, 3.0)
    assert read_apart(here / ".cells", begun["name"]) == cell
    assert (outcome, notes, threads) == (Outcome(model="f"), ["of a measure", "of a run"], [3])
    _, outcome, _ = do_cell(task, here / ".cells", "another", 3)
    assert "does not see the study's folder" in str(outcome.error), "as the folder there is another"


def test_a_node_that_does_not_see_the_folder_says_so(here: Path) -> None:
    task = CellTask({"name": "a"}, (1, 1), *(None,) * 3, (), False)  # type: ignore[arg-type]
    _, outcome, _ = do_cell(task, here / "nowhere", "mark", 1)
    assert outcome.error is not None
    assert "does not see the study's folder" in outcome.error


def test_a_cluster_is_asked_only_for_what_cells_that_are_not_done_need_and_does_several_at_a_time(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = MagicMock(at_once=2)
    crew.__enter__.return_value = crew
    crew.do.side_effect = lambda tasks: iter([(task, Outcome(error="lost")) for task in tasks])
    monkeypatch.setattr("reprune.doors.study.run.OnRay", lambda *_: crew)
    copy_of(whole, here)
    heard, axes = Heard(), {"pruners": ["magnitude", "wanda"], "rungs": ["LR", "BR", "BR+GP"]}
    study("llama", "s", **axes, ray="", **SETTINGS, watcher=heard)
    ((wanted, pruners),) = (asked.args for asked in crew.check.call_args_list)
    assert set(wanted) == {f"{pruner}-{rung}-seed0" for pruner in axes["pruners"] for rung in ("LR", "BR")}
    assert pruners == ("magnitude", "wanda")
    three, two, one, none = heard.left
    assert (none, two) == (0, one)
    assert three == pytest.approx(1.5 * (one or 0))


def test_what_a_worker_left_of_a_cell_that_is_done_is_no_news(here: Path, whole: Path) -> None:
    folder = StudyFolder(copy_of(whole, here))
    record = read_study(folder.path)
    folder.apart.mkdir()
    save_apart(folder.apart, {**record["cells"][0], "status": "pending"})
    folder.pick_up(record)
    assert record["cells"][0]["status"] == "done"
