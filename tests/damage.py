"""Damages files."""

from __future__ import annotations

from pathlib import Path


def flip_bit(path: Path, place: int) -> None:
    """Change the lowest bit of one byte; done twice, the file is as it was."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
