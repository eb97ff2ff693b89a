"""A model folder's tensors, read one at a time. Knows names, shapes and files; knows nothing of modules.

Tensors are mapped from their file, not read into memory, until someone copies them.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
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
from reprune.files.readable import check_readable
from reprune.files.unchanged import Unchanged
from reprune.files.wellformed import read_json
from reprune.model.snapshots import called

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
        for name, dtype in (("F8_E8M0", "float8_e8m0fnu"), ("F4", "float4_e2m1fn_x2"))  # of PyTorch 2.7 and 2.8
        if hasattr(torch, dtype)
    },
}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""In which a weight is stored as it is: other floats come with scales, which are nothing without a quantizer."""

NAMES_WEIGHTS = "transformers_weights"
"""What config.json may say, on loading, of the file that holds the weights."""

USUAL = ("model.safetensors", "model.safetensors.index.json")
"""Where Transformers looks for weights otherwise."""

TOKENIZER = (
    *("tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tekken.json", "vocab.json", "vocab.txt", "target_vocab.json", "emoji.json", "merges.txt", "bpe.codes"),
    *("*.model", "*.spm", "*.tiktoken", "*.tokenizer", "*.jinja"),
)
"""Patterns of the files that decide how text becomes tokens, by Transformers' own names."""

_BESIDE = ("config.json", *TOKENIZER)  # the weights, of what decides the model
_OF_CODE = ("*.py", "*token*.json", "*vocab*.json", "*vocab*.txt")  # and where code comes with it, which may read those
_SAMPLED_BYTES = 4096  # from each end of each tensor, for the fingerprint
_FILES_AT_A_TIME = 4  # that are hashed


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | str  # its name in the file, where PyTorch knows none such
    bytes: int
    offset: int  # of its first byte in the file

    @property
    def floats(self) -> bool:
        """Whether it holds no whole numbers; all that PyTorch does not know are floats of few bits."""
        return isinstance(self.dtype, str) or self.dtype.is_floating_point


