"""A pruner from another package prunes like one of reprune's own, and its version is on record."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import reprune
from reprune.doors.study.record import read_study
from reprune.engine.exchange import Crew
from reprune.engine.forecast import forecast
from reprune.engine.speed import Speed
from reprune.engine.watcher import Watcher
from reprune.engine.work import Group, Work
from reprune.errors import InputError, NumericalError
from reprune.model.costs import BlockCosts, Flops
from reprune.planning.layers import read_recipe, resolve_recipe
from reprune.planning.schedule import windows
from tests.doors.conftest import Cli
from tests.doors.study.runs import quicken
from tests.packages import install, write_pruner

CODE = """
import torch

from reprune.math.pruner import Pruned, Pruner
from reprune.math.sparsegpt import SparseGPT
from reprune.math.statistics import Gram, SquaredNorms
from reprune.math.wanda import Wanda


class AsWanda(Pruner):
    def statistics(self, columns, device):
        return SquaredNorms(columns, device)

    def _prune(self, weights, statistics, pattern):
        return Wanda().prune(weights, statistics, pattern)


class AsSparseGPT(Pruner):
    def statistics(self, columns, device):
        return Gram(columns, device)

    def _prune(self, weights, statistics, pattern):
        return SparseGPT().prune(weights, statistics, pattern)


class ByPower(AsWanda):
    def __init__(self, power):
        self.power = power


class Unmasked(AsWanda):
    def _prune(self, weights, statistics, pattern):
        return [Pruned(weight, weight > 0) for weight in weights]


class Drawing(AsWanda):
    def _prune(self, weights, statistics, pattern):
        masks = [pattern.keep(torch.rand(weight.shape), "row") for weight in weights]
        return [Pruned(weight * mask, mask) for weight, mask in zip(weights, masks)]


class Spoiling(AsWanda):
    times = 0

    def _prune(self, weights, statistics, pattern):
        if not Spoiling.times:
            statistics.sums.copy_(statistics.sums.flip(0))
        Spoiling.times += 1
        return super()._prune(weights, statistics, pattern)
