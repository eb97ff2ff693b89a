"""Builds a Transformers model from its configuration alone. Knows nothing of blocks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any, final

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING as SEVERAL_PARTS
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from reprune.errors import InputError, UnsupportedModelError, out_of_memory, short
from reprune.model.checkpoint import FLOATS, Checkpoint
from reprune.model.locate import GENERATIVE
from reprune.model.quiet import quiet_transformers
from reprune.model.snapshots import by_hand, called

_UNKNOWN = "Unrecognized configuration class"
"""How Transformers' message begins if it has no causal language model of a configuration."""

_LARGE = 2**28  # elements: a gigabyte in float32


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """The configuration of a model folder.

    Raises:
        InputError: Transformers cannot read it, or it names an attention kernel on the Hub and remote code is not
            trusted.
        UnsupportedModelError: the model is an encoder-decoder or an encoder, not a decoder.
    """
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the library raises nearly anything on a damaged configuration
        if out_of_memory(error) is not None:
            raise
        check_trusted(folder, error)
        raise InputError(f"{called(folder)}: its config.json cannot be used: {' '.join(str(error).split())}") from None
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{called(folder)}: {config.model_type} is an encoder-decoder; a decoder is needed."
        )
    if not trust_remote_code and (kernel := _kernel(config)) is not None:
        raise InputError(
            f"{called(folder)}: its config.json names {kernel!r:.100} as its attention, which is code that "
            "Transformers would download from the Hub; give --trust-remote-code, or "
            f"{by_hand(folder, 'remove attn_implementation from config.json')}."
        )
    if config.model_type in ENCODERS and getattr(config, "is_decoder", None) is False:
        raise UnsupportedModelError(
            f"{called(folder)}: {config.model_type} with is_decoder false attends to later tokens, so it does not "
            "predict the next one; give a causal language model."
        )
    return config


def check_trusted(folder: Path, error: Exception) -> None:
    """Raise an `InputError` with the remedy if Transformers' error says that the model needs remote code."""
    if "argument `trust_remote_code=True`" in str(error):
        raise InputError(
            f"{called(folder)}: loading it runs Python code that comes with it; if you trust that code, give "
            "--trust-remote-code (from Python, trust_remote_code=True)."
        ) from None


def max_positions(config: Any) -> int | None:
    """The longest sequence that a decoder accepts, in tokens; None if its configuration does not say."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    value = next((found for name in names if (found := setting(config, name))), None)
    return int(value) if value and int(value) > 0 else None


def longest_of(model: Any) -> int | None:
    """The longest sequence by `max_positions`, minus the rows of the position table that no token can have.

    RoBERTa numbers positions from after its padding index, so the rows up to that index belong to no token.
    """
    limit = max_positions(model.config.get_text_config(decoder=True))
    embedding = model.get_input_embeddings()
    tables = (one for one in model.modules() if isinstance(one, nn.Embedding) and one is not embedding)
    padding = (one.padding_idx for one in tables if one.num_embeddings == limit)
    return limit and limit - next((index + 1 for index in padding if index is not None), 0)


def longest(folder: Path, trust_remote_code: bool) -> int | None:
    """The longest sequence that a model folder's decoder accepts, None if unknown; raises as `read_config` does."""
    config = read_config(folder, trust_remote_code)
    if config.model_type in ENCODERS:  # only their position tables have padding, and building a model takes time
        with suppress(InputError, UnsupportedModelError):
            return longest_of(build_bare(folder, trust_remote_code))
    return max_positions(config.get_text_config(decoder=True))


def setting(config: Any, name: str) -> Any:
    """A configuration's value, or None, also where reading it raises because its layers differ in it."""
    try:
        return getattr(config, name, None)
    except Exception:  # its class differs between releases of Transformers
        return None


def _kernel(config: Any) -> str | None:
    """The Hub repository that a configuration, or that of a part, names for its attention kernel; None if none."""
    parts = (setting(config, name) for name in getattr(config, "sub_configs", ()))
    named = (setting(one, "_attn_implementation") for one in (config, *parts))
    return next((one for one in named if isinstance(one, str) and "/" in one), None)


def quantization(config: Any) -> Any | None:
    """The quantization configuration of a model or of its text part; None if its weights are not quantized."""
    said = (setting(one, "quantization_config") for one in (config, setting(config, "text_config")))
    return next((one for one in said if one is not None), None)


def dequantizing(said: Any) -> str:
    """The end of a message: how to dequantize such weights with Transformers; empty if it cannot."""
    with suppress(Exception):  # whatever is wrong with it: this only makes a message more helpful
        kind = AUTO_QUANTIZATION_CONFIG_MAPPING[said["quant_method"]]
        if "dequantize" in inspect.signature(kind).parameters:
            return (
                "; if there are none, load these by from_pretrained with "
                f"quantization_config={kind.__name__}(dequantize=True) and save the result"
            )
    return ""


def check_embedding(model: Any) -> None:
    """Raise `UnsupportedModelError` unless a model names the module that embeds its tokens."""
    try:
        found = model.get_input_embeddings()
    except Exception:  # Transformers' own error if it finds none, or whatever a model's own code raises
        found = None
    if not isinstance(found, nn.Module):
        way = part_instead(model) or "have it return the module that embeds tokens"
        raise UnsupportedModelError(f"{type(model).__name__}: its get_input_embeddings() gives no module; {way}.")


