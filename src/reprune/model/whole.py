"""Loads a whole model by plain Transformers, for evaluation. Knows nothing of texts or pruning.

For products in half precision the weights of linears are kept in half precision: autocast would round them to it at
each product anyway, so this halves their memory and changes no bit of the result. Those of experts are kept so too, as
Transformers multiplies by them in their own dtype, out of autocast's reach. Everything else (norms, embeddings, the
states between blocks) is float32.

A quantized model, with all its tensors, stays as its quantizer loaded it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import AutoHfQuantizer

from reprune.errors import InputError, UnsupportedModelError, out_of_memory, short
from reprune.model.bare import build_bare, check_embedding, check_trusted, model_class, quantization, read_config
from reprune.model.block import Precision
from reprune.model.checkpoint import FLOATS, USUAL, Checkpoint, TensorEntry, no_floats
from reprune.model.conversion import EMPTY, Layout
from reprune.model.float32_products import AskedInFloat32
from reprune.model.linears import find_linears, is_linear
from reprune.model.plain_kernels import NOTHING_DOWNLOADED
from reprune.model.products import candidates
from reprune.model.quiet import quiet_transformers
from reprune.model.recorder import fill_with_nothing, looks_up
from reprune.model.skeleton import Skeleton
from reprune.model.snapshots import by_hand, called
from reprune.model.unread import FOREIGN, way_out, wrapped
from reprune.model.weightless import Weightless

_was_loaded = Event()
"""Whether this process has ever loaded a whole model."""
_WHOLE = 8  # elements in half precision: PyTorch's grouped products need rows of a multiple of 16 bytes


def load_model(
    folder: Path, device: torch.device, trust_remote_code: bool = False, precision: Precision | None = None
) -> Any:
    """A whole model in evaluation mode, to be run under `running(model, precision)` (float32 by default).

    Raises:
        InputError: Transformers cannot load it.
        UnsupportedModelError: its weights are stored as floats that have no meaning without their scales.
    """
    products = (precision or Precision()).products
    quantized = _is_quantized(folder, trust_remote_code)
    if not quantized:
        _check_floats(folder, trust_remote_code)
    # Not every quantizer accepts a dtype other than the products'.
    load = _from_pretrained if quantized or products == torch.float32 else _load_for_half
    model = load(folder, products, trust_remote_code)
    _was_loaded.set()
    return model.to(device).eval()


@contextmanager
def running(model: Any, precision: Precision) -> Iterator[None]:
    """A context in which to run a whole model; a mixture's routers stay in float32 as they do within its blocks."""
    mixed = precision.products != torch.float32 and bool(candidates(model))
    with precision.on(model.device), AskedInFloat32(model.device.type) if mixed else nullcontext():
        yield


def _load_for_half(folder: Path, products: torch.dtype, trust_remote_code: bool) -> Any:
    """The model with the weights of linears and experts in the products' dtype, and all else in float32."""
    bare = _bare(folder, trust_remote_code)
    dtype = _loaded_dtype(_used(Checkpoint(folder), bare), bare)
    model = _from_pretrained(folder, dtype, trust_remote_code)
    stacked = _stacked(folder, trust_remote_code) if candidates(model) else set()
    _widen_(model, bare if dtype != torch.float32 else None, stacked)
    for linear in find_linears(model):
        assert linear.module is not None
        weight = linear.parameter
        if weight.dtype != products:  # otherwise a head that is tied to the embedding stays so: one copy on a GPU
            weight = linear.module.weight = nn.Parameter(weight.to(products))
        weight.requires_grad_(False)
    for parameter in map(model.get_parameter, stacked):
        parameter.requires_grad_(False).data = parameter.to(products)
    return model


