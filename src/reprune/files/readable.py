"""Whether files may be read, asked before a library takes one that may not for missing or damaged. Knows no formats."""

from __future__ import annotations

from pathlib import Path

from reprune.errors import InputError


def is_readable(place: Path) -> bool:
    """Whether `check_readable` raises nothing."""
    try:
        check_readable(place)
    except InputError:
        return False
    return True


def check_readable(*places: Path) -> None:
    """Raise `InputError` where a file cannot be opened or is none, or what a folder holds cannot be looked at."""
    for place in places:
        try:
            if place.is_dir():
                for inside in place.iterdir():
                    inside.lstat()  # which a folder may refuse though it tells names
                    break
            elif place.is_file():
                place.open("rb").close()
            elif place.exists():
                raise InputError(f"{place}: is a pipe or a device; put a file in its place.")
        except OSError as error:
            raise InputError(f"{place}: cannot be read ({error.strerror}); check its permissions.") from None