def part_instead(model: nn.Module) -> str:
    """The end of a message: how to prune the part of a model that writes text; empty if none can be loaded alone."""
    parts = [name for name, part in model.named_children() if _generates(part)]
    if not parts:
        return ""
    return (
        f"of its parts, {' and '.join(parts)} can generate: load the model with from_pretrained, save the part that "
        "writes text with save_pretrained, copy the tokenizer's files there, and give that folder"
    )


def _generates(module: nn.Module) -> bool:
    if getattr(transformers, type(module).__name__, None) is not type(module):  # no folder of its own names its class
        return False
    return isinstance(module, PreTrainedModel) and bool(module.can_generate())


def plain_all_the_same(folder: Path) -> str:
    """What to do if config.json says quantized but all tensors are plain floats, as a sentence; otherwise empty."""
    with suppress(InputError):
        dtypes = {entry.dtype for entry in Checkpoint(folder).entries.values()}
        if dtypes.issubset(FLOATS):
            stored = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            return (
                f" Its files hold {stored} only: if these are the plain weights, as after an adapter was merged into "
                f"a dequantized model, {by_hand(folder, 'remove quantization_config from config.json')}."
            )
    return ""


def build_bare(folder: Path, trust_remote_code: bool) -> Any:
    """The model of a folder's config.json, in evaluation mode: parameters on the meta device, buffers with values.

    Raises:
        InputError: Transformers cannot read the configuration.
        UnsupportedModelError: the model is not a decoder that can be pruned; the message says why.
    """
    config = read_config(folder, trust_remote_code)
    with quiet_transformers():
        if (quantized := quantization(config)) is not None:
            raise UnsupportedModelError(
                f"{called(folder)}: its weights are quantized, and quantized weights cannot be pruned; "
                "use the model's bfloat16, float16 or float32 weights (a .gguf file is dequantized by itself)"
                f"{dequantizing(quantized)}.{plain_all_the_same(folder)}"
            )
        kind = model_class(config, trust_remote_code)
        try:
            # Buffers keep their values: those that no checkpoint holds (rotary frequencies) exist nowhere else.
            with no_init_weights(), _parameters_on_meta():
                if kind is AutoModelForCausalLM:
                    model: Any = kind.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
                else:
                    model = kind._from_config(config, dtype=torch.float32)
        except Exception as error:  # the model's code, which may be remote, on whatever config.json says
            if out_of_memory(error) is not None:
                raise
            check_trusted(folder, error)
            said = str(error).partition("\n")[0]  # the rest lists all models of Transformers
            if said.startswith(_UNKNOWN):
                raise UnsupportedModelError(
                    f"{called(folder)}: {config.model_type} is not a causal language model of Transformers: {said:.300}"
                ) from None
            install = "install what it asks for, or, " if isinstance(error, ImportError) else ""
            raise UnsupportedModelError(
                f"{called(folder)}: Transformers cannot build a model from its config.json ({short(error, 300)}); "
                f"{install}for plain Transformers to load it, {by_hand(folder, 'correct config.json')}."
            ) from None
        check_embedding(model)
        model.tie_weights()
        # Experts one by one: only then do the products show, for any architecture, what is multiplied by what.
        for part in model.modules():  # each part of a model has its own class, and only that may know of experts
            if getattr(part, "_can_set_experts_implementation", bool)():
                part.set_experts_implementation("eager")
    return model.eval()


@final
class _LargeOnMeta(TorchFunctionMode):
    """Creates large tensors directly on the meta device: a system may lack the memory for all experts together."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros) and kwargs.get("device") is None:
            made: Tensor = func(*args, **{**kwargs, "device": "meta"})
            if made.numel() > _LARGE:
                return made
        return func(*args, **kwargs)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within this context, parameters that this thread registers go to the meta device; buffers keep their values.

    Other threads, which may be loading blocks meanwhile, are not affected.
    """
    own, plain = get_ident(), nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        plain(module, name, parameter)
        if parameter is not None and get_ident() == own:
            empty = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            empty.__dict__.update(parameter.__dict__)  # attributes that the model's code has set on it
            module._parameters[name] = empty

    try:
        nn.Module.register_parameter = register  # type: ignore[assignment, method-assign]  # for as long as the context lasts
        with _LargeOnMeta():
            yield
    finally:
        nn.Module.register_parameter = plain  # type: ignore[method-assign]


def model_class(config: Any, trust_remote_code: bool) -> Any:
    """The class that loads a model: the one that its configuration names if Transformers has it, else its type's.

    For a model of several parts, such as one that also reads images, it is the class of the whole model. Code that
    comes with such a model is used only if it is trusted.
    """
    own = getattr(config, "auto_map", None) or ()  # code that comes with the model
    if not own:
        for name in getattr(config, "architectures", None) or ():
            kind: Any = getattr(transformers, str(name), None)
            named = GENERATIVE.search(str(name)) and isinstance(kind, type) and issubclass(kind, PreTrainedModel)
            if named and isinstance(config, kind.config_class or object):  # it may be the class of a part
                return kind
    used = trust_remote_code and AutoModelForCausalLM.__name__ in own
    if not used and type(config) not in CAUSAL and type(config) in SEVERAL_PARTS:
        return SEVERAL_PARTS[type(config)]
    return AutoModelForCausalLM
