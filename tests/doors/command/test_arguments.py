"""One flag may be followed by several sources, and a MODEL may stand before, between or after the flags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

from reprune.doors.command.arguments import separate_sources
from reprune.doors.command.cli import app
from tests.doors.conftest import QUICK, Cli

_VALUES = st.text("abc01=./:, ", max_size=6)  # also the empty text, and texts with an equals sign
_SOURCES = st.text("abc01=./:", min_size=1, max_size=6)
_PARTS = st.one_of(
    st.tuples(st.sampled_from(["--calibration", "--heldout"]), _SOURCES),
    st.tuples(st.sampled_from(["--out", "--samples", "--lr", "--set", "--recipe"]), _VALUES | st.just("-1")),
    st.tuples(st.sampled_from(["--samples=3", "--set=exclude=[x]", "-q", "-v", "--trust-remote-code"])),
)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("prune M --calibration a b", "prune M --calibration a --calibration b"),
        ("prune M --calibration a b c --out o", "prune M --calibration a --calibration b --calibration c --out o"),
        ("prune M --calibration a --calibration b", "prune M --calibration a --calibration b"),
        ("prune M --calibration a b --calibration c", "prune M --calibration a --calibration b --calibration c"),
        ("prune M --calibration a=3 b=2", "prune M --calibration a=3 --calibration b=2"),
        ("prune M --calibration a b --heldout c d", "prune M --calibration a --calibration b --heldout c --heldout d"),
        ("prune --calibration a b M", "prune --calibration a --calibration b M"),
        ("prune --calibration a M", "prune --calibration a M"),
        ("prune --calibration a b --out o M", "prune --calibration a --calibration b --out o M"),
        ("prune --out o --calibration a b M", "prune --out o --calibration a --calibration b M"),
        ("prune --out o M --calibration a b", "prune --out o M --calibration a --calibration b"),
        ("prune M -q --calibration a b -v", "prune M -q --calibration a --calibration b -v"),
        ("prune -q M --calibration a b", "prune -q M --calibration a --calibration b"),
        ("prune --set x=1 M --heldout a b", "prune --set x=1 M --heldout a --heldout b"),
        ("prune --set x=1 y=2 M --heldout a b", "prune --set x=1 --set y=2 M --heldout a --heldout b"),
        ("prune M --out o --set x=1 y=2", "prune M --out o --set x=1 --set y=2"),
        ("prune --set x=1 M", "prune --set x=1 M"),
        ("prune --set x M", "prune --set x M"),
        ("prune --set=x=1 M --heldout a b", "prune --set=x=1 M --heldout a --heldout b"),
        ("prune --calibration a b -- M", "prune --calibration a --calibration b -- M"),
        ("prune --calibration a b -- -M", "prune --calibration a --calibration b -- -M"),
        ("prune --calibration a M --", "prune --calibration a M --"),
        ("prune M --calibration", "prune M --calibration"),
        ("prune M --calibration --out o", "prune M --calibration --out o"),
        ("prune M --calibration=a", "prune M --calibration=a"),
        ("study M --ray a:1 --out o", "study M --ray a:1 --out o"),
        ("study --ray a:1 M --out o", "study --ray a:1 M --out o"),
        ("study --out o --ray M", "study --out o --ray - M"),
        ("study M --ray --out o", "study M --ray - --out o"),
        ("study M --out o --ray", "study M --out o --ray -"),
        ("study --seeds 0 1 --ray a:1 M", "study --seeds 0 --seeds 1 --ray a:1 M"),
        ("evaluate --no-perplexity M --zero-shot a b", "evaluate --no-perplexity M --zero-shot a --zero-shot b"),
        ("status DIR", "status DIR"),
        ("--help", "--help"),
        ("", ""),
    ],
)
def test_a_flag_is_repeated_before_each_of_its_values(given_: str, expected: str) -> None:
    assert separate_sources(given_.split()) == ["" if word == "-" else word for word in expected.split()]


def test_a_word_after_any_switch_is_not_its_value() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    switches = [
        (command, name)
        for command, found in group.commands.items()
        for option in found.params
        if isinstance(option, TyperOption) and option.is_flag
        for name in option.opts
    ]
    assert ("evaluate", "--no-perplexity") in switches
    for command, name in switches:
        several = {"evaluate": "--zero-shot", "generate": "--filters"}.get(command, "--calibration")
        once = separate_sources([command, name, "M", several, "a", "b"])
        assert once == [command, name, "M", several, "a", several, "b"]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("prune M --out=~/o --recipe ~/r.yaml", "prune M --out=/home/me/o --recipe /home/me/r.yaml"),
        ("evaluate M --zero-shot-data=~", "evaluate M --zero-shot-data=/home/me"),
        ("prune M --set a=~/b --out=~nobody-is-called-so/o", "prune M --set a=~/b --out=~nobody-is-called-so/o"),
    ],
)
def test_paths_may_begin_with_the_home_folder(given_: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert separate_sources(given_.split()) == expected.split()


@given(parts=st.lists(_PARTS, max_size=6))
def test_what_is_separated_already_comes_through_unchanged(parts: list[tuple[str, ...]]) -> None:
    flags = [argument for part in parts for argument in part]
    for arguments in (["prune", "MODEL", *flags], ["prune", *flags, "MODEL"]):
        assert separate_sources(arguments) == arguments


@given(before=st.lists(_PARTS, max_size=4), after=st.lists(_PARTS, max_size=4))
def test_the_model_may_stand_anywhere(before: list[tuple[str, ...]], after: list[tuple[str, ...]]) -> None:
    arguments = ["prune", *(a for part in before for a in part), "MODEL", *(a for part in after for a in part)]
    assert separate_sources(arguments) == arguments


@given(parts=st.lists(_PARTS, max_size=4), sources=st.lists(_SOURCES, min_size=1, max_size=4))
def test_separating_twice_is_separating_once(parts: list[tuple[str, ...]], sources: list[str]) -> None:
    flags = [argument for part in parts for argument in part]
    once = separate_sources(["prune", "MODEL", "--calibration", *sources, *flags])
    repeated = [argument for source in sources for argument in ("--calibration", source)]
    assert once == ["prune", "MODEL", *repeated, *flags]
    assert separate_sources(once) == once


@pytest.mark.parametrize(
    "arguments",
    [
        ["llama", "--calibration", "text.txt=4", "manual=2"],
        ["--calibration", "text.txt=4", "manual=2", "llama"],
        ["llama", "--calibration", "text.txt=4", "--calibration", "manual=2"],
        pytest.param(
            ["--calibration", "text.txt=4", "manual=2", "llama", "--device", "cpu"],
        ),
    ],
)
def test_plan_sees_all_sources_and_the_model(arguments: list[str], cli: Cli) -> None:
    said = cli("plan", *arguments)
    assert (said.code, said.err) == (0, "")
    assert "from text.txt=4, manual=2\n" in said.out
    assert said.out.startswith("model      llama:")


def test_several_sources_are_drawn_from(cli: Cli) -> None:
    quick = QUICK[2:]
    said = cli("prune", "--out", "out", *quick, "--heldout", "manual", "--calibration", "text.txt", "manual=3", "llama")
    assert (said.code, said.err) == (0, "")
