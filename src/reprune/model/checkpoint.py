"""A model folder's tensors, read one at a time. Knows names, shapes and files; knows nothing of modules.

Tensors are memory-mapped from their file; nothing is read into memory until a tensor is copied.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reprune.errors import InputError, UnsupportedModelError
from reprune.files.durable import sha256
from reprune.files.readable import check_readable, is_file_there, is_there
from reprune.files.unchanged import Unchanged
from reprune.files.wellformed import read_json
from reprune.model.snapshots import by_hand, called
from reprune.model.undownloaded import Listed, Undownloaded

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    **{
        name: getattr(torch, dtype)
        for name, dtype in (("F8_E8M0", "float8_e8m0fnu"), ("F4", "float4_e2m1fn_x2"))  # since PyTorch 2.7 and 2.8
        if hasattr(torch, dtype)
    },
}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes in which a weight is stored as it is: narrower floats come with scales, which only a quantizer can apply."""

NAMES_WEIGHTS = "transformers_weights"
"""The key by which config.json may name the file that holds the weights."""

USUAL = ("model.safetensors", "model.safetensors.index.json")
"""Where Transformers looks for weights if config.json does not name their file."""

TOKENIZER = (
    *("tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tekken.json", "vocab.json", "vocab.txt", "target_vocab.json", "emoji.json", "merges.txt", "bpe.codes"),
    *("*.model", "*.spm", "*.tiktoken", "*.tokenizer", "*.jinja"),
)
"""Patterns of the files that decide how text becomes tokens, by Transformers' own names."""

_BESIDE = ("config.json", *TOKENIZER)  # the files that decide the model besides its weights
_OF_CODE = ("*.py", "*token*.json", "*vocab*.json", "*vocab*.txt")  # also these if it has code, which may read them
_SAMPLED_BYTES = 4096  # from each end of each tensor, for the fingerprint
_FILES_AT_A_TIME = 4  # hashed in parallel


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor is stored, and as what."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | str  # as a string: its name in the file, if PyTorch has no such dtype
    bytes: int
    offset: int  # of its first byte in the file; -1 if the file is not here

    @property
    def floats(self) -> bool:
        """Whether it holds floats; all dtypes that PyTorch does not know are floats of few bits."""
        return isinstance(self.dtype, str) or self.dtype.is_floating_point


