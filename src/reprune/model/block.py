"""One decoder block with its weights: it runs on hidden states, with the arguments that its model passes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, final

import torch
from torch import Tensor, nn

from reprune.errors import HalfPrecisionError, UnsupportedModelError
from reprune.model.fitted_linears import FittedLinears
from reprune.model.float32_products import AskedInFloat32
from reprune.model.forms import PLAIN, Beside, Form, is_shared
from reprune.model.half_attention import HalfAttention
from reprune.model.linears import Linear, Stack, find_linears, find_routers
from reprune.model.norms import as_one, find_norms
from reprune.model.plain_kernels import plain_kernels
from reprune.model.products import SlicesApart, same_data, watched_products
from reprune.model.repeated_keys import RepeatedKeys, shares_keys


@dataclass(frozen=True)
class Call:
    """What a model passes to one of its blocks besides the hidden states."""

    args: tuple[Any, ...]  # all positional arguments; the hidden states' place holds None
    kwargs: dict[str, Any]  # all keyword arguments; the hidden states' place holds None
    states: int | str  # the position or the keyword of the hidden states
    form: Form = PLAIN  # how the states are laid out in a stream

    def bind(self, stream: Tensor, anew: bool = True) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the hidden states, and the values carried along with them, in their places.

        With `anew`, empty mappings are copied, so that what a block writes to one does not reach another pass.
        """
        own = self.each(_anew) if anew else self
        args, kwargs = self.form.hand(own.args, own.kwargs, stream)
        states = self.form.entering(stream)
        if isinstance(self.states, str):
            return args, {**kwargs, self.states: states}
        return (*args[: self.states], states, *args[self.states + 1 :]), kwargs

    @property
    def beside(self) -> list[Beside]:
        """The placeholders for what the previous block returns besides the states."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Beside)]

    def each(self, change: Callable[[Any], Any]) -> Call:
        """The same call with each argument changed."""
        kwargs = {key: change(value) for key, value in self.kwargs.items()}
        return replace(self, args=tuple(map(change, self.args)), kwargs=kwargs)

    def without_beside(self, given: Mapping[int, Any] | None = None) -> Call:
        """The same call with values in place of the placeholders, by their index in the tuple; None where none is."""
        known = given or {}
        return self.each(lambda value: known.get(value.place) if isinstance(value, Beside) else value)


def _anew(value: Any) -> Any:
    return deepcopy(value) if is_shared(value) else value


_OF_DTYPES = r"dtype|scalar type|not implemented for '(BFloat16|Half)'"
"""Matches PyTorch's messages about an operation on tensors of several dtypes, or of a dtype without support."""


@dataclass(frozen=True)
class Precision:
    """The dtype of a block's matrix products; weights, sums and hidden states stay float32."""

    products: torch.dtype = torch.float32

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """A context in which to run a model on that device.

        Raises:
            HalfPrecisionError: within the context, if the model combines tensors that autocast left in different
                dtypes.
        """
        with ExitStack() as stack:
            stack.enter_context(plain_kernels(device))
            if self.products != torch.float32:
                stack.enter_context(self._in_half(device))
            if not shares_keys(device, self.products):
                stack.enter_context(RepeatedKeys())
            yield

    @contextmanager
    def _in_half(self, device: torch.device) -> Iterator[None]:
        try:
            with torch.autocast(device.type, dtype=self.products):
                yield
        except RuntimeError as error:
            said = " ".join(str(error).split())
            if not re.search(_OF_DTYPES, said):
                raise
            dtype = str(self.products).removeprefix("torch.")
            raise HalfPrecisionError(f"this model cannot be run with products in {dtype} ({said:.160})") from error


@dataclass(frozen=True)
class LinearGroup:
    """Linears of a block that read the same input tensor."""

    linears: tuple[Linear, ...]
    once: bool = True  # False for a linear that runs several times in a pass; it is then alone in its group
    expert: bool = False  # whether only tokens routed to it pass through, which may be none
    stage: str | None = None  # groups of the same stage do not depend on each other

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(linear.name for linear in self.linears)

    @property
    def columns(self) -> int:
        return self.linears[0].shape[1]


class Enough(Exception):
    """Raised by a watcher of a block once it has seen what the block is run for."""


