"""Turns what the user calls a model into a local folder: config.json, safetensors, tokenizer.

A local folder is checked, a Hub id is downloaded, a GGUF file is converted once into a cached folder. Knows
names, files and the libraries that fetch and convert; knows nothing of blocks, and opens no pickle.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from reprune.errors import InputError, UnsupportedModelError
from reprune.model.durable import sync_folder

Notify = Callable[[str], None]
"""Is told in one sentence what takes long."""

_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
_UNWANTED = [  # second copies of the same weights
    *("*/*.safetensors", "consolidated*"),
    *(f"*.{kind}{rest}" for kind in ("fp16", "bf16", "fp32") for rest in (".safetensors", "-*", ".index.*")),
]
_PICKLE = re.compile(r"pytorch_model.*\.bin|.*\.(pth|pt|ckpt)")
_GENERATIVE = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
_NOT_GENERATIVE = re.compile(r"For(MaskedLM|\w*Classification|\w*QuestionAnswering|MultipleChoice)$")


def locate_model(model: str, *, revision: str | None = None, notify: Notify | None = None) -> Path:
    """The folder of a model: an ordinary Hugging Face folder that plain Transformers loads.

    Args:
        model: a local folder, a Hub id such as "google/gemma-3-270m", or a .gguf file.
        revision: branch, tag or commit; only for a Hub id.
        notify: is told before a conversion, which takes about a minute.

    A Hub model that is in the local Hugging Face cache is found there without a network. A GGUF file is
    converted into reprune's own cache, its folder named by the SHA-256 of its content.

    Raises:
        InputError: there is no such model, or it cannot be used; the message says what to do.
        UnsupportedModelError: it is no decoder, or its file holds what Transformers does not read.
    """
    try:
        path = Path(model).expanduser()
    except RuntimeError:  # ~someone who has no home here
        path = Path(model)
    if revision is not None and path.exists():
        raise InputError(f"{model}: is a local path; only of a Hub id can a revision ({revision}) be asked.")
    if model.strip() and path.is_dir():
        _check_folder(path, model)
        return path.resolve()
    if path.is_file():
        return _from_gguf(path, notify)
    if path.suffix.lower() == ".gguf":
        raise InputError(f"{model}: no such file; download a GGUF from the Hub first (hf download REPO FILE).")
    if _looks_like_path(model):
        raise InputError(f"{model}: no such folder; expected a model folder, a Hub id or a .gguf file.")
    return _from_hub(model, revision)


def cache_root() -> Path:
    """Where converted models are kept: $REPRUNE_CACHE, $XDG_CACHE_HOME/reprune or ~/.cache/reprune."""
    if own := os.environ.get("REPRUNE_CACHE"):
        return Path(own).expanduser().absolute()
    if (shared := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():  # its standard ignores others
        return shared / "reprune"
    return Path.home() / ".cache" / "reprune"


def converted_folder(file_name: str, sha256: str) -> Path:
    """The folder of a GGUF file once it is converted, whether it is already or not.

    Named by the content and by the major version of Transformers, whose readers decide what comes out.
    """
    import transformers

    major = transformers.__version__.split(".")[0]
    return cache_root() / f"{Path(file_name).stem}-{sha256[:16]}-tf{major}"


@contextmanager
def locked_cache(name: str, notify: Notify | None = None) -> Iterator[Path]:
    """Hold the cache's lock of that name against other processes; yields the cache's root, which then exists.

    The lock goes with the process. Its empty file stays: removing it would let two processes hold it.
    """
    import fcntl

    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".{name}.lock").open("w")
    except OSError as error:
        raise InputError(f"{root}: no cache can be kept here ({error.strerror}); set REPRUNE_CACHE.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if notify is not None:
                notify(f"waiting for another process that is making {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield root


def _looks_like_path(model: str) -> bool:
    """Whether a text that names nothing on this disk was meant to: a Hub id is `name` or `owner/name`."""
    owner, slash, name = model.partition("/")
    if not owner.strip() or owner[0] in ".~" or "\\" in model:
        return True
    return bool(slash) and (not name or "/" in name or Path(owner).exists())


def _check_folder(folder: Path, name: str) -> None:
    """Raise unless the folder holds a decoder's configuration and safetensors weights."""
    names = sorted(path.name for path in folder.iterdir())
    ggufs = [file for file in names if file.lower().endswith(".gguf")]
    if "config.json" in names:
        _check_config(folder / "config.json", name)
        if any(file.endswith(".safetensors") and not file.startswith("adapter_") for file in names):
            return
        if "model.safetensors.index.json" in names:
            raise InputError(f"{name}: none of its *.safetensors files is here; download the model again.")
        if pickles := [file for file in names if _PICKLE.fullmatch(file)]:
            raise InputError(
                f"{name}: its weights are pickles ({pickles[0]}), which can run code and are never read. "
                f"If you trust them: AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(FOLDER), "
                "the same with AutoTokenizer, then give FOLDER."
            )
    elif "adapter_config.json" in names:
        raise InputError(f"{name}: is a PEFT adapter; give its base model with it merged in (merge_and_unload).")
    elif not ggufs:
        raise InputError(f"{name}: has no config.json, so it is not a model folder.")
    if ggufs:
        raise InputError(f"{name}: holds no model but in GGUF; name the file itself: {Path(name, ggufs[0])}")
    raise InputError(f"{name}: holds no *.safetensors files, the only weights that are read from a folder.")


