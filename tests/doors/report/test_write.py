"""A report is one HTML file, made from the records alone, and needs no other file."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from reprune.doors.records.study import Study
from reprune.doors.report.rows import bring_together
from reprune.doors.report.tables import steps
from reprune.doors.report.write import report
from reprune.doors.study.grid import Cell
from reprune.doors.study.record import new_cell
from tests.doors.conftest import Cli
from tests.doors.report.pages import Page, page, words_only, written
from tests.doors.report.records import cell, fitted, run_record, study_record


@pytest.fixture(scope="module")
def run_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(written(tmp_path_factory.mktemp("run"), run_record())).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    record = study_record(zero_shot=True)
    record["cells"] += [
        {**new_cell(Cell("wanda", "LR", "all", 1), "0.5"), "status": "failed", "error": "Gram <is> broken"},
        new_cell(Cell("wanda", "BR", "all", 1), "0.5"),
    ]
    record["cells"] += [cell("wanda", rung, only="mlp", name=f"mlp-{rung}") for rung in ("LR", "BR")]
    return report(written(tmp_path_factory.mktemp("study"), record)).read_text(encoding="utf-8")


@words_only
def test_the_command_writes_one_file_and_says_where(here: Path, cli: Cli) -> None:
    written(here / "out", run_record())
    said = cli("report", "out")
    assert (said.code, said.out, said.err) == (0, f"report  {Path('out') / 'report.html'}\n", "")
    assert {path.name for path in (here / "out").iterdir()} == {"reprune.json", "report.html"}
    said = cli("report", "out", "--out", "new/deep/page.html", "-q")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert (here / "new" / "deep" / "page.html").read_bytes() == (here / "out" / "report.html").read_bytes()


def test_a_report_is_written_without_pytorch(tmp_path: Path) -> None:
    """Loading it would take most of the time."""
    folders = [str(written(tmp_path / "run", run_record())), str(written(tmp_path / "study", study_record()))]
    code = (
        "import sys; from reprune.doors.command.cli import app\n"
        f"for folder in {folders}: app(['report', folder], standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stderr


def test_a_run_is_told_whole(run_html: str) -> None:
    text = Page(run_html).text
    assert "Overfitting taken back" in text
    for heading in ("Error by block", "Calibration against held-out error", "Error by epoch", "Sparsity by matrix"):
        assert heading in text
    for word in ("tiny-llama", "wanda at 0.5, reconstruction BR+GP", "ab" * 32, "cd" * 32, "torch 2.13.0", "valid.txt"):
        assert word in text
    assert "reprune prune tiny-llama --recipe recipe.yaml --out again" in text
    assert "All 28 matrices have 50.0 % of their weights at zero." in text
    assert "Window 1 (block 1) by epoch" in run_html
    assert "Epoch 1 of 3 was kept." in text
    assert "1 1 0.61 % 0.49 % -20.0 % 0.68 % 0.62 % -9.6 % 1 of 3 1 7.0 s" in text.replace("\N{MINUS SIGN}", "-")
    assert "The windows whose held-out error rose most" in text
    assert text.count("Numbers") == len(Page(run_html).all("figure")) == 7


def test_a_study_is_told_whole(study_html: str) -> None:
    text = Page(study_html).text
    assert "Pitfall seen" in text
    for heading in ("Results", "Step by step up the ladder", "Quality by rung", "Attention or feed-forward alone"):
        assert heading in text
    assert "wanda-LR-seed1 failed Gram <is> broken" in text
    assert "wanda-BR-seed1 pending" in text
    assert "boolq arc_easy" in text
    assert "wanda BR+GP 3.61 % 6.08 % 8.46 % 58.76 47.8 % 3:07 1.05 GB" in text
    assert "BR+GP → BR+GP+CR ↓ -38.0 % ↓ -25.0 % ↑ +8.0 % ↑ +4.3 % pitfall" in text.replace("\N{MINUS SIGN}", "-")
    assert "dense 26.91 55.0 %" in text
    shown = re.findall(r'aria-label="([^"]+ by block)"', study_html)
    assert len([title for title in shown if title.startswith(("magnitude", "wanda", "sparsegpt"))]) == 12  # and tables
    assert len(study_html) < 500_000
    command = (
        "reprune study gemma-3-270m --recipe settings.yaml --pruners magnitude wanda sparsegpt --rungs LR BR BR+GP"
    )
    assert command.replace(" --", " \\ --") in text


def test_the_best_of_each_pruner_stands_out(study_html: str) -> None:
    bold = [value.replace("\N{NO-BREAK SPACE}", " ") for value in re.findall(r"<b>([^<]*)</b>", study_html)]
    assert {"2.24 %", "4.56 %", "7.54 %", "55.30", "48.2 %"} <= set(bold)  # wanda's lowest errors, highest accuracy
    assert not {"9.40 %", "83.54", "44.5 %", "26.91", "55.0 %", "1.05 GB"} & set(bold)


def test_of_each_pruner_one_window_is_shown(study_html: str) -> None:
    shown = re.findall(
        r'<svg[^>]*aria-label="(\w+) (?:BR\+GP\+CR|auto), window \d+ \(block \d+\) by epoch"', study_html
    )
    assert sorted(shown) == ["magnitude", "sparsegpt", "wanda"]


def test_numbers_of_self_generated_samples_are_compared(tmp_path: Path) -> None:
    own = {"self_generate": 32, "perplexity": {"test.txt": 50.0}}
    ladder = [cell("wanda", rung, **more) for more in ({}, own) for rung in ("LR", "BR")]
    there = page(tmp_path, study_record([*ladder, cell("sparsegpt", "LR")]))
    assert "By the number of self-generated samples" in there.text
    assert "Perplexity on test.txt by self-generated samples" in there.text
    assert "+32 after a pruner's name: calibrated on that many more samples" in there.text
    assert "pruner rung 0 32 wanda LR 83.54 50.00 wanda BR 69.38 50.00 sparsegpt LR 60.64 \N{EN DASH} " in there.text
    assert "--self-generate 0 32" in there.text
    assert "self-generated" not in page(tmp_path, study_record(ladder[:2])).text


def test_only_a_closer_fit_makes_a_rise_a_pitfall() -> None:
    lower, upper = cell("wanda", "BR+GP"), cell("wanda", "BR+GP+CR")
    worse = {**upper, "relative_calibration_error": 2 * lower["relative_calibration_error"]}
    tables = [steps(bring_together(Study.model_validate(study_record([lower, one])))) for one in (upper, worse)]
    assert [table.rows[0][-1] for table in tables] == ["pitfall", ""]
    assert [{table.columns[column] for _, column in table.best} for table in tables] == [
        {"test error on test.txt", "perplexity on test.txt"},
        set(),
    ]


def test_a_study_command_in_the_report_is_one_that_reprune_takes(study_html: str, cli: Cli) -> None:
    command = re.search(r"<code>reprune (study .*?) \\\n", study_html, re.DOTALL)
    assert command is not None
    flags = set(re.findall(r"^ +(--[a-z-]+)", study_html[command.start() :].split("</code>")[0], re.MULTILINE))
    helped = cli("study", "--help").out
    assert flags
    assert all(flag in helped for flag in flags)


@pytest.mark.parametrize("which", ["run_html", "study_html"])
def test_a_report_needs_nothing_but_itself(which: str, request: pytest.FixtureRequest) -> None:
    html: str = request.getfixturevalue(which)
    found = Page(html)
    assert not [tag for tag, _ in found.tags if tag in ("img", "iframe", "object", "embed", "base", "form")]
    for tag, attributes in found.tags:
        for name, value in attributes.items():
            if name in ("href", "src", "xlink:href") and value is not None:
                assert value.startswith("#") or value == "data:,", (tag, name, value)
    assert not re.findall(r"url\((?!#)", html)
    assert "@import" not in html
    (policy,) = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@pytest.mark.parametrize("which", ["run_html", "study_html"])
def test_a_report_is_well_made(which: str, request: pytest.FixtureRequest) -> None:
    html: str = request.getfixturevalue(which)
    found = Page(html)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = [str(value) for _, attributes in found.tags for name, value in attributes.items() if name.endswith("href")]
    used += [f"#{attributes['aria-labelledby']}" for _, attributes in found.tags if "aria-labelledby" in attributes]
    assert {one[1:] for one in used if one.startswith("#")} <= set(map(str, ids))
    assert len(found.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    figures, images = found.all("figure"), [one for one in found.all("svg") if one["role"] == "img"]
    assert len(figures) == len(images) >= 7
    assert all(image["aria-label"] for image in images)
    for figure in re.findall(r"<figure>.*?</figure>", html, re.DOTALL):
        assert re.search(r"<details.*<table>.*<td", figure, re.DOTALL), "numbers stand behind each picture"
    assert found.all("html") == [{"lang": "en"}]
    assert html.startswith("<!doctype html>")


def test_the_same_record_gives_the_same_bytes(run_html: str, tmp_path: Path) -> None:
    assert report(written(tmp_path, run_record())).read_text(encoding="utf-8") == run_html


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"


def test_nothing_in_a_record_is_taken_for_markup(tmp_path: Path, run_html: str) -> None:
    record = run_record(2)
    record["model"]["name"] = record["recipe"]["sparsity"] = record["recipe"]["pruner"]["name"] = EVIL
    record["data"]["sources"][0]["name"] = record["versions"]["torch"] = record["machine"]["system"] = EVIL
    record["blocks"][0]["matrices"] = [{**record["blocks"][0]["matrices"][0], "name": EVIL}]
    evil = page(tmp_path / "c", record)
    assert evil.text.count("alert(1)") >= 7
    assert evil.all("script") == [{}]
    assert not evil.all("img")
    assert "{{ 7*7 }}" in evil.text
    assert evil.all("section") == Page(run_html).all("section")
    cells = [
        cell("wanda", "BR", perplexity={EVIL: 3.0}, test_error={EVIL: {"normalized": 3.0, "relative": 0.1}})
        | {"pruner": EVIL, "rung": EVIL},
        cell("wanda", "LR", status="failed", error=EVIL, name=EVIL),
    ]
    evil = page(
        tmp_path / "d",
        study_record(cells, settings={EVIL: EVIL}, model={"name": EVIL, "fingerprint": EVIL, "files": {}}),
    )
    assert evil.all("script") == [{}]
    assert not evil.all("img")
    sections = ["verdict", "results", "blocks", "against", "quality", "epochs", "cost", "unfinished", "made", "terms"]
    assert [section["id"] for section in evil.all("section")] == sections


@words_only
def test_characters_that_no_page_can_hold_are_replaced(tmp_path: Path) -> None:
    record = run_record(1)
    record["model"]["name"] = "a\x00b\ud800c\x1b[31md"
    assert "a�b�c�[31md" in page(tmp_path, record).text


def test_what_was_not_measured_is_left_out_of_a_study(tmp_path: Path) -> None:
    bare = {**new_cell(Cell("wanda", "BR", "all", 0), "0.5"), "status": "done"}
    none = {"perplexity": {}, "zero_shot": None}
    found = page(tmp_path / "a", study_record([bare], dense=none, settings={}, measures={}, data={}))
    assert not found.all("figure")
    assert "None" not in found.text
    assert "nan" not in found.text
    null = dict.fromkeys(["calibration_error", "heldout_error", "seconds", "zero_shot_mean"])
    found = page(tmp_path / "b", study_record([cell("wanda", rung, **null) for rung in ("LR", "BR")]))
    assert "mean zero-shot" not in found.text
    assert "perplexity on test.txt" in found.text
    odd = cell("wanda", "BR", perplexity={"test.txt": float("inf")}, relative_heldout_error=float("nan"), blocks=[])
    assert "not finite" not in page(tmp_path / "c", study_record([cell("wanda", "LR"), odd])).text
    other = {**cell("wanda", "LR"), "rung": "k=3"}
    assert "k=3" in page(tmp_path / "d", study_record([cell("wanda", "BR"), other])).text


@words_only
def test_a_run_without_epochs_or_on_a_device_is_told(tmp_path: Path) -> None:
    found = page(tmp_path / "b", run_record(2, windows=[fitted(i, epochs=0) for i in range(2)]))
    assert "Error by epoch" not in found.text
    assert "No reconstruction" in found.text
    device = run_record(1, peak_memory_bytes={"host": 10**9, "device": 3 * 10**9})
    assert "3.00 GB on the device" in page(tmp_path / "c", device).text


@words_only
@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"allocation": {"name": "owl"}, "sparsity_by_name": {"mlp.*": "0.3"}}, "0.5 (owl), others by name"),
        ({"allocation": {"name": "uniform"}, "sparsity_by_name": {}}, "0.5"),
        ({"allocation": "by-error"}, "0.5 (by-error)"),
    ],
)
def test_what_decides_the_sparsity_is_said(recipe: dict[str, Any], expected: str, tmp_path: Path) -> None:
    record = run_record(1)
    record["recipe"] |= recipe
    assert f"wanda at {expected}, reconstruction BR+GP" in page(tmp_path / "a", record).text


def shared(index: int, *seconds: float) -> dict[str, Any]:
    """A window done by several processes, with the seconds that each spent on exchange."""
    return {**fitted(index), "seconds": 10.0, "exchange": {"bytes": [9] * len(seconds), "seconds": seconds}}


@words_only
def test_a_run_of_several_processes_is_told_as_that(tmp_path: Path) -> None:
    peaks = [{"host": 2 * 10**9, "device": 10**9}, {"host": 10**9, "device": 3 * 10**9}]
    several = {"ranks": 2, "peak_memory_bytes": peaks[0], "peak_memory_bytes_by_rank": peaks}
    record = run_record(2, windows=[shared(0, 1.0, 3.0), shared(1, 4.0, 4.0)], **several)
    text = page(tmp_path / "a", record).text
    assert text.count("Processes 2 ") == 2
    assert "Of the windows' time, exchange between processes 30.0 %, waiting included" in text
    assert "Peak memory of the largest process 2.00 GB Peak memory of the fullest device 3.00 GB" in text
    assert "3.00 GB on the fullest device" in text
    assert (
        "number of processes, on the same CPU with the same number of threads, it gives the same weights; on a GPU they"
        in text
    )
    assert "torchrun --nproc-per-node 2 -m reprune prune tiny-llama" in text
    gone_on = run_record(2, windows=[shared(0, 1.0, 3.0), fitted(1)])
    text = page(tmp_path / "b", gone_on).text
    assert text.count("Processes 1 and 2: the run went on with another number") == 2
    assert "20.0 %, waiting included" in text
    assert "Peak memory of the process" in text
    assert "Processes" not in page(tmp_path / "c", run_record(1)).text


@words_only
def test_many_experts_share_rows(tmp_path: Path) -> None:
    record = run_record(2)
    for block in record["blocks"]:
        block["matrices"] = [
            {"name": f"mlp.experts.{i}.up_proj", "rows": 4, "columns": 4, "sparsity": 0.4 if i else 0.8}
            for i in range(40)
        ]
    found = page(tmp_path, record)
    assert "mlp.experts.*.up_proj" in found.text
    assert "From 40.0 % to 80.0 % of a matrix's weights are zero." in found.text
    assert "41.0 %" in found.text
