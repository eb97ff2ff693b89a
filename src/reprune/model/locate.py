"""Finds the local folder of a model that the user names: config.json, safetensors, tokenizer.

A local folder is checked, a Hub id is downloaded, a GGUF file is converted once to a cached folder. Knows names,
files and the libraries that download and convert; knows nothing of blocks, and opens no pickle.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from reprune.errors import InputError, UnsupportedModelError
from reprune.files.cache import Notify
from reprune.files.local import local_path
from reprune.files.readable import check_readable, is_there
from reprune.files.wellformed import read_json
from reprune.model.checkpoint import TOKENIZER, are_named, weight_files
from reprune.model.gguf import convert_gguf, is_whole
from reprune.model.hub import late_bars, not_fetched
from reprune.model.instead import parts_of_training, pickled, without_config
from reprune.model.snapshots import by_hand, hub_commit
from reprune.model.undownloaded import Undownloaded

_LICENCES = ("license", "licence", "notice", "copying", "use_policy", "terms")
_TEXTS = ("", "-MODEL", "-CODE", "*.txt", "*.md", "*.rst", "*.html", "*.pdf")
BESIDE = (  # patterns of the files that are copied or downloaded besides the weights
    *("*.json", "*.txt", "*.model", "*.tiktoken", "*.spm", "*.tokenizer", "bpe.codes", "*.py"),
    *("*.jinja", "additional_chat_templates/*.jinja"),
    *(f"*{''.join(f'[{a.lower()}{a.upper()}]' for a in word)}{rest}" for word in _LICENCES for rest in _TEXTS),
)
LOADED = ("config.json", "generation_config.json", "*processor_config.json", "chat_template.json", *TOKENIZER)
"""Patterns of the files besides the weights that Transformers loads a model from."""

_UNWANTED = [  # further copies of the same weights
    *("*/*.safetensors", "consolidated*"),
    *(f"*.{kind}{rest}" for kind in ("fp16", "bf16", "fp32") for rest in (".safetensors", "-*", ".index.*")),
]
_VARIANT = re.compile(r"(model|model\.safetensors\.index)\.(fp16|bf16|fp32)\.(safetensors|json)")
_BESIDE_GGUF = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # in the names of GGUF files that are not models
_URL = re.compile(  # a model's page on the Hub, or a page below it
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface|hf)\.co/|hf://(?:models/)?)"
    r"(?!(?:api|blog|collections|datasets|docs|models|papers|settings|spaces)(?:[/?#]|$))"
    r"([\w.-]+?(?:/(?!(?:blob|commits?|discussions|resolve|tree)/)[\w.-]+?)?)(?:\.git)?(?:[/?#@]|$)",
    re.IGNORECASE,
)
Weights = Literal["here", "listed", "unneeded"]
"""Whether a model's weights must be on this machine, or may be listed and left on the Hub, or do not matter."""
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
GENERATIVE = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
_NOT_GENERATIVE = re.compile(r"For(MaskedLM|\w*Classification|\w*QuestionAnswering|MultipleChoice)$")


class _NoWeightsError(InputError):
    """A folder has no weights in any form that is known."""


def locate_model(model: str, *, notify: Notify = lambda said: None, weights: bool = True) -> Path:
    """The folder of a model: an ordinary Hugging Face folder that plain Transformers loads.

    Args:
        model: a local folder, a .gguf file, or a Hub id such as "google/gemma-3-270m", with an optional branch, tag or
            commit: "google/gemma-3-270m@main".
        notify: is called before a conversion, which takes about a minute.
        weights: whether weights are needed; otherwise they are not downloaded, and a folder may lack them.

    A Hub model that is in the local Hugging Face cache is found there without a network. A GGUF file is
    converted to a folder of reprune's own cache, named by the SHA-256 of its content.

    Raises:
        InputError: there is no such model, or it cannot be used; the message says what to do.
        UnsupportedModelError: it is not a decoder, or its file holds something that Transformers does not read.
    """
    return _locate(model, notify, "here" if weights else "unneeded")[0]