"""
HOW: dict[str, Any] = {"calibration": "text.txt", "samples": 6, "seqlen": 24, "epochs": 1, "device": "cpu"}
SETTINGS = ["precision=float32"]


@pytest.fixture(autouse=True)
def package(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = {"as_wanda": "AsWanda", "as_gpt": "AsSparseGPT", "by_power": "ByPower", "unmasked": "Unmasked"}
    found = write_pruner(here / "brought", CODE, spoiling="Spoiling", drawing="Drawing", **made)
    install(found, monkeypatch)
    return found


class Stopping(Watcher):
    """Ends a run after its first window."""

    def window_done(self, window: Any, record: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("name", "own"), [("as_wanda", "wanda"), ("as_gpt", "sparsegpt")])
@pytest.mark.parametrize("settings", [(), ("solver.start=least-squares", "allocation=owl")])
def test_the_same_rule_gives_the_same_weights(name: str, own: str, settings: Sequence[str], here: Path) -> None:
    for pruner in (name, own):
        record = reprune.prune("llama", pruner, pruner=pruner, **HOW, settings=[*SETTINGS, *settings])
        plan = reprune.plan("llama", pruner=pruner, **HOW, settings=[*SETTINGS, *settings])
        assert record["versions"].get("brought") == ("1.0" if pruner == name else None)
        assert not plan.refusals
    files = [sorted((here / pruner).glob("*.safetensors")) for pruner in (name, own)]
    assert files[0]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_what_it_draws_is_decided_by_the_seed_also_where_a_run_goes_on(here: Path) -> None:
    how: dict[str, Any] = {"pruner": "drawing", "reconstruct": "LR", **HOW, "settings": SETTINGS}
    for drawn, (name, seed) in enumerate([("one", 3), ("again", 3), ("other", 4)]):
        torch.manual_seed(drawn)  # as what ran before in this process may have left it
        reprune.prune("llama", name, seed=seed, **how)
    with pytest.raises(KeyboardInterrupt):
        reprune.prune("llama", "cut", seed=3, watcher=Stopping(), **how)
    torch.manual_seed(5)
    reprune.resume("cut")
    one, again, other, cut = (
        {file.name: file.read_bytes() for file in (here / name).glob("*.safetensors")}
        for name in ("one", "again", "other", "cut")
    )
    assert one == again == cut != other


def test_the_forecast_goes_by_what_it_gathers() -> None:
    cost = BlockCosts(4 * 64 * 32, 4 * 24 * 32, Flops(1e9), Flops(3e9), 1e3)
    work = Work(
        [cost] * 2, [[Group(64, 32), Group(32, 64, 0.5, True)]] * 2, windows(2, 1, 1), 6, 1, 24, [10**4] * 2, [10]
    )
    for name, own in (("as_wanda", "wanda"), ("as_gpt", "sparsegpt")):
        one, other = (
            forecast(
                resolve_recipe("m", {"pruner": pruner, "reconstruct": "LR"}, settings=[*SETTINGS, "device=cpu"]),
                work,
                Speed(1e9, 1e9, 1e9),
                10**6,
                Crew(2),
            )
            for pruner in (name, own)
        )
        assert one == other


def test_a_run_goes_on_with_the_same_version_of_the_package_alone(
    here: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        reprune.prune("llama", "out", pruner="as_wanda", **HOW, watcher=Stopping())
    install(write_pruner(package, CODE, version="2.0", as_wanda="AsWanda"), monkeypatch)
    monkeypatch.syspath_prepend(here)  # a changed path makes Python look again for what is installed
    with pytest.raises(InputError, match=r"began with brought 1\.0 \(now 2\.0\); install that again to resume"):
        reprune.resume("out")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    with pytest.raises(InputError, match=r"began with brought 1\.0 \(now none\); install that again to resume"):
        reprune.resume("out")
    assert reprune.status("out").windows_done == 1
    install(write_pruner(package, CODE, as_wanda="AsWanda"), monkeypatch)
    assert reprune.resume("out")["recipe"]["pruner"]["name"] == "as_wanda"
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert reprune.verify("out")  # without the package
    assert reprune.report("out").exists()


def test_what_it_returns_is_looked_at(here: Path) -> None:
    with pytest.raises(
        NumericalError, match=r"block 0, .*: pruner unmasked, matrix 1 of this group: its weights are not zero"
    ):
        reprune.prune("llama", "out", pruner="unmasked", **HOW)


def test_what_a_failed_cell_has_spoilt_is_not_taken_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    texts: dict[str, Any] = {"texts": ["text.txt"], "text_seqlen": 24, "windows": 2}
    how: dict[str, Any] = {**HOW, "settings": SETTINGS}
    failed, done = reprune.study("llama", "grid", pruners="spoiling", rungs=["LR", "BR"], **texts, **how)["cells"]
    assert "changed its statistics" in (failed["error"] or "")
    alone = reprune.prune("llama", "alone", pruner="as_wanda", reconstruct="BR", **how)
    assert done["calibration_error"] == alone["blocks"][-1]["calibration_error"]


def test_a_study_has_it_beside_the_others_and_takes_it_later(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    flags = ["--rungs", "LR", "--calibration", "text.txt", "--samples", "6", "--seqlen", "24", "--device", "cpu"]
    flags += ["--text", "text.txt", "--text-seqlen", "24", "--windows", "2"]
    assert cli("study", "llama", "--out", "grid", "--pruners", "sparsegpt", *flags).code == 0
    assert "brought" not in read_study(here / "grid")["versions"]
    said = cli("study", "llama", "--out", "grid", "--pruners", "as_wanda", "sparsegpt", *flags)
    assert said.code == 0, said.err
    record = read_study(here / "grid")
    assert [cell["name"] for cell in record["cells"]] == ["sparsegpt-LR-seed0", "as_wanda-LR-seed0"]
    assert record["versions"]["brought"] == "1.0"
    assert said.out.rindex("sparsegpt ") < said.out.rindex("as_wanda ")
    assert cli("report", "grid").code == 0


def test_a_study_goes_on_with_the_package_by_which_its_cells_were_pruned(
    cli: Cli, here: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grid(*pruners: str) -> Any:
        quicken(monkeypatch)
        drawn = ["--calibration", "text.txt", "--samples", "6", "--seqlen", "24", "--device", "cpu"]
        measured = ["--text", "text.txt", "--text-seqlen", "24", "--windows", "2"]
        return cli("study", "llama", "--out", "grid", "--rungs", "LR", "--pruners", *pruners, *drawn, *measured)

    assert grid("magnitude", "unmasked").code == 1
    assert read_study(here / "grid")["packages"] == {"unmasked": "brought"}
    install(write_pruner(package, CODE, version="2.0", unmasked="AsWanda"), monkeypatch)
    monkeypatch.syspath_prepend(here)  # a changed path makes Python look again for what is installed
    assert "cells/unmasked-LR-seed0: this run began with brought 1.0 (now 2.0)" in grid("unmasked").err
    shutil.rmtree(here / "grid" / "cells" / "unmasked-LR-seed0")
    assert grid("unmasked").code == 0
    assert read_study(here / "grid")["versions"]["brought"] == "2.0"
    monkeypatch.undo()
    monkeypatch.chdir(here)
    install(write_pruner(here / "another", CODE, unmasked="AsWanda", as_wanda="AsWanda"), monkeypatch)
    said = grid("unmasked")
    assert said.code == 2
    assert "begun with other settings: package of pruner unmasked brought, now another. Give" in said.err
    assert grid("magnitude", "as_wanda").code == 0
    assert read_study(here / "grid")["packages"] == {"unmasked": "brought", "as_wanda": "another"}


def test_its_settings_are_its_own_in_a_study_of_others_too(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)

    def grid(*flags: str) -> Any:
        measured = ["--text", "text.txt", "--text-seqlen", "24", "--windows", "2"]
        drawn = ["--calibration", "text.txt", "--samples", "6", "--seqlen", "24", "--device", "cpu"]
        return cli("study", "llama", "--out", "grid", "--rungs", "LR", *drawn, *measured, *flags)

    power = ["--set", "pruner.settings.power=2"]
    assert grid("--pruners", "wanda").code == 0
    said = grid("--pruners", "wanda", "by_power", *power)
    assert said.code == 0, said.err
    assert read_study(here / "grid")["settings"]["pruner"]["settings"] == {"power": 2}
    recipes = [
        read_recipe(here / "grid" / "cells" / f"{name}-LR-seed0" / "recipe.yaml") for name in ("wanda", "by_power")
    ]
    assert [recipe["pruner"]["settings"] for recipe in recipes] == [{}, {"power": 2}]
    assert grid("--pruners", "wanda", "magnitude").code == 0, "which take none"
    other = grid("--pruners", "by_power", "--set", "pruner.settings.power=3")
    assert "begun with other settings: pruner.settings.power 2, now 3" in other.err