def _stacked(folder: Path, trust_remote_code: bool) -> set[str]:
    """The names of parameters that hold many matrices and can be multiplied by in half precision.

    Empty if the model's blocks are not found.
    """
    try:
        skeleton = Skeleton(folder, trust_remote_code)
        weightless = Weightless(skeleton, Precision(), fill_with_nothing)
        return {
            f"{skeleton.blocks_path}.{index}.{stack.parameter}"
            for index in skeleton.running
            for stack in weightless.stacks(index)
            if all(size % _WHOLE == 0 for size in stack.shape)
        }
    except Exception:  # whatever is raised for a model that cannot be pruned: it can still be evaluated
        return set()


def whole_bytes(checkpoint: Checkpoint, precision: Precision, trust_remote_code: bool = False) -> int:
    """The least memory that a whole model takes while `load_model` loads it."""
    bare = _bare(checkpoint.folder, trust_remote_code)
    used = _used(checkpoint, bare)
    dtype = _loaded_dtype(used, bare if precision.products != torch.float32 else None)
    return dtype.itemsize * sum(math.prod(entry.shape) for entry in used)


def collect_models() -> None:
    """Free the memory of whole models that are no longer used, also for other processes on the same GPU.

    As models hold cycles, they need a collection.
    """
    if _was_loaded.is_set():
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def weights_dtype(folder: Path, trust_remote_code: bool = False) -> str:
    """The dtypes in which a folder's weights are saved, such as "bfloat16" or "bfloat16, float32"."""
    used = _used(Checkpoint(folder), _bare(folder, trust_remote_code))
    quantized = _is_quantized(folder, trust_remote_code)  # then weights may be integers
    dtypes = {entry.dtype for entry in used} if quantized else _dtypes(used)
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _is_quantized(folder: Path, trust_remote_code: bool) -> bool:
    """Whether config.json says that the weights are quantized by a method that Transformers knows and so applies."""
    said = quantization(read_config(folder, trust_remote_code))
    with quiet_transformers(), suppress(ValueError, TypeError):  # it names no method: loading reports that
        return said is not None and bool(AutoHfQuantizer.supports_quant_method(said))
    return False


def _bare(folder: Path, trust_remote_code: bool) -> Any | None:
    """The model without weights; None if it cannot be built."""
    try:
        return build_bare(folder, trust_remote_code)
    except Exception:  # whatever it raises: loading reports it
        return None


def _used(checkpoint: Checkpoint, bare: Any | None) -> list[TensorEntry]:
    """The tensors that a model uses; all of them if that is not known."""
    entries = checkpoint.entries
    with suppress(UnsupportedModelError):
        if bare is not None:
            return [entries[name] for name in Layout(bare, checkpoint).used]
    return list(entries.values())


def _dtypes(entries: Iterable[TensorEntry]) -> set[torch.dtype]:
    return {dtype for entry in entries if isinstance(dtype := entry.dtype, torch.dtype) and dtype.is_floating_point}


def _loaded_dtype(used: Sequence[TensorEntry], bare: Any | None) -> torch.dtype:
    """The dtype to load a model in: that of its files if they have one and there is a `bare` model, else float32."""
    stored = _dtypes(used) if bare is not None else set()
    return stored.pop() if len(stored) == 1 else torch.float32


def _check_floats(folder: Path, trust_remote_code: bool) -> None:
    """Raise `UnsupportedModelError` for floats of 8 bits or less: Transformers would load them without scales."""
    checkpoint = Checkpoint(folder)
    small = {name: one for name, one in checkpoint.entries.items() if one.floats and one.dtype not in FLOATS}
    used = _used(checkpoint, _bare(folder, trust_remote_code)) if small else []
    for name, entry in small.items():
        if entry in used:
            raise no_floats(called(folder), name, entry.dtype)