def locate_headers(model: str, *, notify: Notify = lambda said: None) -> tuple[Path, Undownloaded | None]:
    """As `locate_model`, but the weights of a Hub model are not downloaded: what is not here of them is returned."""
    return _locate(model, notify, "listed")


def _locate(model: str, notify: Notify, weights: Weights) -> tuple[Path, Undownloaded | None]:
    path = local_path(model)
    # Raises for a name that is too long, or if a folder on its path is not accessible.
    is_there(path, f"{model:.200}", "expected a model folder, a Hub id or a .gguf file")
    if model.strip() and path.is_dir():
        _check_folder(path, model, weights)
        return path.resolve(), None
    if path.is_file():
        return convert_gguf(path, notify), None
    if path.suffix.lower() == ".gguf":
        raise InputError(f"{model}: no such file; download a GGUF from the Hub first (hf download REPO FILE).")
    identifier, at, revision = model.partition("@")
    if at and identifier and local_path(identifier).exists():
        raise InputError(
            f"{model}: no such folder; {identifier} is a local path, and only a Hub id takes a revision after an @."
        )
    found = _URL.match(_of_hub(model))
    if found or _looks_like_path(identifier):
        meant = f" For a model on the Hub give its id alone: {found[1]}" if found else ""
        raise InputError(f"{model}: no such folder; expected a model folder, a Hub id or a .gguf file.{meant}")
    if at and not revision:
        raise InputError(f"{model}: expected a branch, tag or commit after the @.")
    return _from_hub(identifier, revision or None, weights)


def locate_again(model: str, folder: Path, given: str | None = None, *, notify: Notify = lambda said: None) -> Path:
    """The folder of the model that a run began with, where it was or where it is now.

    The caller has to check that it is the same model.

    Args:
        model: the model as given when the run began.
        folder: the model's folder then.
        given: the model as given now, if it is.
        notify: is called before a conversion.

    Raises:
        InputError: it is in none of these places; the message says what to do.
    """
    path, of_gguf = local_path(model), model.lower().endswith(".gguf")
    had_again = of_gguf or hub_commit(folder)  # can be made whole again if a cache has lost some of it
    if is_whole(folder) or (not had_again and (folder / "config.json").is_file()):
        return folder
    if given is not None or path.is_file() or (path / "config.json").is_file():
        return locate_model(given or model, notify=notify)
    if of_gguf:
        raise InputError(
            f"{folder}: the converted model that this run prunes is no longer whole in the cache, and the file to "
            f"convert again is gone; put {path} back and resume."
        )
    if hub_commit(folder) and not path.is_absolute():
        try:
            return locate_model(at_commit(model, folder), notify=notify)
        except InputError as error:
            raise InputError(f"{error} (Or put the model, or a link to it, where this run had it: {folder})") from None
    elsewhere = "" if path.is_absolute() else f", or change to the folder in which {model} is that model,"
    raise InputError(
        f"{folder}: the model that this run prunes is no longer there; put it, or a link to it, back{elsewhere} and "
        "resume."
    )


def at_commit(model: str, folder: Path) -> str:
    """A Hub model's id with the commit that was found, as its branch may move; any other model's name as it is."""
    return by_commit(model, hub_commit(folder)) or model


def by_commit(model: str, commit: str | None) -> str | None:
    """A Hub model's id with a commit (ID@COMMIT); None for a local model, even a link to that commit's folder."""
    identifier = model.partition("@")[0]
    if commit is None or local_path(model).exists() or _looks_like_path(identifier):
        return None
    return f"{identifier}@{commit}"


def _looks_like_path(identifier: str) -> bool:
    """Whether a name of nothing on this disk was meant as a path; a Hub id is `name` or `owner/name`."""
    owner, slash, name = identifier.partition("/")
    if not owner.strip() or owner[0] in ".~" or "\\" in identifier:
        return True
    return bool(slash) and (not name or "/" in name or Path(owner).exists())