@final
class Block:
    """A block in memory, float32, in evaluation mode (no dropout)."""

    def __init__(
        self,
        index: int,
        module: nn.Module,
        device: torch.device,
        precision: Precision,
        stacks: Sequence[Stack] = (),
    ) -> None:
        """`stacks` are the module's parameters that hold many matrices, as found by `find_stacks`."""
        self.index = index
        self.module = module
        self.device = device
        self.precision = precision
        self.linears = find_linears(module, stacks)
        self.routers = find_routers(module, stacks)  # names of linears
        self.attends_by_products = precision.products != torch.float32 and device.type == "cpu"
        self._norms = find_norms(module)
        self._stacked = [module.get_parameter(stack.parameter) for stack in stacks]

    @cached_property
    def routed(self) -> bool:
        """Whether the block sends a token to only some of its experts."""
        return any(
            linear.stack.routed if linear.stack is not None else any(self._lists(linear)) for linear in self.linears
        )

    def run(self, states: Tensor, call: Call, routing: AbstractContextManager[Any] | None = None) -> Tensor:
        """Map a stream's states (batch, tokens, hidden) through the block; float32 in and out.

        `routing` is a context that records which experts tokens are sent to, or decides it.

        Raises:
            UnsupportedModelError: the block writes into the states that it is given.
        """
        if not call.form.runs:
            return states
        args, kwargs = call.bind(states)
        version = states._version
        with self.precision.on(self.device), self._ways(), routing or nullcontext():
            outputs = self.module(*args, **kwargs)
        if states._version != version:
            raise UnsupportedModelError(
                f"{type(self.module).__name__}: block {self.index} writes into the hidden states that it is given, "
                "though they are still needed; where its code has 'x += y' for them, write 'x = x + y'."
            )
        return call.form.leaving(outputs, kwargs, states)

    @contextmanager
    def _ways(self) -> Iterator[None]:
        """A context that replaces some of a model's computations by equivalents that are faster or save memory."""
        with ExitStack() as stack:
            if self.attends_by_products:
                stack.enter_context(HalfAttention())
            if torch.is_grad_enabled():
                if self._stacked:
                    stack.enter_context(SlicesApart(self._stacked))
                linears = stack.enter_context(FittedLinears())
                stack.enter_context(as_one(self._norms, linears.scaled))
            if self.routed and self.precision.products != torch.float32:
                stack.enter_context(AskedInFloat32(self.device.type))  # above the others, which see its autocast
            yield

    @torch.no_grad()
    def show(self, states: Tensor, call: Call) -> None:
        """Run the block for its watchers, until one of them raises `Enough`."""
        with suppress(Enough):
            self.run(states, call)

    @contextmanager
    def watch(self, saw: Callable[[Linear, Tensor], None], linears: Sequence[Linear] | None = None) -> Iterator[None]:
        """Within this context, call `saw(linear, inputs)` whenever one of these linears, by default any, runs."""
        watched = self.linears if linears is None else linears
        with ExitStack() as stack:
            for linear in watched:
                if linear.module is not None:
                    handle = linear.module.register_forward_pre_hook(partial(_tell, saw, linear), with_kwargs=True)
                    stack.callback(handle.remove)
            if stacked := [linear for linear in watched if linear.module is None]:
                stack.enter_context(watched_products(stacked, saw))
            yield

    def inputs_of(self, linear: Linear, states: Tensor, call: Call) -> Tensor:
        """The inputs of a linear when it first runs, (..., columns); the block is run only that far."""
        seen: list[Tensor] = []

        def saw(_: Linear, inputs: Tensor) -> None:
            seen.append(inputs)
            raise Enough

        with self.watch(saw, [linear]):
            self.show(states, call)
        if not seen:
            raise LookupError(f"the linear {linear.name} never runs")
        return seen[0]

    @torch.no_grad()
    def groups(self, states: Tensor, call: Call) -> list[LinearGroup]:
        """The linear groups: linears that read the same tensor.

        They come in the order in which they first run; experts that no token of this batch was routed to come last. A
        linear that runs more than once is a group of its own; one that never runs is in no group.

        Modules in a list are experts only if some of the tokens that reach the module around the list do not pass all
        of them. Otherwise a member may read what the ones before it made, as in the two halves of a block of
        LongCat-Flash or the layers of an expert.
        """
        tokens = states.shape[0] * states.shape[1]
        seen: list[tuple[Tensor, list[Linear]]] = []  # holding the tensors keeps their identities apart
        runs: dict[str, int] = {}
        order: dict[str, int] = {}  # of linears, and of the first of stacks that read the same, as they first run
        passed: dict[str, int] = {}  # how many tokens, by linear; all tokens reach a stack that runs

        def saw(linear: Linear, inputs: Tensor) -> None:
            if linear.stack is not None:
                passed[linear.name] = tokens
                order.setdefault(linear.stack.shares, len(order))
                return
            order.setdefault(linear.name, len(order))
            passed[linear.name] = min(passed.get(linear.name, 0) + inputs[..., 0].numel(), tokens)
            runs[linear.name] = runs.get(linear.name, 0) + 1
            for tensor, linears in seen:
                if same_data(tensor, inputs):
                    linears.append(linear)
                    return
            seen.append((inputs, [linear]))

        with self.watch(saw):
            self.run(states, call)
        shared = [tuple(one for one in linears if runs[one.name] == 1) for _, linears in seen]
        repeated = [linear for linear in self.linears if runs.get(linear.name, 0) > 1]
        idle = [linear for linear in self.linears if linear.module is not None and linear.name not in runs]
        experts = self._lists_of_experts(passed, tokens)
        running = [self._plain_group(linears, experts) for linears in shared if linears]
        found = [
            *running,
            *(LinearGroup((linear,), once=False) for linear in repeated),
            *self._idle_experts(idle, experts, running),
            *self._stacked_groups(order),
        ]

        def began(group: LinearGroup) -> int:
            return min((order[name] for name in (group.stage or "", *group.names) if name in order), default=len(order))

        return sorted(found, key=began)

    def _stacked_groups(self, ran: Container[str]) -> Iterator[LinearGroup]:
        """For stacks that ran and read the same inputs, one group for each matrix number."""
        together: dict[tuple[str, int], list[Linear]] = {}
        for linear in self.linears:
            if linear.stack is not None and linear.stack.shares in ran:
                together.setdefault((linear.stack.shares, linear.number), []).append(linear)
        for (shares, _), linears in together.items():
            assert linears[0].stack is not None
            yield LinearGroup(tuple(linears), expert=linears[0].stack.routed, stage=shares)

    def _idle_experts(
        self, idle: Sequence[Linear], experts: Set[str], running: Sequence[LinearGroup]
    ) -> Iterator[LinearGroup]:
        """Groups of experts, kept as lists of modules, that no token of this batch was routed to.

        The linears of such an expert are grouped as they are in an expert that ran.
        """
        stages: dict[str, str] = {}  # by the linear's name within any expert (experts.*.up_proj)
        for group in running:
            if group.stage is not None:
                for linear in group.linears:
                    stages.setdefault(self._of_expert(linear, experts)[0], group.stage)
        together: dict[tuple[str, ...], list[Linear]] = {}
        for linear in idle:
            what, *expert = self._of_expert(linear, experts)
            if expert:
                together.setdefault((stages.get(what, what), *expert), []).append(linear)
        for (stage, *_), linears in together.items():
            yield LinearGroup(tuple(linears), expert=True, stage=stage)

    def _plain_group(self, linears: tuple[Linear, ...], experts: Set[str]) -> LinearGroup:
        what, *expert = self._of_expert(linears[0], experts)
        return LinearGroup(linears, expert=bool(expert), stage=what if expert else None)

    def _of_expert(self, linear: Linear, experts: Set[str]) -> tuple[str, ...]:
        """A linear's name with `*` for its expert's number (mlp.experts.*.up_proj), then that number.

        For a linear of no expert it is its name alone. `experts` are the paths of the lists of experts.
        """
        parts, numbers = linear.name.split("."), list[str]()
        for path in (path for path, _ in self._lists(linear) if path in experts):
            place = path.count(".") + 1
            numbers.append(parts[place])
            parts[place] = "*"
        return (".".join(parts), *numbers)

    def _lists_of_experts(self, passed: Mapping[str, int], tokens: int) -> set[str]:
        """The paths of the lists of experts: lists that ran, with members that got fewer tokens than the module around.

        `passed` says how many tokens passed each linear, of `tokens` in all.
        """
        most = {"": tokens}  # by path of a module in a list: the most tokens that passed one of its linears
        ran = {path for linear in self.linears if linear.name in passed for path, _ in self._lists(linear)}
        for linear in self.linears:
            if linear.module is not None or linear.name in passed:
                for _, module in self._lists(linear):
                    most[module] = max(most.get(module, 0), passed.get(linear.name, 0))
        experts: set[str] = set()
        for linear in self.linears:
            around = ""
            for path, module in self._lists(linear):
                if path in ran and module in most and most[module] < most[around]:
                    experts.add(path)
                around = module
        return experts

    def _lists(self, linear: Linear) -> Iterator[tuple[str, str]]:
        """The paths of the lists of modules that a linear lies in, each with the path of its module there.

        For mlp.experts.3.up_proj they are mlp.experts and mlp.experts.3.
        """
        parts = (linear.name if linear.stack is None else linear.stack.parameter).split(".")
        for place, part in enumerate(parts):
            path = ".".join(parts[:place])
            if place and part.isdigit() and isinstance(self.module.get_submodule(path), nn.ModuleList):
                yield path, f"{path}.{part}"


@contextmanager
def many_passes(blocks: Sequence[Block]) -> Iterator[None]:
    """Within this context, weights are cast to the products' precision once, not in each pass through a block.

    It is for passes without gradients, between which no weight changes.
    """
    if blocks[0].precision.products == torch.float32:
        yield
        return
    # Autocast caches the casts of parameters that require gradients, until the outermost context ends.
    parameters = [one for block in blocks for one in block.module.parameters()]
    still = [one for one in parameters if one.is_floating_point() and not one.requires_grad]
    for parameter in still:
        parameter.requires_grad_(True)
    try:
        with torch.autocast(blocks[0].device.type, dtype=blocks[0].precision.products):
            yield
    finally:
        for parameter in still:
            parameter.requires_grad_(False)


def _tell(
    saw: Callable[[Linear, Tensor], None], linear: Linear, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    saw(linear, args[0] if args else next(iter(kwargs.values())))
