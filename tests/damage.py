"""Damages files."""

from __future__ import annotations

import json
from pathlib import Path


def flip_bit(path: Path, place: int) -> None:
    """Change the lowest bit of one byte; done twice, the file is as it was."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def add_unknown(path: Path, name: str) -> None:
    """Add a tensor of a dtype that PyTorch does not know to a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header[name] = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [len(data), len(data) + 3]}
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + data + bytes(3))