def _of_hub(url: str) -> str:
    """A URL of the endpoint that stands in for the Hub (HF_ENDPOINT) as the Hub's own URL; others unchanged."""
    from huggingface_hub import constants

    mirror = f"{constants.ENDPOINT}/"
    if "://" not in mirror or not url.startswith(mirror):  # a bad HF_ENDPOINT is reported by the download
        return url
    return f"https://huggingface.co/{url.removeprefix(mirror)}"


def _check_folder(
    folder: Path,
    model: str,
    weights: Weights,
    revision: str | None = None,
    left: Sequence[str] = (),
    listed: Collection[str] = (),
) -> None:
    """Raise unless the folder holds a decoder's configuration and, if needed, safetensors weights.

    `left` are the names of files that were not downloaded from the Hub; those that are `listed` are as good as here.
    """
    name = f"{model}@{revision}" if revision else model
    check_readable(folder)
    inside = [*folder.iterdir()] if folder.is_dir() else []
    check_readable(*(file for file in inside if any(map(file.match, LOADED))))
    here = [*listed, *(file.name for file in inside)]
    names = sorted({*here, *left})
    ggufs = [file for file in names if file.lower().endswith(".gguf")]
    adapter = "adapter_config.json" in names
    at = f" --revision {revision}" if revision else ""
    fetch = f"'hf download {model}{at} --local-dir FOLDER', "
    place, first = (folder, "") if folder == local_path(model) else (Path("FOLDER"), f"{fetch}then ")
    if "config.json" in names:
        classes = _check_config(folder / "config.json", name)
        own = any(file.endswith(".safetensors") and not file.startswith("adapter_") for file in here)
        if weights != "unneeded" and own and adapter:
            raise InputError(
                f"{name}: holds a PEFT adapter beside its weights (adapter_config.json); give the model with the "
                f"adapter merged in (merge_and_unload), or {by_hand(folder, 'remove the files of the adapter')}."
            )
        if own or weights == "unneeded":
            return
    if adapter:
        raise InputError(f"{name}: is a PEFT adapter; merge it into its base model (merge_and_unload) and give that.")
    if "config.json" in names:
        if "model.safetensors.index.json" in names:
            raise _NoWeightsError(f"{name}: none of its *.safetensors files is here; download the model again.")
        if variant := next(filter(None, map(_VARIANT.fullmatch, names if left else ())), None):
            raise InputError(
                f"{name}: it has its weights only as a variant ({variant[0]}), which is not downloaded; "
                f"{fetch}rename the file there to {variant[1]}.{variant[3]}, then give FOLDER."
            )
        given = f"{model!r}, revision={revision!r}" if revision else repr(model)
        if said := parts_of_training(names, place, first) or pickled(names, given, classes):
            raise InputError(f"{name}: {said}")
    elif not ggufs:
        said = parts_of_training(names, place, first) or without_config(folder, names, place, first)
        raise InputError(f"{name}: {said}")
    if ggufs:
        gguf = min(ggufs, key=lambda file: (bool(_BESIDE_GGUF.search(file)), bool(_PART.search(file))))
        way = f"the one that 'hf download {model} {gguf}{at}' prints" if gguf in left else f"{Path(name, gguf)}"
        raise InputError(f"{name}: holds its model only as GGUF; give the path of the file: {way}")
    raise _NoWeightsError(f"{name}: holds no *.safetensors files, and a folder's weights are read from no others.")


