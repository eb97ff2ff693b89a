"""Users see numbers with few digits, and on a terminal a live bar that leaves whole lines behind."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from reprune.doors import progress
from reprune.doors.command import views, views_evaluation, views_generation
from reprune.doors.command.views_generation import Lines
from reprune.doors.command.views_study import StudyLines
from reprune.doors.formats import clock, console, percent, size
from reprune.doors.progress import counting, watching
from reprune.engine.watcher import Watcher
from reprune.planning.schedule import once_more, windows
from tests.doors.conftest import QUICK, Cli


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, "0.00 %"),
        (0.00004, "0.00 %"),
        (0.01234, "1.23 %"),
        (0.09994, "9.99 %"),
        (0.09996, "10.0 %"),
        (0.1234, "12.3 %"),
        (0.5, "50.0 %"),
        (0.9994, "99.9 %"),
        (0.9996, "100 %"),
        (1.0, "100 %"),
        (12.34, "1234 %"),
        (float("nan"), "nan %"),
        (float("inf"), "inf %"),
    ],
)
def test_percent_has_three_digits(share: float, expected: str) -> None:
    assert percent(share) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0.0 s"),
        (0.04, "0.0 s"),
        (12.34, "12.3 s"),
        (59.9, "59.9 s"),
        (59.97, "1:00"),
        (60.0, "1:00"),
        (245.4, "4:05"),
        (3599.4, "59:59"),
        (3599.6, "1:00:00"),
        (7800.0, "2:10:00"),
        (360_000.0, "100:00:00"),
    ],
)
def test_seconds_are_shown_as_a_clock_from_a_minute_on(seconds: float, expected: str) -> None:
    assert clock(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 kB"),
        (999_400, "999 kB"),
        (999_500, "1 MB"),
        (416_000_000, "416 MB"),
        (999_400_000, "999 MB"),
        (999_900_000, "1.00 GB"),
        (1_000_000_000, "1.00 GB"),
        (13_476_000_000, "13.48 GB"),
    ],
)
def test_size_is_in_decimal_units(count: int, expected: str) -> None:
    assert size(count) == expected


@pytest.fixture
def terminal(here: object, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 80 columns, to which all consoles write."""
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=screen, force_terminal=True, width=80, highlight=False, soft_wrap=True)
    for module in (progress, views, views_evaluation):
        monkeypatch.setattr(module, "console", lambda: console)
    return screen


