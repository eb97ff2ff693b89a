"""Lets flags such as `--calibration` take several values after one flag. Knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reprune.files.local import local_path

_SETTINGS = "--set"  # its values have an equals sign, so a MODEL after them can be told apart
_MANY = ("--calibration", "--heldout", "--include", "--exclude", _SETTINGS)
_MANY_OF = {  # by command
    "study": (*_MANY, "--pruners", "--rungs", "--seeds", "--only", "--self-generate", "--text", "--zero-shot"),
    "evaluate": ("--zero-shot",),
    "generate": ("--filters",),
}
_MAYBE_ONE = {"study": ("--ray",)}  # by command: flags with one value or none, which becomes an empty one
_PATHS = ("--out", "--recipe", "--zero-shot-data")
_SWITCHES = (  # of all commands
    *("--quiet", "--verbose", "--trust-remote-code", "--keep-models", "--no-perplexity"),
    *("--json", "--show", "--help", "--version"),
)


def separate_sources(arguments: list[str]) -> list[str]:
    """Repeat the flag before each of its values: `--calibration a b` becomes `--calibration a --calibration b`.

    A word that begins with a dash ends the list. If there is no MODEL elsewhere, the last value of the last list of
    several values is the MODEL.
    """
    command, rest = arguments[:1], list(arguments[1:])
    many, maybe_one = _MANY_OF.get(" ".join(command), _MANY), _MAYBE_ONE.get(" ".join(command), ())
    parts: list[tuple[str | None, list[str]]] = []  # (flag, its values), or (None, words to keep as they are)
    has_model = False
    while rest:
        word = rest.pop(0)
        if word == "--":  # no flags follow
            has_model = has_model or bool(rest)
            parts.append((None, [word, *rest]))
            rest = []
        elif word in many:
            values: list[str] = []
            while rest and not rest[0].startswith("-") and (word != _SETTINGS or not values or "=" in rest[0]):
                values.append(rest.pop(0))
            parts.append((word, values))
        elif word in maybe_one:
            parts.append((word, [rest.pop(0)] if rest and not rest[0].startswith("-") else []))
        elif not word.startswith("-"):
            has_model = True
            parts.append((None, [word]))
        else:
            takes_value = not (word in _SWITCHES or "=" in word or _is_short(word)) and bool(rest)
            parts.append((None, [word, rest.pop(0)] if takes_value else [word]))
    lists = [number for number, (flag, values) in enumerate(parts) if flag is not None and len(values) > 1]
    lists = lists or [number for number, (flag, values) in enumerate(parts) if flag in maybe_one and values]
    if lists and not has_model:
        parts.insert(lists[-1] + 1, (None, [parts[lists[-1]][1].pop()]))
    result = list(command)
    for flag, values in parts:
        if flag is None:
            result += values
        elif flag in maybe_one:
            result += [flag, *(values or [""])]
        else:
            result += [word for value in values for word in (flag, value)] or [flag]
    return list(_at_home(result))


def _at_home(words: Sequence[str]) -> Iterator[str]:
    """The words, `~` at the start of paths replaced by the home folder: shells do not replace it in `--out=~/x`."""
    before = ""
    for word in words:
        flag, _, value = word.partition("=")
        if flag in _PATHS and value.startswith("~"):
            yield f"{flag}={local_path(value)}"
        else:
            yield str(local_path(word)) if before in _PATHS and word.startswith("~") else word
        before = word


def _is_short(word: str) -> bool:
    """Whether a word consists of one-letter switches, such as -q or -qv."""
    return len(word) > 1 and word[1] != "-"