def _check_config(file: Path, name: str) -> list[str]:
    """The classes that config.json names; raises if they do not predict the next token."""
    try:
        config = dict(read_json(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{name}: its config.json cannot be read ({error}); download it again.") from None
    classes, kind = config.get("architectures") or [], config.get("model_type")
    if not isinstance(classes, list) or not isinstance(kind, str | None):
        raise InputError(
            f"{name}: its config.json has architectures {classes!r:.80} and model_type {kind!r:.80}; expected a list "
            "of names and one name; download it again."
        )
    classes = [str(each) for each in classes]
    if any(GENERATIVE.search(each) for each in classes):
        return classes
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    if any(_NOT_GENERATIVE.search(each) for each in classes) or kind in ENCODERS:
        what = ", ".join(classes) or kind
        raise UnsupportedModelError(f"{name}: {what} does not predict the next token; give a causal language model.")
    return classes


def _from_hub(model: str, revision: str | None, weights: Weights) -> tuple[Path, Undownloaded | None]:
    folder = _beside_weights(model, revision, weights)
    left, missed = list[str](), None
    # Without a name for the weights, others that are only on the Hub may be read with those here or in their place.
    settled = weights == "unneeded" or (_has_weights(folder) and are_named(folder))
    if not (settled and (folder / "config.json").exists()):
        try:
            left = _left(folder, model, revision)
        except InputError as error:
            missed = error
    listed = [name for name in left if name.endswith(".safetensors")]
    listed = [name for name in listed if not any(fnmatch(name, one) for one in _UNWANTED)]
    try:
        _check_folder(folder, model, weights, revision, left, listed)
    except _NoWeightsError as error:
        # Without a network, older releases of the library take any cached folder for the model, also that of a plan.
        raise missed or error from None
    if missed is not None and not _has_weights(folder):
        raise missed
    away = {folder / name for name in listed}
    names = frozenset(file.name for file in weight_files(folder, away) if file in away) if away else frozenset[str]()
    if not names:
        return folder, None
    if weights == "listed":
        return folder, Undownloaded(model, revision, folder.name, names)
    try:
        return _fetch(model, folder.name, [glob.escape(name) for name in sorted(names)]), None
    except Exception as error:  # huggingface_hub's own errors, its HTTP client's, OSErrors
        raise InputError(not_fetched(error, model, revision)) from None


def _beside_weights(model: str, revision: str | None, weights: Weights) -> Path:
    """The folder of a Hub model's commit, with all files but the weights; offline, one that is whole in the cache."""
    import huggingface_hub

    try:
        return _fetch(model, revision, BESIDE)
    except Exception as error:  # as above
        # Offline it refuses a cached model that lacks any file of the repository, even one that is not needed.
        cached = getattr(error, "snapshot_path", None)
        if cached is None and isinstance(error, huggingface_hub.errors.OfflineModeIsEnabled):
            # Some releases (2.1) query the Hub even for a commit that is in the cache, unless told not to.
            with suppress(Exception):
                fetch = huggingface_hub.snapshot_download
                cached = fetch(model, revision=revision, allow_patterns=[*BESIDE], local_files_only=True)
        if cached is None or (weights != "unneeded" and not is_whole(Path(cached))):
            raise InputError(not_fetched(error, model, revision)) from None
        return Path(cached)


def _has_weights(folder: Path) -> bool:
    """Whether all files are here that a model's weights are read from, whole or not."""
    try:
        return bool(weight_files(folder))
    except InputError:
        return False


def _fetch(model: str, revision: str | None, wanted: Sequence[str]) -> Path:
    """The folder of a Hub model's commit, with its files of these patterns; what is in the cache is not downloaded."""
    import huggingface_hub

    with _silent_where_nothing_is_wanted(), late_bars() as bars:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=[*wanted], ignore_patterns=_UNWANTED, tqdm_class=bars
            )
        )


def _left(folder: Path, model: str, revision: str | None) -> list[str]:
    """The names of a Hub model's files that the folder of a commit lacks; `revision` is how the user gave the commit.

    One request answers this; `list_repo_files` would repeat it for half a minute where nothing answers.
    """
    import huggingface_hub

    try:
        there = getattr(huggingface_hub.HfApi().repo_info(model, revision=folder.name), "siblings", None) or []
    except Exception as error:  # as above
        raise InputError(not_fetched(error, model, revision)) from None
    return [file.rfilename for file in there if not (folder / file.rfilename).exists()]


@contextmanager
def _silent_where_nothing_is_wanted() -> Iterator[None]:
    """Keep the library from printing all patterns if no file matches them; `_check_folder` reports that better."""
    logger = logging.getLogger("huggingface_hub._snapshot_download")

    def fits(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No files matched")

    logger.addFilter(fits)
    try:
        yield
    finally:
        logger.removeFilter(fits)
