"""Explains what a folder holds in place of the files that a model is read from, and what to do about it.

Knows names of files only; opens none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_PICKLE = re.compile(r"pytorch_model.*\.bin|[^/]*\.(pth|pt|ckpt)")
_OF_TRAINING = re.compile(r"(optimizer|scheduler|scaler|rng_state|random_states|training_args)[^/]*")  # no weights
_LOADED_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # by Transformers
_DEEPSPEED, _FSDP = "zero_to_fp32.py", re.compile(r"pytorch_model_fsdp_\d+")
_OF_SEVERAL_PARTS = "ForConditionalGeneration"  # the end of a class's name
_NAMED = 3  # folders, in a message


def parts_of_training(names: Sequence[str], place: Path, first: str) -> str | None:
    """What to do about weights that the processes of a training run saved in parts; None if there are none.

    Also None if Transformers loads complete weights there by config.json: DeepSpeed leaves its script beside those too.

    Args:
        names: of the folder's files and folders; those on the Hub with their path in the repository.
        place: the folder, or where it will be once it is downloaded.
        first: how to download it, as the beginning of a sentence; empty for a local folder.
    """
    if "config.json" in names and any(file in names for file in _LOADED_PICKLES):
        return None
    way = None
    if _DEEPSPEED in names:
        way = f"'python {place / _DEEPSPEED} {place} OUT --safe_serialization'"
    elif folder := next(filter(_FSDP.fullmatch, (file.partition("/")[0] for file in names)), None):
        way = f"'accelerate merge-weights {place / folder} OUT'"
    elif any(file.endswith(".distcp") for file in names):
        way = "the trainer"
    return way and (
        f"its weights are in parts, as the processes of a training run saved them; {first}have {way} merge them into "
        "*.safetensors, copy config.json and the tokenizer's files to these, and give that folder."
    )


def pickled(names: Sequence[str], loaded: str, classes: Sequence[str]) -> str | None:
    """What to do about weights that are pickles; None if there are none.

    `loaded` are the arguments with which Transformers loads them, and `classes` those that the configuration names. The
    class of a model of several parts is named in the advice, as AutoModelForCausalLM would load one part of it.
    """
    pickles = [file for file in names if _PICKLE.fullmatch(file) and not _OF_TRAINING.fullmatch(file)]
    if not pickles:
        return None
    way = "have the program that wrote them save the model with save_pretrained, then give that folder."
    if any(file in names for file in _LOADED_PICKLES):
        whole = next((name for name in classes if name.endswith(_OF_SEVERAL_PARTS)), None)
        way = (
            f"{whole or 'AutoModelForCausalLM'}.from_pretrained({loaded}).save_pretrained(FOLDER), the same with "
            f"{'AutoProcessor' if whole else 'AutoTokenizer'}, then give FOLDER."
        )
    return f"its weights are pickles ({pickles[0]}), which can run code and are never read. If you trust them: {way}"


def without_config(folder: Path, names: Sequence[str], place: Path, first: str) -> str:
    """Why a folder without config.json is not a model's, and which may be meant; arguments as `parts_of_training`."""
    within = sorted(file.parent for pattern in ("*", "*/*") for file in folder.glob(f"{pattern}/config.json"))
    if within:
        shown = ", ".join(str(place / one.relative_to(folder)) for one in within[:_NAMED])
        more = f" and {len(within) - _NAMED} more" if len(within) > _NAMED else ""
        return (
            f"has no config.json, so it is not a model folder; there is one in {shown}{more}: {first}give the folder "
            "that you mean."
        )
    if "params.json" in names:
        return (
            "has no config.json; its params.json is of its maker's own format, which is not read: give the model in "
            "the format of Transformers (config.json, *.safetensors)."
        )
    return "has no config.json, so it is not a model folder."
