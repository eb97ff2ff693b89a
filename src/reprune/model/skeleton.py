"""A decoder without its weights, its blocks found by what it does rather than by its name.

The model is built from its configuration with all parameters on the meta device. Its blocks are replaced by
recorders, and the model's own forward is run over them: what reaches a recorder is what the block would have been
given. Nothing of a model's forward is rebuilt here, so masks, rotary embeddings and whatever else differs from
block to block are the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from reprune.errors import RepruneError, UnsupportedModelError
from reprune.model.bare import build_bare, max_positions
from reprune.model.beside import Beside, matters, passed_beside, without_beside
from reprune.model.block import Call
from reprune.model.linears import find_linears, is_linear
from reprune.model.quiet import quiet_transformers

_FEW_TOKENS = 16
_RETURNED = (0, 1, 2, 3, 4, -2, -3, -4)
"""What blocks return: the states, or a tuple of so many that begins with them; if negative, with None beside them."""

Fill = Callable[[str, nn.Module, Tensor | None], None]
"""Gives the parameters of a module outside the blocks: (module name, module, token ids if it embeds them)."""


@final
class _Recorder(nn.Module):
    """Stands in for a block: keeps what it is given and hands the hidden states on as they are."""

    def __init__(self, block: nn.Module, saw: Callable[[Tensor, Call], bool], returned: int, disturb: bool) -> None:
        super().__init__()
        self._original = (block,)  # in a tuple, so that it is no module of this one
        self._names = list(inspect.signature(block.forward).parameters)
        self._saw = saw
        self._returned = returned
        self._disturb = disturb

    def __getattr__(self, name: str) -> Any:
        # Models ask their blocks for such things as attention_type before they call them.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_original" not in self.__dict__:
                raise
            return getattr(self._original[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Tensor):
            states, call = args[0], Call((None, *args[1:]), kwargs, 0)
        else:
            key = next((name for name in ("hidden_states", *self._names) if isinstance(kwargs.get(name), Tensor)), None)
            if key is None:
                raise UnsupportedModelError("a block is called without hidden states, so it cannot be run by itself.")
            states, call = kwargs[key], Call(args, {**kwargs, key: None}, key)
        if self._saw(states, call):
            raise _LastBlockReached
        if self._disturb:
            states = 1.25 * states
        beside = [Beside(place) if self._returned > 0 else None for place in range(1, abs(self._returned))]
        return (states, *beside) if self._returned else states


def _stop(*_: Any) -> None:
    raise _LastBlockReached


class _LastBlockReached(Exception):
    """Ends a forward pass when the last recorder has been called: what comes after is never run."""


@final
class Skeleton:
    """The modules of a decoder: where its blocks are, and what it does before them."""

    def __init__(self, folder: Path, trust_remote_code: bool = False) -> None:
        """Build the model of a folder's config.json without weights and find its blocks.

        Raises:
            UnsupportedModelError: it is no decoder whose blocks can be run one by one; the message says why.
        """
        self.model = build_bare(folder, trust_remote_code)
        self.config: Any = self.model.config.get_text_config(decoder=True)
        self._returned = 0
        self._early = False  # whether weights are looked at before the module that holds them is run
        self._joined: list[int] | None = None  # blocks that make something of what others hand them beside states
        lists = _find_lists(self.model)
        self.blocks_path, self.blocks = next(iter(lists.items()))
        self._fused_attention = getattr(self.model.config, "_attn_implementation", None) == "sdpa"
        self.blocks_path = self._choose(lists)
        self.blocks = lists[self.blocks_path]

    @torch.no_grad()
    def _choose(self, lists: dict[str, nn.ModuleList]) -> str:
        """The list of blocks that text passes through, once: of several, as where a model reads images too."""
        ids = self.few_ids()
        ran: list[str] = []
        for self._returned in _RETURNED:
            calls: dict[str, int] = {}

            def saw(path: str, index: int, states: Tensor, call: Call, calls: dict[str, int] = calls) -> bool:
                del index, states, call
                calls[path] = calls.get(path, 0) + 1
                return False

            with ExitStack() as stack, quiet_transformers():
                for path, blocks in lists.items():
                    stack.enter_context(self._recorders(blocks, partial(partial, saw, path)))
                stack.enter_context(_filling(self.model, tuple(lists), fill_with_nothing, ids))
                head = self.model.get_output_embeddings()
                if isinstance(head, nn.Module):  # what comes then is of no concern
                    stack.callback(head.register_forward_pre_hook(_stop).remove)
                with suppress(Exception):  # whatever a model raises whose blocks return something else, or at its end
                    self.model(input_ids=ids, use_cache=False)
            self.release()
            ran = [path for path, count in calls.items() if count >= len(lists[path])]
            if ran:
                break
        self._returned = 0
        if len(ran) > 1 or (not ran and len(lists) > 1):
            raise self._several(*(ran or lists))
        path = next(iter(ran or lists))
        if calls.get(path, 0) > len(lists[path]):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its {len(lists[path])} blocks at {path} run {calls[path]} times in all; "
                "blocks that do not run once each in their order cannot be pruned one by one."
            )
        return path

    def _several(self, *paths: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{type(self.model).__name__}: text passes through several lists of blocks, or through none as a whole "
            f"({', '.join(paths)}), so its blocks cannot be pruned one after the other."
        )

    def attend_by_products(self, on: bool) -> None:
        """Have Transformers' models attend by plain products and softmax ("eager"), or by PyTorch's fused kernels.

        Models that do not attend by these kernels on their own, such as remote code of its own kind, stay as they are.
        """
        if self._fused_attention:
            with quiet_transformers():
                self.model.set_attn_implementation("eager" if on else "sdpa")

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model takes, where its configuration says so."""
        return max_positions(self.config)

    def few_ids(self) -> Tensor:
        """Token ids (1, tokens) to try something on: no more than the model takes."""
        return torch.zeros(1, min(_FEW_TOKENS, self.max_positions or _FEW_TOKENS), dtype=torch.int64)

    @property
    def prefix(self) -> str:
        """What the names of the base model's parameters begin with, such as "model."."""
        return f"{self.model.base_model_prefix}." if self.model.base_model_prefix else ""

    def release(self) -> None:
        """Give back the memory of all weights outside the blocks."""
        for name, module in self.model.named_modules():
            if self.is_outside(name):
                for key, parameter in module.named_parameters(recurse=False):
                    setattr(module, key, nn.Parameter(parameter.to("meta"), requires_grad=False))

    def is_outside(self, path: str) -> bool:
        """Whether a module of that path lies outside the blocks."""
        return _is_outside(path, (self.blocks_path,))

    @torch.no_grad()
    def record(self, ids: Tensor, fill: Fill, disturb: bool = False) -> tuple[Tensor, list[Call]]:
        """Run the model's own forward on token ids up to its last block, over recorders.

        Args:
            ids: (batch, tokens), int64.
            fill: gives the weights that are needed before the blocks.
            disturb: have each block hand on other states than it is given; what is passed beside must not show it.

        Returns:
            The states that enter the first block, (batch, tokens, hidden), and what each block is passed with them.

        Raises:
            UnsupportedModelError: the blocks do not hand the states from one to the next.
        """
        states, calls = self._recorded(ids, fill, disturb)
        if any(passed_beside(call) for call in calls):
            if self._joined is None:
                self._joined = self._find_joined()
            if self._joined:
                raise UnsupportedModelError(
                    f"{type(self.model).__name__}: block {self._joined[0]} is passed what a block before it puts out "
                    "beside the hidden states; blocks that are joined by more than those cannot be pruned one by one."
                )
        return states, [without_beside(call) for call in calls]

    def _find_joined(self) -> list[int]:
        """The blocks that make something of what blocks before them put out beside the hidden states."""
        states, calls = self._recorded(self.few_ids(), fill_with_nothing, False)
        self.release()
        return [
            index
            for index, call in enumerate(calls)
            if passed_beside(call)
            and matters(self.blocks[index], call, self.blocks[max(index - 1, 0)], calls[max(index - 1, 0)], states)
        ]

    def _recorded(self, ids: Tensor, fill: Fill, disturb: bool) -> tuple[Tensor, list[Call]]:
        """The same, whatever the blocks return, and whether or not weights are looked at before their module runs."""
        first: Exception | None = None
        for early in dict.fromkeys((self._early, True)):
            self._early = early
            for form in [self._returned, *(form for form in _RETURNED if form != self._returned)]:
                self._returned = form
                try:
                    return self._record(ids, fill, disturb)
                except RepruneError:
                    raise
                except Exception as error:  # perhaps the blocks of this model return something else
                    first = first or error
            self._returned = 0
        self._early = False
        raise UnsupportedModelError(
            f"{type(self.model).__name__}: its forward does not run over recorders in place of its blocks "
            f"({type(first).__name__}: {first})."
        ) from first

    def _record(self, ids: Tensor, fill: Fill, disturb: bool) -> tuple[Tensor, list[Call]]:
        entered: list[Tensor] = []
        calls: list[Call] = []

        def saw(index: int, states: Tensor, call: Call) -> bool:
            if index != len(calls):
                raise UnsupportedModelError(
                    f"{type(self.model).__name__}: block {index} is called where block {len(calls)} was expected; "
                    "blocks that do not run once each in their order cannot be pruned one by one."
                )
            if calls and states is not entered[0] and not disturb:
                if states.shape != entered[0].shape:
                    raise TypeError("the blocks return tuples")
                if not torch.equal(states, entered[0]):
                    raise UnsupportedModelError(
                        f"{type(self.model).__name__}: the model changes the hidden states between block {index - 1} "
                        f"and block {index}, so its blocks cannot be run one by one."
                    )
            entered.append(states)
            calls.append(call)
            return len(calls) == len(self.blocks)

        recorders = self._recorders(self.blocks, lambda index: partial(saw, index), disturb)
        with recorders, _filling(self.model, (self.blocks_path,), fill, ids, self._early), quiet_transformers():
            try:
                self.model(input_ids=ids, use_cache=False)
            except _LastBlockReached:
                if entered[0].shape[:2] != ids.shape:
                    raise UnsupportedModelError(
                        f"{type(self.model).__name__}: its blocks are given states of shape {list(entered[0].shape)} "
                        f"for {ids.shape[0]} samples of {ids.shape[1]} tokens; blocks that see more than tokens, "
                        "one by one, cannot be pruned so."
                    ) from None
                return entered[0], calls
        raise UnsupportedModelError(
            f"{type(self.model).__name__}: only {len(calls)} of {len(self.blocks)} blocks at {self.blocks_path} run."
        )

    @contextmanager
    def _recorders(
        self, blocks: nn.ModuleList, saw: Callable[[int], Callable[[Tensor, Call], bool]], disturb: bool = False
    ) -> Iterator[None]:
        originals = list(blocks)
        for index, block in enumerate(originals):
            blocks[index] = _Recorder(block, saw(index), self._returned, disturb)
        try:
            yield
        finally:
            for index, block in enumerate(originals):
                blocks[index] = block