@final
class Checkpoint:
    """All tensors of a folder of safetensors files, by name."""

    def __init__(self, folder: Path) -> None:
        """Read the headers of all files that belong to the model.

        Raises:
            InputError: a file is missing or damaged, or there is none.
        """
        self.folder = folder
        self.name = called(folder)
        weights = self._files()
        self._unchanged = Unchanged({*weights, *_beside(folder)})
        found: dict[str, TensorEntry] = {}
        for file in weights:
            for name, entry in _read_header(file):
                if name in found:
                    raise InputError(
                        f"{folder}: the tensor {name} is in {found[name].file.name} and in {file.name}; "
                        "remove the file that is not of this model."
                    )
                found[name] = entry
        self.entries: Mapping[str, TensorEntry] = dict(sorted(found.items()))

    def _files(self) -> list[Path]:
        """The files that Transformers reads.

        What config.json names, else the one of the usual name, else those of the index; else all there are.
        """
        usual = (name for name in USUAL if (self.folder / name).exists())
        named = self._named_by_config() or next(usual, None)
        if named is None:
            files = sorted(self.folder.glob("model*.safetensors")) or sorted(self.folder.glob("*.safetensors"))
        elif named.endswith(".safetensors"):
            files = [self.folder / named]
        else:
            files = self._of_index(self.folder / named)
        if missing := [file.name for file in files if not file.exists()]:
            raise InputError(
                f"{self.name}: the weight file {missing[0]} is missing ({len(missing)} of {len(files)} are); "
                "download the model again."
            )
        if not files:
            raise InputError(f"{self.folder}: expected *.safetensors files, found none.")
        return files

    def _of_index(self, index: Path) -> list[Path]:
        check_readable(index)
        try:
            weight_map = read_json(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted({str(name) for name in weight_map.values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{index}: not a safetensors index with a weight_map; download the model again.") from None
        if outside := [name for name in names if _is_outside(name)]:
            raise InputError(f"{index}: names the file {outside[0]}, outside the model folder; refused.")
        return [self.folder / name for name in names]

    def _named_by_config(self) -> str | None:
        """The file of weights, or index of such files, that config.json names, where it does."""
        config = self.folder / "config.json"
        try:
            named = read_json(config.read_text(encoding="utf-8")).get(NAMES_WEIGHTS)
        except (OSError, ValueError, AttributeError):  # whoever reads the configuration says it
            return None
        if named is None:
            return None
        if not str(named).endswith((".safetensors", ".safetensors.index.json")) or _is_outside(str(named)):
            raise InputError(
                f"{config}: its {NAMES_WEIGHTS} is {named!r}; expected a *.safetensors file of the folder, or an index "
                "of such files."
            )
        return str(named)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name on the CPU in its stored dtype, mapped from the file (do not write to it).

        Raises:
            OSError: the file can no longer be read.
            ChangedError: it is another than when this was opened.
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
        """In which a tensor is stored; raises `UnsupportedModelError` where it can be neither read nor passed on."""
        dtype = self.entries[name].dtype
        if isinstance(dtype, str):
            raise no_floats(self.name, name, dtype)
        return dtype

    def check_unchanged(self) -> None:
        """Raise `ChangedError` where a file of the model or its tokenizer is another than when this was opened.

        Tensors are mapped from their file: one may be written to until its tensors have been copied.
        """
        self._unchanged.check()

    @property
    def bytes(self) -> int:
        """The size of all tensors."""
        return sum(entry.bytes for entry in self.entries.values())

    def fingerprint(self) -> str:
        """A SHA-256 that tells this model from any other, in a time that does not grow with its size.

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
        """The SHA-256 of the configuration, code, the tokenizer and each weight file, by its name: all are read."""
        with self.digesting() as digests:
            return digests()

    @contextmanager
    def digesting(self) -> Iterator[Callable[[], dict[str, str]]]:
        """Begin with `digests` beside whatever else is done here; what is yielded waits for them and returns them.

        Where the context is left without that, nothing more is read.
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


def digests_beside(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that decides a model beside its weights, by its name, as `Checkpoint.digests`."""
    return {file.name: sha256(file) for file in sorted(_beside(folder))}


def differing(files: Mapping[str, str], others: Mapping[str, str]) -> set[str]:
    """The names of files that are not the same in two models, or are in one alone, by the digests of what each has.

    Beside a tokenizer.json, which holds what is in them, neither vocab.json nor merges.txt is read.
    """
    names = {*files, *others}
    if "tokenizer.json" in names:
        names -= {"vocab.json", "merges.txt"}
    return {name for name in names if files.get(name) != others.get(name)}


def no_floats(place: str, name: str, dtype: torch.dtype | str) -> UnsupportedModelError:
    """Why a weight of such numbers is refused."""
    return UnsupportedModelError(
        f"{place}: the tensor {name} is stored as {str(dtype).removeprefix('torch.')}, which cannot be pruned; "
        "use the model's bfloat16, float16 or float32 weights."
    )


def _beside(folder: Path) -> set[Path]:
    """The files that decide a model, but its weights."""
    patterns = (*_BESIDE, *_OF_CODE) if _names_code(folder) else _BESIDE
    return {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}


def _is_outside(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def _names_code(folder: Path) -> bool:
    """Whether the configuration of a model or its tokenizer names code that comes with it, in its folder or not."""
    for name in ("config.json", "tokenizer_config.json"):
        with suppress(OSError):  # whoever reads it says it
            if b'"auto_map"' in (folder / name).read_bytes():
                return True
    return False


def _read_header(file: Path) -> Iterator[tuple[str, TensorEntry]]:
    """Names and places of the tensors in one safetensors file."""
    check_readable(file)  # the library calls one that is not missing
    try:
        with safe_open(file, framework="pt"):
            pass  # the library checks that the header is sound and that the data is all there
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
