"""Loads a model folder's tokenizer, and finds its files."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any

from reprune.errors import InputError, UnsupportedModelError, out_of_memory
from reprune.model.bare import check_trusted, read_config
from reprune.model.garbage import no_search
from reprune.model.quiet import quiet_transformers
from reprune.model.snapshots import by_hand, called

_READERS = (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf"))
"""The modules needed to read a SentencePiece model, and the packages that provide them."""

_COPY = "copy the model's tokenizer files (tokenizer.json, tokenizer_config.json) to its weights"


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder; raises `InputError` if there is none that can be used."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers(), no_search():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
            words = tokenizer("one two", add_special_tokens=False)["input_ids"]
    except Exception as error:  # on damaged files the library raises nearly anything
        if out_of_memory(error) is not None:
            raise
        check_trusted(folder, error)
        file = _sentencepiece(folder)
        if file is not None and (lacking := [package for module, package in _READERS if not _is_there(module)]):
            raise InputError(
                f"{called(folder)}: its tokenizer ({file.name}) needs other packages; install them with: pip install "
                f"{' '.join(lacking)}"
            ) from None
        with suppress(UnsupportedModelError):  # does not matter to a tokenizer
            if (folder / "config.json").exists():
                read_config(folder, trust_remote_code)  # if the cause is the configuration, this says so
        reason = " ".join(str(error).split())
        raise InputError(
            f"{called(folder)}: its tokenizer cannot be loaded ({reason:.200}); {by_hand(folder, _COPY)}."
        ) from None
    if not words:  # Transformers makes some classes of tokenizers without their files
        raise InputError(f"{called(folder)}: its tokenizer is empty; {by_hand(folder, _COPY)}.")
    return tokenizer


def tokenizer_files(folder: Path) -> set[str]:
    """The files of a folder's tokenizer that exist, as named by its class, which may be code in the folder."""
    try:
        names = {str(name) for name in load_tokenizer(folder, True).vocab_files_names.values()}
    except InputError:
        return set()
    return {name for name in names if Path(name).name == name and (folder / name).is_file()}


def _is_there(module: str) -> bool:
    """Whether a module is installed."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its package is not installed, or is blocked from being imported
        return False


def _sentencepiece(folder: Path) -> Path | None:
    """A SentencePiece model, which begins with the tag of its list of pieces (a newline); tiktoken's files are text."""
    files = (file for kind in ("model", "spm") for file in sorted(folder.glob(f"*.{kind}")) if file.is_file())
    for file in files:
        with file.open("rb") as stream:
            if stream.read(1) == b"\n":
                return file
    return None