def _find_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of modules that each hold linears and lie in no other such list, by path."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if len(module) and all(not is_linear(child) and any(True for _ in _weights(child)) for child in module):
            found[path] = module
    if not found:
        raise UnsupportedModelError(f"{type(model).__name__}: no list of blocks with linears was found in it.")
    return found


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weight matrices of a would-be block."""
    yield from (linear.parameter for linear in find_linears(module))
    yield from (parameter for parameter in module.parameters() if parameter.dim() >= 3)


def _is_outside(path: str, inside: tuple[str, ...]) -> bool:
    return not any(f"{path}.".startswith(f"{one}.") for one in inside)


@contextmanager
def _filling(model: Any, inside: tuple[str, ...], fill: Fill, ids: Tensor, early: bool = False) -> Iterator[None]:
    """Have the weights of each module outside some lists of blocks filled in just before it first runs.

    Those of the embedding are there from the start, as some models look at them before they run it; `early` has all be
    there but those of the output head.
    """
    embedding = model.get_input_embeddings()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: fill(name, module, args[0] if module is embedding else None)

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if _is_outside(name, inside) and (module._parameters or module._buffers)
    ]
    try:
        for name, module in model.named_modules():
            if module is embedding and module._parameters:
                fill(name, module, ids)
            elif early and module is not model.get_output_embeddings() and _is_outside(name, inside):
                fill(name, module, None)
        yield
    finally:
        for handle in handles:
            handle.remove()


def fill_with_nothing(path: str, module: nn.Module, ids: Tensor | None) -> None:
    """Give a module memory without values: enough to learn the shapes of what it makes."""
    del path, ids
    for key, parameter in list(module.named_parameters(recurse=False)):
        if parameter.is_meta:
            # An embedding of gigabytes takes no memory as long as nothing is written to it.
            nothing = torch.empty if parameter.dim() == 2 else torch.zeros
            setattr(module, key, nn.Parameter(nothing(parameter.shape), requires_grad=False))