def _plain(screen: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n")


@pytest.mark.parametrize("flags", [[], ["-v"]])
def test_on_a_terminal_prune_shows_a_bar_and_a_line_for_each_window(
    flags: list[str], cli: Cli, terminal: io.StringIO
) -> None:
    assert cli("prune", "llama", "--out", "out", *QUICK, *flags).code == 0
    seen = _plain(terminal)
    for window in ("1/3", "2/3", "3/3"):
        assert len(re.findall(rf"^ +{window}  \d ", seen, re.MULTILINE)) == 1
    assert "━" in seen, "a bar"
    assert re.search(r"peak [\d.]+ [MG]B", seen)
    assert ("epoch 2/2: calibration" in seen) == bool(flags)
    assert "sparse model   out" in seen
    shows, hides = (terminal.getvalue().rfind(code) for code in ("\x1b[?25h", "\x1b[?25l"))
    assert shows > hides >= 0, "the cursor is back"


def test_the_bar_says_after_an_epoch_how_long_the_rest_will_take(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = 0.0
    monkeypatch.setattr(progress, "monotonic", lambda: passed)
    first, second = windows(10, 1, 1)[:2]
    record = {"seconds": 90.0, "loss": "squared", "relative_lr": None}
    record |= {f"relative_{which}_error": {"before": 0.2, "after": 0.1} for which in ("calibration", "heldout")}

    def shown() -> Any:
        watcher._bar.refresh()  # type: ignore[attr-defined]
        return re.findall(r"epoch \d/4 +[━╸╺]+ +(\d+)/10 \S+ (.+ left) peak", _plain(terminal))[-1]

    with watching(quiet=False, verbose=False) as watcher:
        watcher.started(10, 0)
        watcher.phase(first, "targets")
        passed = 30.0
        watcher.phase(first, "reconstruction")
        passed = 50.0
        watcher.epoch(first, SimpleNamespace(number=1), 4)  # type: ignore[arg-type]
        assert shown() == ("0", "19:10 left"), "20 s an epoch, 120 s a window: 50, three epochs and half of one"
        passed = 60.0
        watcher.epoch(first, SimpleNamespace(number=2), 4)  # type: ignore[arg-type]
        assert shown() == ("0", "13:10 left"), "the second epoch took 10 s: 85 s a window, 25 of them left"
        passed = 90.0
        watcher.window_done(first, record)
        watcher.phase(second, "targets")
        passed = 110.0
        watcher.phase(second, "reconstruction")
        passed = 130.0
        watcher.epoch(second, SimpleNamespace(number=1), 4)  # type: ignore[arg-type]
        assert shown() == ("1", "13:43 left"), "130 s for 1 4/11 windows, as this one will take 110 s; 8 7/11 are left"


def test_an_interrupted_run_gives_the_terminal_back(
    cli: Cli, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("reprune.engine.fresh.prune_block_", interrupt)
        said = cli("prune", "llama", "--out", "out", *QUICK)
    assert said.code == 1
    assert said.err.startswith("interrupted")
    shows, hides = (terminal.getvalue().rfind(code) for code in ("\x1b[?25h", "\x1b[?25l"))
    assert shows > hides >= 0
    assert cli("resume", "out").code == 0
    assert len(re.findall(r"^ +\d/3  \d ", _plain(terminal), re.MULTILINE)) == 3


def test_on_a_terminal_plan_and_evaluate_show_their_results_too(cli: Cli, terminal: io.StringIO) -> None:
    assert cli("plan", "llama", *QUICK, "--sparsity", "2:4").code == 0
    assert cli("evaluate", "llama", "--text", "text.txt", "--seqlen", "32").code == 0
    seen = _plain(terminal)
    assert "forecast   about " in seen
    assert re.search(r"windows +━+ +(\d+)/\1 ", seen)
    assert re.search(r"^perplexity \d+\.\d{4}$", seen, re.MULTILINE)


def test_quiet_shows_no_bar_on_a_terminal_either(cli: Cli, terminal: io.StringIO) -> None:
    assert cli("prune", "llama", "--out", "out", *QUICK, "-q").code == 0
    assert terminal.getvalue() == ""
    assert cli("evaluate", "out", "--text", "text.txt", "-q").code == 0
    assert re.fullmatch(r"\d+\.\d{4}\n", _plain(terminal))


def test_quiet_watches_nothing(here: object) -> None:
    with watching(quiet=True, verbose=True) as watcher:
        assert type(watcher) is Watcher
    with counting("windows", quiet=True) as count:
        count(1, 2)


def test_a_bar_shows_names_as_they_are(terminal: io.StringIO) -> None:
    with counting("te[bold]st{0}.txt", quiet=False) as count:
        count(1, 2)
    assert "te[bold]st{0}.txt" in _plain(terminal)


def test_names_are_shown_as_they_are(here: object, capfd: pytest.CaptureFixture[str]) -> None:
    with watching(quiet=False, verbose=False) as watcher:
        watcher.note("sparse[wanda], [/tmp], :smile:")
    table = Table("[red]heading")
    table.add_row("[b]ell")
    console().print(table)
    said = capfd.readouterr().out
    assert "note: sparse[wanda], [/tmp], :smile:" in said
    assert "[red]heading" in said
    assert "[b]ell" in said


@pytest.mark.parametrize(
    "shown",
    [lambda: watching(False, False), lambda: nullcontext(StudyLines(False)), lambda: nullcontext(Lines())],
    ids=["prune", "study", "generate"],
)
def test_notes_are_shown(shown: Callable[[], AbstractContextManager[Any]], capfd: pytest.CaptureFixture[str]) -> None:
    with shown() as watcher:
        watcher.note("block 0, q_proj: damping was raised to 0.1")
        watcher.note("rate 50 %: longer steps\n      than usual")
        watcher.note(f"block 0: {'an expert ' * 12}and /{'long' * 30}")
    assert capfd.readouterr().out.splitlines() == [
        "note: block 0, q_proj: damping was raised to 0.1",
        "note: rate 50 %: longer steps",
        "      than usual",
        f"note: block 0: {'an expert ' * 6}an",
        f"      expert {'an expert ' * 4}an expert and",
        f"      /{'long' * 30}",
    ]


def _record(seconds: float, *rates: float) -> dict[str, Any]:
    """The record of a window whose epochs began with these rates."""
    epochs = [{"relative_lr": rate} for rate in rates]
    return {
        "seconds": seconds,
        "loss": "squared",
        "relative_lr": rates[0] if rates else None,
        "epochs": epochs,
        "relative_calibration_error": {"before": 0.2, "after": 0.1},
        "relative_heldout_error": {"before": 0.4, "after": 0.4},
    }


def test_a_line_says_how_a_window_s_errors_went_and_how_long_those_left_will_take(
    here: object, capfd: pytest.CaptureFixture[str]
) -> None:
    schedule = windows(12, 2, 1)
    with watching(quiet=False, verbose=False) as watcher:
        watcher.started(13, 9)
        for window, seconds in zip(schedule[9:], (10.0, 30.0, 5.0, 7.0), strict=True):
            watcher.window_done(window, _record(seconds))
    going_on, measure, head, *lines = capfd.readouterr().out.splitlines()
    assert going_on == "going on: 9 of 13 windows are finished"
    assert measure.startswith("errors: ||sparse - target||")
    assert head.startswith(" window  blocks")
    assert [re.sub(r"  +\d+ [MG]B$|  +[\d.]+ GB$", "", line) for line in lines] == [
        "  10/13  8-9       20.0 % > 10.0 %    40.0 %             10.0 s  30.0 s",
        "  11/13  9-10      20.0 % > 10.0 %    40.0 %             30.0 s  40.0 s",
        "  12/13  10-11     20.0 % > 10.0 %    40.0 %              5.0 s  15.0 s",
        "  13/13  11        20.0 % > 10.0 %    40.0 %              7.0 s   0.0 s",
    ]


def test_texts_that_are_left_take_as_long_as_those_written_since_the_command_began(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 100.0, 130.0, 150.0])
    monkeypatch.setattr(views_generation, "time", SimpleNamespace(monotonic=lambda: next(now)))
    lines = Lines()
    lines.started(10, 20)
    lines.round_done(15, 20, {"begun": 1024})
    lines.round_done(20, 20, {"begun": 2048})
    assert capfd.readouterr().out.splitlines() == [
        "going on: 10 of 20 texts are finished",
        "    15/20 texts of 1,024 begun, 30.0 s, 30.0 s left",
        "    20/20 texts of 2,048 begun, 50.0 s",
    ]


def test_a_bar_counts_the_windows_that_are_done_and_says_what_is_being_done(terminal: io.StringIO) -> None:
    with watching(quiet=False, verbose=False) as watcher:
        watcher.started(4, 1)
        watcher.window_done(windows(4, 1, 1)[1], _record(1.0))
        watcher.phase(None, "writing the result")
    seen = _plain(terminal)
    assert re.search(r"writing the result ━+.* 2/4 ", seen)
    assert not re.search(r"^writing the result$", seen, re.MULTILINE)


def test_off_a_terminal_nothing_is_counted(here: object, capfd: pytest.CaptureFixture[str]) -> None:
    with counting("windows", quiet=False) as count:
        count(1, 2)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_off_a_terminal_colours_that_are_wanted_all_the_same_bring_no_bar(
    name: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")  # as Jupyter does for a cell's processes, and many CI systems
    monkeypatch.delenv("COLUMNS")
    said = cli("prune", "llama", "--out", "out", *QUICK).out
    codes = set(re.findall(r"\x1b\[[0-9;?]*([A-Za-z])", said))
    wanted = {"m"} if Console(file=io.StringIO()).is_terminal else set()  # Rich reads TTY_COMPATIBLE since version 14
    assert codes == wanted and "━" not in said and "\r" not in said


def test_output_may_be_replaced_by_what_does_not_say_whether_it_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as by a program that also copies its output to a file, or that has closed it."""
    said: list[str] = []
    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=said.append, flush=lambda: None))
    with watching(quiet=False, verbose=False) as watcher:
        watcher.note("written all the same")
    assert "".join(said) == "note: written all the same\n"
    monkeypatch.setattr("sys.stdout", io.StringIO())
    sys.stdout.close()
    assert not console().is_interactive


def test_a_terminal_on_which_nothing_is_to_move_is_as_wide_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TTY_INTERACTIVE", "0")
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == 80


def test_off_a_terminal_colours_bring_no_bar_for_a_study_s_cells(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with StudyLines(False).pruning() as watcher:
        watcher.phase(None, "reading the model")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("interactive", [False, True])
def test_no_columns_are_as_none_said(interactive: bool, here: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """COLUMNS=0 is set in some pseudo-terminals, and for processes started without a terminal."""
    monkeypatch.setenv("COLUMNS", "0")
    screen = io.StringIO()
    screen.isatty = lambda: interactive  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", screen)
    console().print("all of it, " * 20)
    assert screen.getvalue().count("all of it") == 20
    assert console().width == (80 if interactive else 10_000)


def test_of_blocks_that_are_distilled_a_line_says_the_divergences(
    here: object, capfd: pytest.CaptureFixture[str]
) -> None:
    step = once_more(3, 3, 2)
    record = {"seconds": 1.0, "epochs": [], "heldout_divergence": {"before": 0.5, "after": 0.25}}
    passed = [{"calibration_divergence": divergence} for divergence in (0.8, 0.9, 0.4)]
    for epochs, calibration in ((passed, "0.8 > 0.4"), ([], "")):
        with watching(quiet=False, verbose=False) as watcher:
            watcher.started(4, 3)
            watcher.window_done(step, {**record, "epochs": epochs})
        _, _, line = capfd.readouterr().out.splitlines()
        assert line.startswith(f"    4/4  1-2       {calibration:<17}  0.5 > 0.25 ")


def test_a_rate_is_spoken_of_once_after_the_first_window_that_is_trained(
    here: object, capfd: pytest.CaptureFixture[str]
) -> None:
    """A window without an error, such as that of a first block which stays dense, is not trained."""
    with watching(quiet=False, verbose=False) as watcher:
        watcher.started(4, 0)
        for window in windows(4, 1, 1):
            watcher.window_done(window, _record(1.0, *[0.0001] * 2 * (window.index > 0)))
    said = capfd.readouterr().out
    assert said.count("note: rate 0.01 % of the kept weights' root mean square: shorter steps\n") == 1
    assert said.index("    2/4  ") < said.index("note: rate") < said.index("    3/4  ")


def test_a_standardized_run_names_its_measure(cli: Cli, here: Path) -> None:
    said = cli("prune", "llama", "--out", "out", "--set", "solver.loss=standardized", *QUICK)
    assert said.code == 0
    (head,) = [line for line in said.out.splitlines() if line.startswith("errors: ")]
    assert head == "errors: mean of ((sparse - target) / feature's deviation)², before > after"
    assert cli("report", "out").code == 0
    assert "They are standardized, as its loss is" in (here / "out" / "report.html").read_text(encoding="utf-8")