def _check_config(file: Path, name: str) -> None:
    """Raise unless config.json is that of a model that predicts the next token."""
    try:
        config = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{name}: its config.json cannot be read ({error}); download it again.") from None
    classes = [str(each) for each in config.get("architectures") or []]
    if any(_GENERATIVE.search(each) for each in classes):
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    if any(_NOT_GENERATIVE.search(each) for each in classes) or config.get("model_type") in ENCODERS:
        what = ", ".join(classes) or config["model_type"]
        raise UnsupportedModelError(f"{name}: {what} does not predict the next token; give a causal language model.")


def _from_hub(model: str, revision: str | None) -> Path:
    import huggingface_hub

    fetch = huggingface_hub.snapshot_download
    try:
        folder = Path(fetch(model, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except Exception as error:  # its own errors, those of its HTTP client, plain OSErrors
        # Offline it refuses a cached model that lacks any file of the repository, even one that nobody reads.
        cached = getattr(error, "snapshot_path", None)
        if cached is None or not _is_whole(Path(cached)):
            raise InputError(_hub_message(error, model, revision)) from None
        folder = Path(cached)
    _check_folder(folder, model)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether the folder has all that a model needs, whatever else its repository holds."""
    from reprune.model.checkpoint import Checkpoint

    try:
        return bool(Checkpoint(folder).entries) and (folder / "config.json").exists() and any(folder.glob("tok*"))
    except InputError:
        return False


def _hub_message(error: Exception, model: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{model}"
    if isinstance(error, errors.HFValidationError):
        return f"{model}: neither a folder or file on this machine nor a valid Hub id (name or owner/name)."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model}: has no revision {revision}; see {page}."
    if isinstance(error, errors.GatedRepoError):  # is also a RepositoryNotFoundError
        return f"{model}: its owner grants access; accept the terms at {page}, then run 'hf auth login'."
    if isinstance(error, errors.RepositoryNotFoundError):
        why = "nor a model on the Hub that you may read; check the name, or run 'hf auth login'"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        cause = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        why = f"nor is it whole in the Hugging Face cache, and {cause}; go online, or give a local model"
    else:
        why = f"and its download failed ({_short(error)}); try again, it goes on where it stopped"
    return f"{model}{f' at revision {revision}' if revision else ''}: no folder here, {why}."


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def _from_gguf(gguf: Path, notify: Notify | None) -> Path:
    """The folder of a GGUF file, converted now unless it was before."""
    try:
        with gguf.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{gguf}: is no GGUF file; expected a model folder, a Hub id or a .gguf file.")
            file.seek(0)
            folder = converted_folder(gguf.name, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise InputError(f"{gguf}: cannot be read ({error.strerror}).") from None
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f'{gguf}: GGUF files are read by another package: pip install "reprune[gguf]"')
    with locked_cache(folder.name, notify) as root:
        if folder.is_dir():  # by the process that we waited for
            return folder
        if notify is not None:
            notify(f"converting {gguf.name} once; the result is kept in the cache")
        work = root / f".{folder.name}.partial"  # left by a conversion that was killed, if there: we hold the lock
        shutil.rmtree(work, ignore_errors=True)
        try:
            (work / "read").mkdir(parents=True)
            (work / "read" / "model.gguf").symlink_to(gguf.resolve())  # alone: files beside it are not mixed in
            with _silent_transformers():
                _convert(gguf, work / "read", work / "write")
            for path in (work / "write").iterdir():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
            sync_folder(work / "write")
            (work / "write").replace(folder)
            sync_folder(root)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{gguf.name}: the converted model cannot be written to {root} ({_short(error)}); "
                "it may take four times the file's size: free some space, or set REPRUNE_CACHE elsewhere."
            ) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _convert(gguf: Path, source: Path, target: Path) -> None:
    """Write source/model.gguf as a model folder in bfloat16.

    bfloat16 keeps 8 significant bits of each weight; K-quants have at most 6 bits a weight. Nothing that can
    be measured is lost: Gemma 3 270M from Q4_K_M has a WikiText-2 perplexity of 26.92 in float32 and with
    bfloat16 weights. Weights that were never quantized are better taken from the model's safetensors.
    """
    import torch
    import transformers

    architecture, rope_is_scaled = _survey(gguf, source / "model.gguf")
    options: dict[str, Any] = {"dtype": torch.bfloat16, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):  # newer versions keep weights packed unless told not to
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    auto: Any = transformers.AutoModelForCausalLM
    elsewhere = "use the model's safetensors folder or Hub id instead."
    library = f"Transformers {transformers.__version__}"
    try:
        model, info = auto.from_pretrained(source, gguf_file="model.gguf", **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
    except Exception as error:  # an unknown architecture, a missing key: nearly anything
        raise UnsupportedModelError(
            f"{gguf.name}: {library} makes no decoder of this GGUF, of architecture {architecture} "
            f"({_short(error)}); {elsewhere}"
        ) from None
    if missing := sorted(info["missing_keys"]):
        raise UnsupportedModelError(f"{gguf.name}: lacks {len(missing)} tensors ({missing[0]}); {elsewhere}")
    rope = json.dumps(getattr(model.config, "rope_parameters", None), default=str)
    if rope_is_scaled and not re.search(r'"rope_type": "(?!default")', rope):
        raise UnsupportedModelError(
            f"{gguf.name}: its rotary frequencies are scaled, which {library} does not read from a GGUF of "
            f"architecture {architecture}, so the model would be another; {elsewhere}"
        )
    # The weights are plain now, but a model that remembers a quantizer cannot be saved.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _survey(gguf: Path, file: Path) -> tuple[str, bool]:
    """A whole GGUF file's architecture, and whether its rotary frequencies are scaled."""
    from gguf import GGUFReader

    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", gguf.name, re.IGNORECASE):
        raise InputError(f"{gguf}: is one of several parts; merge them (llama-gguf-split --merge FIRST OUT).")
    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
    except Exception as error:  # it walks the bytes without checks, so damage may raise anything
        raise InputError(
            f"{gguf}: is damaged, cut short or of an unknown version ({_short(error)}); download it again."
        ) from None
    factor = reader.fields.get(f"{architecture}.rope.scaling.factor")
    tables = [tensor.data for tensor in reader.tensors if "rope_" in tensor.name]  # one factor a frequency
    scaled = factor is not None and float(factor.contents()) not in (0.0, 1.0)
    return architecture, scaled or any((table != 1).any() for table in tables)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keep progress bars and warnings of a conversion to itself, and put all back as it was."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    log: Any = logging
    reader: Any = modeling_gguf_pytorch_utils
    verbosity, bars, bar = log.get_verbosity(), log.is_progress_bar_enabled(), reader.tqdm
    log.set_verbosity_error()
    log.disable_progress_bar()
    reader.tqdm = lambda items, **_: items  # this bar does not ask the library's own switch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        reader.tqdm = bar
        (log.enable_progress_bar if bars else log.disable_progress_bar)()
        log.set_verbosity(verbosity)
