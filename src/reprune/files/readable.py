"""Checks that files can be read, as libraries report unreadable ones as missing or damaged. Knows no formats."""

from __future__ import annotations

from errno import ENAMETOOLONG
from pathlib import Path

from reprune.errors import InputError


def is_readable(place: Path) -> bool:
    """Whether `check_readable` accepts a place."""
    try:
        check_readable(place)
    except InputError:
        return False
    return True


def is_there(file: Path, called: str, way_on: str | None = None) -> bool:
    """Whether a file exists.

    Where that cannot be told, `Path.exists` raises or, since Python 3.14, returns False; here it is an `InputError`,
    whose message calls the place by `called` and says what to do: `way_on`, by default by the error.
    """
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a name with a null character
        return False
    except OSError as error:
        usual = "give a shorter name" if error.errno == ENAMETOOLONG else "check its permissions"
        raise InputError(f"{called}: cannot be read ({error.strerror}); {way_on or usual}.") from None
    return True


def is_file_there(file: Path, called: str) -> bool:
    """Whether there is a file, and no folder, pipe or device; raises as `is_there` does where that cannot be told."""
    return is_there(file, called) and file.is_file()


def check_readable(*places: Path) -> None:
    """Raise `InputError` if a file cannot be opened or is a pipe or device, or if a folder cannot be searched."""
    for place in places:
        try:
            if place.is_dir():
                for inside in place.iterdir():
                    inside.lstat()  # a folder may list its names and still refuse this
                    break
            elif place.is_file():
                place.open("rb").close()
            elif is_there(place, str(place)):
                raise InputError(f"{place}: is a pipe or a device; put a file in its place.")
        except OSError as error:
            raise InputError(f"{place}: cannot be read ({error.strerror}); check its permissions.") from None