def _from_pretrained(folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    kind = model_class(read_config(folder, trust_remote_code), trust_remote_code)
    try:
        with quiet_transformers():
            model, info = kind.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below; Transformers' own error names no tensor
                **NOTHING_DOWNLOADED,
            )
    except Exception as error:  # the model's own code and a quantizer's raise nearly anything
        if out_of_memory(error) is not None:
            raise
        check_trusted(folder, error)
        way = _way_to_find(folder, trust_remote_code) if isinstance(error, OSError) else ""
        raise InputError(f"{folder}: Transformers cannot load it: {short(error, 300).rstrip('.')}{way}.") from None
    check_embedding(model)
    # A model makes missing buffers itself, but missing parameters are random, and different at each load.
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if missing := sorted(parameters.intersection(info["missing_keys"])):
        way = "download the model again, or give the causal language model that it belongs to"
        stored = Checkpoint(folder).entries
        if unread := wrapped(missing[0], stored):
            way = way_out(unread, stored)
        raise InputError(
            f"{folder}: its files lack {', '.join(missing):.300}, so its predictions would be random; {way}."
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise InputError(
            f"{folder}: its files have {name} with shape {list(found)}, but by its config.json it should have "
            f"{list(expected)}; "
            + (
                EMPTY
                if 0 in found
                else "the two are not of the same model, or the weights are packed. Give a model whose files fit."
            )
        )
    return model


def _way_to_find(folder: Path, trust_remote_code: bool) -> str:
    """The end of a message: what to do if weights are in files that Transformers does not look for."""
    if any((folder / name).exists() for name in USUAL):
        return ""
    checkpoint = Checkpoint(folder)
    files = sorted({entry.file.name for entry in checkpoint.entries.values()})
    if not _used(checkpoint, _bare(folder, trust_remote_code)):
        return f"; the tensors of {files[0]} {FOREIGN}"
    if len(files) > 1 and (variants := sorted(folder.glob("model.safetensors.index.*.json"))):
        way = by_hand(folder, f"rename {variants[0].name} to {USUAL[1]}")
        return f"; its weights are in {files[0]} and {len(files) - 1} more: {way}"
    if len(files) > 1:
        return f"; its weights are in {files[0]} and {len(files) - 1} more: download their index ({USUAL[1]}) too"
    return f"; its weights are in {files[0]}: {by_hand(folder, f'rename it to {USUAL[0]}')}"


def _widen_(model: Any, bare: Any | None, stacked: Set[str]) -> None:
    """Make all but the linears' weights float32, as if the model had been loaded in float32.

    Args:
        model: loaded in the dtype of its files.
        bare: the same model built in float32 without weights; its buffers replace those that the files do not hold.
        stacked: the names of parameters that, like linears' weights, are left as they are.
    """
    embedding = model.get_input_embeddings()
    for path, module in model.named_modules():
        by_rows = isinstance(module, nn.Embedding) and looks_up(module, embedding)
        if by_rows:
            _widen_rows_when_used(module)
        for key, parameter in list(module.named_parameters(recurse=False)):
            stays = key == "weight" and (by_rows or is_linear(module))
            stays |= f"{path}.{key}" in stacked
            if parameter.is_floating_point() and not stays:
                setattr(module, key, nn.Parameter(parameter.float(), requires_grad=False))
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[key] = buffer.float()
    if bare is not None:
        saved = model.state_dict().keys()
        for name, buffer in bare.named_buffers():
            if name not in saved:
                path, _, key = name.rpartition(".")
                model.get_submodule(path)._buffers[key] = buffer


def _widen_rows_when_used(embedding: nn.Embedding) -> None:
    """Make an embedding return float32 without widening all its rows: while it runs, it holds only the rows in use."""
    embedding.padding_idx = None  # matters only for gradients, and would be checked against those rows

    # These name no module: an embedding that refers to itself would outlive its model until the next collection.
    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids = args[0]
        rows = module.get_parameter("weight")[ids.flatten()].float()
        kept.append(module._parameters["weight"])
        module.weight = nn.Parameter(rows, requires_grad=False)
        return torch.arange(ids.numel(), device=ids.device).view_as(ids), *args[1:]

    def after(module: nn.Module, *_: Any) -> None:
        if kept:  # empty if `before` raised for an id without a row
            module._parameters["weight"] = kept.pop()

    kept: list[nn.Parameter | None] = []
    embedding.register_forward_pre_hook(before)
    embedding.register_forward_hook(after, always_call=True)
