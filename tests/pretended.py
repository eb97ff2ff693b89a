"""A pretended device, for tests on machines with only a CPU: its tensors do not mix with the CPU's.

Its values are computed on the CPU, so that they can be compared with the CPU's own. It refuses what CUDA would refuse:
a CPU tensor among the device's, an array of a device's tensor, a CPU generator for a device's values. It is registered
with PyTorch like any device from another package, so that autograd and autocast are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial, reduce
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from torch.utils import backend_registration

from reprune.planning import devices

if Version(torch.__version__) < Version("2.10"):
    pytest.skip("this PyTorch takes no device that is written in Python", allow_module_level=True)

NAME = "pretended"
_CPU = torch.device("cpu")

_CROSSING = ("copy_", "_to_copy", "_foreach_copy_")  # between devices
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
"""Operations for which CUDA also accepts indices on the CPU."""

_IN_HALF = {
    "addbmm",
    "addmm",
    "addmv",
    "addr",
    "baddbmm",
    "bmm",
    "chain_matmul",
    "linalg_multi_dot",
    "einsum",
    "linear",
}
_IN_HALF |= {"conv1d", "conv2d", "conv3d", "matmul", "mm", "mv", "prelu", "scaled_dot_product_attention"}
_TO_FLOAT32 = {"prod", "softmax", "log_softmax", "cumprod", "cumsum", "linalg_vector_norm", "sum"}
_IN_THE_WIDEST = {"addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "index_put", "scatter_add", "tensordot"}
"""CUDA's autocast by PyTorch's manual: operations in half precision; with a result in float32, unless another dtype is
asked for; in the widest dtype of the inputs. All others that autocast knows are done in float32."""


class _Module:
    """The module that PyTorch asks about the device."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Do nothing: the device draws no numbers itself."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class Pretended(Tensor):
    """A tensor of the device."""

    held: Tensor  # on the CPU

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=f"{NAME}:0",
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


@cache
def device() -> torch.device:
    """The device; the first call registers it with PyTorch, which cannot remove it, and with reprune."""
    devices.KINDS = (*devices.KINDS, NAME)
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_called, "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    made = torch.library.Library("aten", "IMPL")
    for full in ("_to_copy", "copy_", "empty.memory_format", "empty_strided"):  # for which PyTorch uses no fallback
        name, _, overload = full.partition(".")
        func = getattr(getattr(torch.ops.aten, name), overload or "default")
        made.impl(full, partial(_called, func), "PrivateUse1")
    casting = torch.library.Library("aten", "IMPL")
    for full in torch._C._dispatch_get_all_op_names():
        if full.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(full, "AutocastCUDA"):
            name, _, overload = full.removeprefix("aten::").partition(".")
            func = getattr(getattr(torch.ops.aten, name), overload or "default")
            casting.impl(full.removeprefix("aten::"), partial(_cast, func, _policy(name)), "AutocastPrivateUse1")
    _kept.extend([library, made, casting])
    return torch.device(NAME, 0)


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


_Policy = Callable[[Sequence[Tensor]], torch.dtype]


def _policy(name: str) -> _Policy | None:
    """The rule for the dtype of an operation; None if only its result is float32."""
    if name in _TO_FLOAT32:
        return None
    return _in_half if name in _IN_HALF else _in_the_widest if name in _IN_THE_WIDEST else _in_float32


def _cast(func: Any, policy: _Policy | None, *args: Any, **kwargs: Any) -> Any:
    """Do an operation within autocast; without a policy only its result is float32, unless another is asked for."""
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        tensors = [one for one in _tensors_of((args, kwargs)) if _is_cast(one)]
        if policy is not None:
            dtype = policy(tensors)
            args, kwargs = _mapped(lambda one: one.to(dtype) if _is_cast(one) else one, (args, kwargs))
        elif tensors:
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | kwargs
            if "dtype" in names and given.get("dtype") is None:
                args, kwargs = (), given | {"dtype": torch.float32}
        return func(*args, **kwargs)


def _is_cast(one: Any) -> bool:
    return isinstance(one, Tensor) and one.is_floating_point() and one.dtype != torch.float64


def _in_half(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.get_autocast_dtype(NAME)


def _in_float32(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float32


def _in_the_widest(tensors: Sequence[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, (one.dtype for one in tensors), torch.get_autocast_dtype(NAME))


_kept: list[Any] = []


def _called(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(func, args, kwargs)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Change each value in lists, tuples and mappings; PyTorch's own function takes far longer."""
    if isinstance(value, (list, tuple)):
        each = [_mapped(change, one) for one in value]
        return each if isinstance(value, list) else tuple(each)
    if isinstance(value, dict):
        return {key: _mapped(change, one) for key, one in value.items()}
    return change(value)


def _tensors_of(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(lambda one: found.append(one) if isinstance(one, Tensor) else None, value)
    return found


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do an operation on the CPU; raises `RuntimeError` for what the device refuses."""
    wrappers: dict[int, Pretended] = {}  # the device's tensors, by the id of what each holds
    theirs: set[int] = set()  # ids of the CPU's tensors

    def held(one: Any) -> Any:
        if isinstance(one, Pretended):
            wrappers[id(one.held)] = one
            return one.held
        if isinstance(one, Tensor):
            theirs.add(id(one))
        return _CPU if isinstance(one, torch.device) else one

    plain_args, plain_kwargs = _mapped(held, args), _mapped(held, dict(kwargs))
    asked = kwargs.get("device")
    _check(func, args, kwargs, bool(wrappers), bool(theirs))
    here = bool(wrappers) if asked is None else torch.device(asked).type == NAME
    if here and plain_kwargs.get("pin_memory"):
        plain_kwargs["pin_memory"] = False

    def wrapped(one: Any) -> Any:
        if not isinstance(one, Tensor) or id(one) in theirs:
            return one
        if id(one) in wrappers:
            return wrappers[id(one)]
        return Pretended(one) if here else one

    return _mapped(wrapped, func(*plain_args, **plain_kwargs))


@cache
def _written(func: Any) -> list[int]:
    """Which arguments an operation writes to."""
    arguments = enumerate(func._schema.arguments)
    return [index for index, one in arguments if one.alias_info is not None and one.alias_info.is_write]


def _check(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], on_device: bool, on_cpu: bool) -> None:
    """Raise `RuntimeError` where CUDA would, for tensors on the device, on the CPU, or on both."""
    generator = kwargs.get("generator")
    asked = kwargs.get("device")
    drawn_here = on_device or (asked is not None and torch.device(asked).type == NAME)
    if generator is not None and drawn_here and generator.device.type != NAME:
        raise RuntimeError(
            f"Expected a '{NAME}' device type for generator but found '{generator.device.type}' ({func})"
        )
    name = func.overloadpacket.__name__
    if not (on_device and on_cpu) or name in _CROSSING:
        return
    for one in _tensors_of(([args[0], *args[2:]], kwargs) if name in _INDEXING else (args, kwargs)):
        if not isinstance(one, Pretended) and one.dim() > 0:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found one of shape {tuple(one.shape)} on the CPU "
                f"among those of {NAME} ({func})"
            )
    if any(not isinstance(one, Pretended) for index in _written(func) for one in _tensors_of(args[index : index + 1])):
        raise RuntimeError(f"a CPU tensor cannot take what is computed on {NAME} ({func})")