@final
class Checkpoint:
    """All tensors of a folder of safetensors files, by name."""

    def __init__(self, folder: Path, undownloaded: Undownloaded | None = None) -> None:
        """Read the headers of all files that belong to the model, also of those that are only on the Hub.

        Raises:
            InputError: a file is missing or damaged, or there are none, or the Hub does not give a header.
        """
        self.folder = folder
        self.name = called(folder)
        self._away = {folder / name for name in undownloaded.names} if undownloaded else set[Path]()
        weights = weight_files(folder, self._away)
        here, away = ([file for file in weights if (file in self._away) == gone] for gone in (False, True))
        self._unchanged = Unchanged({*here, *_beside(folder)})
        headers = {file: _read_header(file) for file in here}
        if undownloaded and away:
            read = undownloaded.tensors([file.name for file in away])
            headers |= {file: _listed(file, tensors) for file, tensors in zip(away, read, strict=True)}
        found: dict[str, TensorEntry] = {}
        for file in weights:
            for name, entry in headers[file]:
                if name in found:
                    raise InputError(
                        f"{folder}: the tensor {name} is in both {found[name].file.name} and {file.name}; "
                        f"{by_hand(folder, 'remove the file that does not belong to this model')}."
                    )
                found[name] = entry
        self.entries: Mapping[str, TensorEntry] = dict(sorted(found.items()))

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name on the CPU in its stored dtype, mapped from the file (do not write to it).

        Raises:
            OSError: the file can no longer be read.
            ChangedError: the file has changed since the checkpoint was opened.
        """
        path = self.entries[name].file
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            self._unchanged.check(path)
            raise OSError(errno.EIO, f"cannot be read any more ({error})", str(path)) from None
        self._unchanged.check(path)
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a stored tensor; raises `UnsupportedModelError` if PyTorch does not have it."""
        dtype = self.entries[name].dtype
        if isinstance(dtype, str):
            raise no_floats(self.name, name, dtype)
        return dtype

    def check_unchanged(self) -> None:
        """Raise `ChangedError` if a file of the model or its tokenizer has changed since the checkpoint was opened.

        Tensors are mapped from their file, so a write to the file changes tensors that are not copied yet.
        """
        self._unchanged.check()

    @property
    def bytes(self) -> int:
        """The size of all tensors."""
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def undownloaded_bytes(self) -> int:
        """The size of the tensors whose files are only on the Hub."""
        return sum(entry.bytes for entry in self.entries.values() if entry.file in self._away)

    def fingerprint(self) -> str:
        """A SHA-256 that tells this model from others, without reading all of its weights.

        It covers the configuration, every tensor's name, shape and dtype, and the first and last 4 KiB of each
        tensor's data.
        """
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for name, entry in self.entries.items():
            digest.update(f"{name} {entry.shape} {entry.dtype}\n".encode())
            with entry.file.open("rb") as file:
                file.seek(entry.offset)
                digest.update(file.read(min(_SAMPLED_BYTES, entry.bytes)))
                file.seek(entry.offset + max(entry.bytes - _SAMPLED_BYTES, 0))
                digest.update(file.read(min(_SAMPLED_BYTES, entry.bytes)))
        return digest.hexdigest()

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file of the configuration, code, tokenizer and weights, by file name; reads them all."""
        with self.digesting() as digests:
            return digests()

    @contextmanager
    def digesting(self) -> Iterator[Callable[[], dict[str, str]]]:
        """Compute `digests` in background threads; the function that is yielded waits for them and returns them.

        Leaving the context stops the reading of files that are not finished.
        """
        files = {str(file.relative_to(self.folder)) for file in self._unchanged.files} - {"config.json"}
        names = ["config.json", *sorted(files)]
        left, pool = threading.Event(), ThreadPoolExecutor(_FILES_AT_A_TIME)
        try:
            found = [pool.submit(sha256, self.folder / name, left.is_set) for name in names]
            yield lambda: {name: digest.result() for name, digest in zip(names, found, strict=True)}
        finally:
            left.set()
            pool.shutdown(cancel_futures=True)


def weight_files(folder: Path, away: Collection[Path] = ()) -> list[Path]:
    """The files that Transformers reads a model's weights from: some in its folder, some `away`, only on the Hub.

    The file or index that config.json names, else the one of a usual name, else all model*.safetensors, else all.

    Raises:
        InputError: one of them is missing, or there are none, or their names cannot be read.
    """
    named = _named(folder, away)
    if named is None:
        every = sorted({*folder.glob("*.safetensors"), *away})
        files = [file for file in every if file.name.startswith("model")] or every
    elif named.endswith(".safetensors"):
        files = [folder / named]
    else:
        files = _of_index(folder / named)
    if missing := [file.name for file in files if not _is_had(file, away)]:
        raise InputError(
            f"{called(folder)}: the weight file {missing[0]} is missing ({len(missing)} of {len(files)} are); "
            "download the model again."
        )
    if not files:
        raise InputError(f"{folder}: expected *.safetensors files, found none.")
    return files


def are_named(folder: Path) -> bool:
    """Whether config.json or a usual name tells which files `weight_files` are; otherwise any of the folder may be."""
    return _named(folder) is not None


def _named(folder: Path, away: Collection[Path] = ()) -> str | None:
    """The weight file, or index of such files, by config.json or by a usual name; None if there is neither."""
    usual = (name for name in USUAL if _is_had(folder / name, away))
    return _named_by_config(folder) or next(usual, None)


def _is_had(file: Path, away: Collection[Path]) -> bool:
    return file in away or is_there(file, str(file))


def _of_index(index: Path) -> list[Path]:
    check_readable(index)
    try:
        weight_map = read_json(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{index}: not a safetensors index with a weight_map; download the model again.") from None
    if outside := [name for name in names if _is_outside(name)]:
        raise InputError(f"{index}: names the file {outside[0]}, outside the model folder; refused.")
    return [index.parent / name for name in names]


def _named_by_config(folder: Path) -> str | None:
    """The weight file, or index of such files, that config.json names; None if it names none."""
    config = folder / "config.json"
    try:
        named = read_json(config.read_text(encoding="utf-8")).get(NAMES_WEIGHTS)
    except (OSError, ValueError, AttributeError):  # reported where the configuration itself is read
        return None
    if named is None:
        return None
    if not str(named).endswith((".safetensors", ".safetensors.index.json")) or _is_outside(str(named)):
        raise InputError(
            f"{config}: its {NAMES_WEIGHTS} is {named!r}; expected a *.safetensors file of the folder, or an index "
            "of such files."
        )
    return str(named)


def digests_beside(folder: Path) -> dict[str, str]:
    """`Checkpoint.digests` without the weights: the SHA-256 of each other file that decides a model, by file name."""
    return {file.name: sha256(file) for file in sorted(_beside(folder))}


def differing(files: Mapping[str, str], others: Mapping[str, str]) -> set[str]:
    """The names of files that differ between two models or that only one of them has, from the digests of both.

    vocab.json and merges.txt do not count beside a tokenizer.json, which holds their contents and is read instead.
    """
    names = {*files, *others}
    if "tokenizer.json" in names:
        names -= {"vocab.json", "merges.txt"}
    return {name for name in names if files.get(name) != others.get(name)}


def no_floats(place: str, name: str, dtype: torch.dtype | str) -> UnsupportedModelError:
    """The error that refuses a weight of such a dtype."""
    return UnsupportedModelError(
        f"{place}: the tensor {name} is stored as {str(dtype).removeprefix('torch.')}, which cannot be pruned; "
        "use the model's bfloat16, float16 or float32 weights."
    )


def _beside(folder: Path) -> set[Path]:
    """The files that decide a model besides its weights."""
    patterns = (*_BESIDE, *_OF_CODE) if _names_code(folder) else _BESIDE
    return {file for pattern in patterns for file in folder.glob(pattern) if is_file_there(file, str(file))}


def _is_outside(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def _names_code(folder: Path) -> bool:
    """Whether the configuration of the model or its tokenizer names remote code, in the folder or elsewhere."""
    for name in ("config.json", "tokenizer_config.json"):
        with suppress(OSError):  # reported where the file itself is read
            if b'"auto_map"' in (folder / name).read_bytes():
                return True
    return False


def _read_header(file: Path) -> Iterator[tuple[str, TensorEntry]]:
    """Names and places of the tensors in one safetensors file."""
    check_readable(file)  # safetensors would call an unreadable file missing
    try:
        with safe_open(file, framework="pt"):
            pass  # safetensors checks that the header is valid and that the data is complete
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a whole safetensors file ({error}); download it again.") from None
    except RuntimeError as error:
        raise InputError(
            f"{file}: cannot be mapped into memory as a whole ({error}); save the model in smaller files "
            "(`save_pretrained` with `max_shard_size`), or have the system allow it (vm.overcommit_memory=1)."
        ) from None
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = read_json(stream.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        (begin, end), dtype = entry["data_offsets"], DTYPES.get(entry["dtype"], entry["dtype"])
        yield name, TensorEntry(file, tuple(entry["shape"]), dtype, end - begin, 8 + length + begin)


def _listed(file: Path, tensors: Iterable[Listed]) -> Iterator[tuple[str, TensorEntry]]:
    """The same for a file that is only on the Hub, from what its header says."""
    for name, dtype, shape, size in tensors:
        yield name, TensorEntry(file, shape, DTYPES.get(dtype, dtype), size, -1)
