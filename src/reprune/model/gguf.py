"""Converts a GGUF file once to an ordinary model folder in reprune's own cache, named by the file's content.

Knows files and the libraries that convert them; knows nothing of blocks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from reprune.errors import InputError, UnsupportedModelError, out_of_memory, short
from reprune.files.cache import Notify, cache_root, locked_cache
from reprune.files.durable import copy_rights, sync_folder
from reprune.model.checkpoint import Checkpoint
from reprune.model.gguf_file import read_gguf
from reprune.model.gguf_settled import save_tokenizer, settle_, settle_tokenizer_
from reprune.model.quiet import quiet_transformers

_CONVERSION = 4
"""The version of the conversion, raised whenever its output changes."""

OLDEST = (5, 23)
"""The first release of Transformers whose tokenizers from GGUF files add BOS if the file says so."""

_LIST = ".converted"
"""The file in a converted folder that lists the names of the others, one a line."""

_TOKENIZERS = ("tok*", "tekken.json", "vocab.*", "*.model", "*.spm", "*.tiktoken")
"""Patterns of files of which a tokenizer has at least one."""


def converted_folder(file_name: str, sha256: str) -> Path:
    """The folder that a GGUF file is converted to, whether or not it exists yet.

    Its name holds the file's digest, the conversion's version and Transformers' major version, which decide the result.
    """
    import transformers

    major = transformers.__version__.split(".")[0]
    return cache_root() / f"{Path(file_name).stem}-{sha256[:16]}-{_CONVERSION}-tf{major}"


def convert_gguf(gguf: Path, notify: Notify) -> Path:
    """The folder of a GGUF file, which is converted now unless a complete conversion exists."""
    try:
        with gguf.open("rb") as file:
            if file.read(4) != b"GGUF":
                if (gguf.parent / "config.json").is_file() and gguf.suffix.lower() != ".gguf":
                    raise InputError(f"{gguf}: is one file of a model; give the folder that it is in: {gguf.parent}")
                raise InputError(f"{gguf}: is not a GGUF file; expected a model folder, a Hub id or a .gguf file.")
            file.seek(0)
            folder = converted_folder(gguf.name, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise InputError(f"{gguf}: cannot be read ({error.strerror}).") from None
    if is_whole(folder):
        return folder
    if any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")):
        raise InputError(f'{gguf}: reading GGUF files needs other packages: pip install "reprune[gguf]"')
    check_release(gguf)
    with locked_cache(folder.name, notify) as root:
        if is_whole(folder):  # converted by the process that held the lock
            return folder
        notify(f"converting {gguf.name} once; the result is kept in the cache")
        work = root / f".{folder.name}.partial"
        shutil.rmtree(work, ignore_errors=True)  # left by a conversion that was killed: we hold the lock
        try:
            (work / "read").mkdir(parents=True)
            (work / "read" / "model.gguf").symlink_to(gguf.resolve())  # away from the other files of its folder
            with _silent_conversion():
                _convert(gguf, work / "read", work / "write")
            names = sorted(path.name for path in (work / "write").iterdir())
            (work / "write" / _LIST).write_text("\n".join(names), encoding="utf-8")
            for path in (work / "write").iterdir():
                copy_rights(work / "write" / "config.json", path)  # weights are readable only by their owner
                with path.open("rb") as written:
                    os.fsync(written.fileno())
            sync_folder(work / "write")
            shutil.rmtree(folder, ignore_errors=True)  # what a cleanup of the cache left of it
            (work / "write").replace(folder)
            sync_folder(root)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{gguf.name}: the converted model cannot be written to {root} ({short(error)}); "
                "it can take four times the file's size: free some space, or set REPRUNE_CACHE to another folder."
            ) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether the folder has all that a model needs, and all files that a conversion wrote to it."""
    with suppress(OSError):  # only converted folders have a list
        if not all((folder / name).exists() for name in (folder / _LIST).read_text(encoding="utf-8").split("\n")):
            return False
    tokenizer = any(any(folder.glob(pattern)) for pattern in _TOKENIZERS)
    try:
        return tokenizer and (folder / "config.json").exists() and bool(Checkpoint(folder).entries)
    except InputError:
        return False


def check_release(gguf: Path) -> None:
    """Raise `InputError` if Transformers is too old to read a GGUF file's tokenizer correctly."""
    import transformers

    found = transformers.__version__
    if tuple(map(int, found.split(".")[:2])) < OLDEST:
        raise InputError(
            f"{gguf}: GGUF files need Transformers {'.'.join(map(str, OLDEST))} or newer (this is {found}, which loses "
            'BOS): pip install "reprune[gguf]", or give the model\'s safetensors folder or Hub id.'
        )


def _convert(gguf: Path, source: Path, target: Path) -> None:
    """Write source/model.gguf as a model folder in bfloat16.

    bfloat16 keeps 8 significant bits of each weight; K-quants have at most 6 bits a weight. No loss can be
    measured: Gemma 3 270M from Q4_K_M has a WikiText-2 perplexity of 26.92 both with float32 and with bfloat16
    weights. Weights that were never quantized are better taken from the model's safetensors.
    """
    import torch
    import transformers

    from reprune.model.plain_kernels import NOTHING_DOWNLOADED

    said = read_gguf(gguf, source / "model.gguf")
    plain = transformers.GgufConfig(dequantize=True)  # otherwise weights stay packed
    options: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "output_loading_info": True,
        "quantization_config": plain,
        **NOTHING_DOWNLOADED,
    }
    auto: Any = transformers.AutoModelForCausalLM
    library, of_kind = f"Transformers {transformers.__version__}", f"of architecture {said.architecture}"

    def refusal(why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{gguf.name}: {why}; use the model's safetensors folder or Hub id instead.")

    def passed_over(what: str) -> UnsupportedModelError:
        return refusal(f"{library} ignores {what} in a GGUF {of_kind}, so the model would not be the same")

    if (blocks := int(said.settings["block_count"])) > (held := len(said.tensors)):  # before so many are built
        raise refusal(f"has only {held} tensors for {blocks} blocks")
    try:
        model, info = auto.from_pretrained(source, gguf_file="model.gguf", **options)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
    except Exception as error:  # an unknown architecture, a missing key: nearly anything
        if out_of_memory(error) is not None:
            raise
        raise refusal(f"{library} cannot make a decoder of this GGUF {of_kind} ({short(error)})") from None
    if missing := sorted(info["missing_keys"]):
        raise refusal(f"lacks {len(missing)} tensors ({missing[0]})")
    rope = json.dumps(getattr(model.config, "rope_parameters", None), default=str)
    if said.rope_is_scaled and not re.search(r'"rope_type": "(?!default")', rope):
        raise refusal(
            f"its rotary frequencies are scaled, which {library} does not read from a GGUF {of_kind}, so the model "
            "would not be the same"
        )
    if lost := settle_(model, said) + settle_tokenizer_(tokenizer, said):
        raise passed_over(", ".join(lost))
    # The weights are plain now, but a model with a reference to a quantizer cannot be saved.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if said.implies_bos:
        tokenizer.add_bos_token = True
    model.save_pretrained(target)
    if not save_tokenizer(tokenizer, said, target):
        raise passed_over(f"tokenizer.ggml.pre = {said.split}")


@contextmanager
def _silent_conversion() -> Iterator[None]:
    """Suppress progress bars and warnings of a conversion; all settings are restored after it."""
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils
    bar = reader.tqdm
    reader.tqdm = lambda items, **_: items  # this progress bar ignores the library's own switch
    try:
        with quiet_transformers():
            yield
    finally:
        reader.tqdm = bar
