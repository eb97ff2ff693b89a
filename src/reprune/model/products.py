"""Watches the matrix products of a block to find matrices that are not modules, such as those of experts.

Transformers keeps the experts of a layer as one parameter, and each architecture multiplies by its parts in its own
way. Here the products themselves are watched, of some tokens and a view of such a parameter. So running the block shows
the parts, their layout and their inputs, without a list of architectures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reprune.model.linears import Linear, Stack, is_linear

_NO_PRODUCT = (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd)
"""Modules whose weight tokens are not multiplied by: it is a table of rows, or the kernel of a convolution."""

Saw = Callable[[Tensor, Tensor], None]
"""Called for each product with the matrix (rows, columns), a view of a parameter, and its inputs (..., columns)."""


@final
class _Products(TorchFunctionMode):
    """While it is entered, calls `saw` for each product with a view of one of some parameters."""

    def __init__(self, parameters: Iterable[Tensor], saw: Saw) -> None:
        super().__init__()
        self._storages = {storage(parameter) for parameter in parameters}
        self._saw = saw

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for matrix, inputs in self._seen(getattr(func, "__name__", ""), args, kwargs):
            self._saw(matrix, inputs)
        return func(*args, **kwargs)

    def _seen(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each matrix that is about to be multiplied by, as (rows, columns), and its inputs."""
        if name == "linear":
            left = args[0] if args else kwargs["input"]
            right = args[1] if len(args) > 1 else kwargs["weight"]
            if self._is_ours(right):
                yield right, left
            return
        if name in ("matmul", "__matmul__", "mm", "bmm"):
            operands = args[:2]
        elif name == "__rmatmul__":
            operands = args[1::-1]
        elif name in ("addmm", "baddbmm"):
            operands = args[1:3]
        elif name == "einsum":
            operands = as_products(args, self._is_ours)
        else:
            return
        if len(operands) != 2 or not all(isinstance(one, Tensor) and one.dim() >= 2 for one in operands):
            return
        left, right = operands
        if self._is_ours(right):
            matrices, inputs = right.mT, left
        elif self._is_ours(left):
            matrices, inputs = left, right.mT
        else:
            return
        if matrices.dim() == 2:
            yield matrices, inputs
        elif matrices.dim() == 3 and inputs.dim() == 3 and len(inputs) == len(matrices):
            yield from zip(matrices, inputs, strict=True)

    def _is_ours(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and tensor.dim() >= 2 and storage(tensor) in self._storages


@final
class _Reads(TorchFunctionMode):
    """While it is entered, notes which of some parameters are used to make tensors, except attributes such as `.T`."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._storages = {storage(parameter) for parameter in parameters}
        self.found: set[int] = set()  # by storage

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if getattr(func, "__name__", "") != "__get__" and any(True for _ in _tensors([made])):
            self.found |= {storage(one) for one in _tensors([*args, *kwargs.values()])} & self._storages
        return made


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def as_products(args: tuple[Any, ...], is_ours: Callable[[object], bool]) -> tuple[Tensor, ...]:
    """The operands of an `einsum` as inputs (batch, tokens, columns) and matrices; () if it is no such product.

    Letters that both operands have are columns or, if the result has them too, number the matrices. The other letters
    of the parameter are rows, and those of the inputs are tokens.
    """
    if len(args) == 2 and isinstance(args[1], tuple | list):
        args = (args[0], *args[1])
    if len(args) != 3 or not isinstance(args[0], str) or "." in args[0] or "->" not in args[0]:
        return ()
    given, result = args[0].replace(" ", "").split("->")
    letters, operands = given.split(","), args[1:]
    ours = next((place for place in (1, 0) if is_ours(operands[place])), None)
    if ours is None or not isinstance(operands[1 - ours], Tensor) or len({*letters[ours]}) < len(letters[ours]):
        return ()
    weight, inputs, of_weight, of_inputs = operands[ours], operands[1 - ours], letters[ours], letters[1 - ours]
    columns = [one for one in of_weight if one in of_inputs and one not in result]
    numbers = [one for one in of_weight if one in of_inputs and one in result]
    rows = [one for one in of_weight if one not in of_inputs]
    tokens = [one for one in of_inputs if one not in of_weight]
    summed = [one for one in (*rows, *tokens) if one not in result]
    if not columns or not rows or summed or len({*of_inputs}) < inputs.dim():
        return ()
    matrices = weight.permute([of_weight.index(one) for one in (*numbers, *columns, *rows)])
    try:  # it must be a view, so that writes to the matrices reach the parameter
        matrices = matrices.view(
            math.prod(weight.shape[of_weight.index(one)] for one in numbers),
            math.prod(weight.shape[of_weight.index(one)] for one in columns),
            -1,
        )
    except RuntimeError:
        return ()
    there = inputs.permute([of_inputs.index(one) for one in (*numbers, *tokens, *columns)])
    there = there.reshape(len(matrices), -1, matrices.shape[1])
    return (there[0], matrices[0]) if not numbers else (there, matrices)


@contextmanager
def watched_products(linears: Iterable[Linear], saw: Callable[[Linear, Tensor], None]) -> Iterator[None]:
    """Within this context, call `saw(linear, inputs)` whenever tokens are multiplied by one of these stacks' linears.

    Input rows of zeros count as tokens that were routed elsewhere: some models multiply all tokens by all experts and
    first set those that are not routed to an expert to zero.
    """
    by_place = {(storage(linear.parameter), linear.offset): linear for linear in linears}

    def tell(matrix: Tensor, inputs: Tensor) -> None:
        linear = by_place.get((storage(matrix), int(matrix.storage_offset())))
        if linear is not None and tuple(matrix.shape) == linear.shape:
            saw(linear, _routed_rows(inputs))

    with _Products([linear.parameter for linear in by_place.values()], tell):
        yield


@final
class SlicesApart(TorchFunctionMode):
    """While it is entered, parameters that are indexed matrix by matrix are unbound once.

    The gradient of a slice taken by its index is as large as the whole parameter, and each expert would have one; all
    slices that are unbound together share a single gradient.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self._whole: dict[int, Tensor] = {id(parameter): parameter for parameter in parameters}
        self._views: dict[tuple[int, Any], Tensor] = {}
        self._slices: dict[int, tuple[Tensor, ...]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__getitem__" and id(args[0]) in self._whole and _is_index(args[1]):
            whole = args[0]
            if id(whole) not in self._slices:
                self._slices[id(whole)] = whole.unbind(0)
            return self._slices[id(whole)][int(args[1])]
        if name == "view" and not kwargs and id(args[0]) in self._whole:
            key = id(args[0]), repr(args[1:])
            if key not in self._views:
                view = func(*args)
                self._views[key] = self._whole[id(view)] = view  # holding it keeps its identity
            return self._views[key]
        return func(*args, **(kwargs or {}))


def candidates(block: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that may be stacks: of two or more dimensions, and not of a linear, embedding or convolution."""
    return {
        f"{path}.{key}" if path else key: parameter
        for path, module in block.named_modules()
        if not (is_linear(module) or isinstance(module, _NO_PRODUCT))
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2
    }


@dataclass
class _Seen:
    """What was seen of one parameter."""

    shape: tuple[int, int]
    strides: tuple[int, int]
    inputs: dict[int, Tensor]  # by offset: the inputs of the matrix there
    regular: bool = True  # whether all matrices have one shape and layout, one after the other
    rows: int = 0  # of inputs
    not_zero: int = 0  # of these, those that are not all zeros


@torch.no_grad()
def find_stacks(block: nn.Module, run: Callable[[], None], tokens: int) -> list[Stack]:
    """The stacks of a block, found by running it.

    Args:
        block: its parameters may have any values, but not be on the meta device.
        run: runs it on some tokens.
        tokens: how many.
    """
    linears = {name: module for name, module in block.named_modules() if is_linear(module)}
    parameters = candidates(block) | _weights(linears)
    called: set[str] = set()
    names = {storage(parameter): name for name, parameter in parameters.items()}
    seen: dict[str, _Seen] = {}

    def saw(matrix: Tensor, inputs: Tensor) -> None:
        name = names[storage(matrix)]
        rows, columns = matrix.shape
        first, second = matrix.stride()
        found = seen.setdefault(name, _Seen((rows, columns), (first, second), {}))
        size = rows * columns
        found.regular &= (
            found.shape == (rows, columns)
            and found.strides == (first, second)
            and matrix.storage_offset() % size == 0
            and (rows - 1) * first + (columns - 1) * second == size - 1
        )
        found.inputs[int(matrix.storage_offset())] = inputs
        found.rows += inputs[..., 0].numel()
        found.not_zero += len(_routed_rows(inputs))

    with ExitStack() as stack:
        for name, module in linears.items():
            stack.callback(module.register_forward_pre_hook(lambda *_, name=name: called.add(f"{name}.weight")).remove)
        stack.enter_context(_Products(parameters.values(), saw))
        run()
    stacks: list[Stack] = []
    for name, found in seen.items():
        count, rest = divmod(parameters[name].numel(), math.prod(found.shape))
        # A linear whose weight is multiplied by directly, without calling its module, is a stack of one. So is a
        # parameter that would hold several experts in another configuration. A linear that is called is a stack if it
        # multiplies by parts of its weight, all of them: each part reads inputs of its own.
        alone = count == 1 and (name.removesuffix(".weight") in linears or parameters[name].dim() > 2)
        plain = name in called and (count == 1 or len(found.inputs) < count)
        if not found.regular or rest or not (count > 1 or alone) or plain:
            continue
        shares = next((one for one in stacks if one.count == count and _read_alike(seen[one.parameter], found)), None)
        # With weights of zero, what reads another linear's outputs gets only zeros: it has the tokens of the stack that
        # it reads or, if it reads a linear that is no stack, all its rows are counted.
        rows = found.not_zero or (found.rows if count > 1 else tokens)
        per_token = min(rows / tokens, float(count))
        if not found.not_zero:
            per_token = next((one.per_token for one in reversed(stacks) if one.count == count), per_token)
        stacks.append(
            Stack(name, count, found.shape, found.strides, shares.shares if shares is not None else name, per_token)
        )
    return stacks


@torch.no_grad()
def find_read(block: nn.Module, run: Callable[[], None]) -> set[str]:
    """The names of the linears whose weights the block uses, in products or otherwise, found by running it."""
    linears = {name: module for name, module in block.named_modules() if is_linear(module)}
    reads = _Reads(_weights(linears).values())
    with reads:
        run()
    return {name for name, module in linears.items() if storage(module.get_parameter("weight")) in reads.found}


def _weights(linears: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{name}.weight": module.get_parameter("weight") for name, module in linears.items()}


def _read_alike(one: _Seen, other: _Seen) -> bool:
    """Whether matrices of the same number in two stacks read the same tensors."""
    size, others = math.prod(one.shape), math.prod(other.shape)
    pairs = [
        (inputs, other.inputs.get(offset // size * others)) for offset, inputs in one.inputs.items()
    ]  # a matrix that was seen in only one of them makes them differ too
    return all(second is not None and same_data(first, second) for first, second in pairs)


def same_data(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors, both alive, are the same data in memory."""
    if first is second:
        return True
    return (
        first.device.type != "meta"
        and first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.dtype == second.dtype
    )


def _routed_rows(inputs: Tensor) -> Tensor:
    """The inputs (..., columns) as (tokens, columns), without rows of zeros."""
    flat = inputs.detach().reshape(-1, inputs.shape[-1])
    return flat[(flat != 0).any(dim=-1)]


def storage(tensor: Tensor) -> int:
    """An identifier of a tensor's storage, the same for all its views; unique as long as one of them is alive."""
    return int(tensor.untyped_storage()._cdata)


def _is_index(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_floating_point() and value.dtype != torch.bool
    return isinstance(value, int) and not isinstance(value, bool)
