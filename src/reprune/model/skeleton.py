"""A decoder without its weights, whose blocks are found by running the model rather than by its name.

The model is built from its configuration with all parameters on the meta device. Its blocks are replaced by
recorders, and the model's own forward is run over them: a recorder receives what the block would have been given.
No part of a model's forward is rebuilt here, so masks, rotary embeddings and whatever else differs from block to
block are the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError, is_expected, short
from reprune.model.bare import build_bare, longest_of, part_instead
from reprune.model.block import Call
from reprune.model.forms import Beside, Form, axes
from reprune.model.handing import find_forms, find_joined, find_whole_width, hands_on, refuse_caches
from reprune.model.linears import find_linears, is_linear
from reprune.model.passing import Passing
from reprune.model.quiet import quiet_transformers
from reprune.model.recorder import (
    Fill,
    LastBlockReached,
    disturbed,
    fill_with_nothing,
    filling,
    is_outside,
    recorders,
    stop,
)
from reprune.model.uncached import uncached
from reprune.model.written import refuse_written

_FEW_TOKENS = 11  # a size that nothing else in a model is likely to have
_RETURNED = (0, 1, 2, 3, 4, -2, -3, -4)
"""What blocks may return, to be tried in this order; `recorders` describes the values."""


@final
class Skeleton:
    """A decoder's modules: where its blocks are, and what comes before and after them."""

    def __init__(self, folder: Path, trust_remote_code: bool = False) -> None:
        """Build the model of a folder's config.json without weights and find its blocks.

        Raises:
            UnsupportedModelError: the blocks cannot be run one by one; the message says why.
        """
        self.model = build_bare(folder, trust_remote_code)
        self.name = type(self.model).__name__  # in messages
        self.config: Any = self.model.config.get_text_config(decoder=True)
        self._whole_widths: dict[int, int] = {}  # by number of tokens
        self._returned = 0
        self._early = False  # whether the model reads weights before it runs the module that holds them
        lists = _find_lists(self.model)
        self.blocks_path, self.running = self._choose(lists)
        self.blocks = lists[self.blocks_path]

    @torch.no_grad()
    def _choose(self, lists: dict[str, nn.ModuleList]) -> tuple[str, tuple[int, ...]]:
        """Find the list of blocks that text passes through once; a model that also reads images has several lists.

        Returns:
            Its path, and the indices of the blocks that text passes through: all except those for images only.
        """
        said = ""
        for self._early, self._returned in product((False, True), _RETURNED):
            calls, error = self._blocks_run(lists)
            self._release(tuple(lists))
            if error is not None and self._early:  # with all weights filled in, its error says more
                said = said or f" ({error})"
            ran = [path for path, seen in calls.items() if len(seen) >= len(lists[path])]
            if not ran and error is None and len(calls) == 1:
                ran = [path for path, seen in calls.items() if len({*seen}) > len(lists[path]) / 2]
            if ran:
                break
        self._returned, self._early = 0, self._early and bool(ran)
        if len(ran) > 1 or (not ran and len(lists) > 1):
            alone = "have its forward run on input_ids alone" if said and not ran else ""
            way = part_instead(self.model) or alone or "gather their parts in one list, each to be run once"
            raise UnsupportedModelError(
                f"{self.name}: text passes through several lists of blocks, or through none as a whole "
                f"({', '.join(ran or lists)}), so its blocks cannot be pruned one after the other{'' if ran else said}"
                f"; {way}."
            )
        path = next(iter(ran or lists))
        seen = calls.get(path, []) if ran else []
        if len(seen) > len({*seen}):
            raise UnsupportedModelError(
                f"{self.name}: its {len(lists[path])} blocks at {path} run {len(seen)} times in all; "
                "blocks that do not run once each in their order cannot be pruned one by one."
            )
        return path, tuple(sorted(seen)) or tuple(range(len(lists[path])))

    def _blocks_run(self, lists: dict[str, nn.ModuleList]) -> tuple[dict[str, list[int]], str | None]:
        """The indices of the blocks that a few tokens pass through, by list, and the model's error if it raises one."""
        ids, calls = self.few_ids(), dict[str, list[int]]()

        def saw(path: str, index: int, *_: Any) -> None:
            calls.setdefault(path, []).append(index)

        with ExitStack() as stack, quiet_transformers():
            for path, blocks in lists.items():
                stack.enter_context(recorders(blocks, partial(saw, path), self._returned))
            stack.enter_context(filling(self.model, tuple(lists), fill_with_nothing, ids, self._early))
            head = self.model.get_output_embeddings()
            if isinstance(head, nn.Module):  # nothing from the head on is needed
                stack.callback(head.register_forward_pre_hook(stop).remove)
            try:
                with suppress(LastBlockReached):
                    uncached(self.model, ids)
            except Exception as error:  # its blocks return something else, or it fails after them
                return calls, short(error)
        return calls, None

    @cached_property
    def max_positions(self) -> int | None:
        """The longest sequence that the model accepts, in tokens; None if its configuration does not say."""
        return longest_of(self.model)

    def few_ids(self, samples: int = 1) -> Tensor:
        """A few token ids (samples, tokens) for trials, no more than the model accepts."""
        return torch.zeros(samples, min(_FEW_TOKENS, self.max_positions or _FEW_TOKENS), dtype=torch.int64)

    def release(self) -> None:
        """Give back the memory of all weights outside the blocks."""
        self._release((self.blocks_path,))

    def _release(self, inside: tuple[str, ...]) -> None:
        for name, module in self.model.named_modules():
            if is_outside(name, inside):
                for key, parameter in module.named_parameters(recurse=False):
                    setattr(module, key, nn.Parameter(parameter.to("meta"), requires_grad=False))

    @torch.no_grad()
    def record(self, ids: Tensor, fill: Fill, disturb: bool = False) -> tuple[Tensor, list[Call]]:
        """Run the model's own forward on token ids up to its last block, over recorders.

        Args:
            ids: (batch, tokens), int64.
            fill: gives the weights that are needed before the blocks.
            disturb: have each block hand on other states than it is given, to see whether other arguments change.

        Returns:
            The states that enter the first block, as a stream's (batch, tokens, ...), and what each block is passed
            with them.

        Raises:
            UnsupportedModelError: the blocks do not hand the states from one to the next.
        """
        form, whole_width = self.forms[self.running[0]], self.whole_width(ids.shape[1])
        states, calls = self._recorded(ids, fill, disturb)
        return form.of(states, whole_width), self._formed(calls)

    def _formed(self, calls: list[Call]) -> list[Call]:
        """The calls with the forms of their blocks."""
        if not any(isinstance(slot.place, int) for slot in self.forms[0].slots):  # no slot is returned
            calls = [call.without_beside() for call in calls]
        return [replace(call, form=form) for call, form in zip(calls, self.forms, strict=True)]

    def whole_width(self, tokens: int) -> int:
        """How many columns each slot of whole numbers has in a stream of samples of so many tokens."""
        if not self.forms[0].whole:
            return 0
        if tokens not in self._whole_widths:
            ids = torch.zeros(1, tokens, dtype=torch.int64)
            states, calls = self._recorded(ids, fill_with_nothing, False)
            self.release()
            self._whole_widths[tokens] = find_whole_width(self.name, self.blocks, self._formed(calls), states)
        return self._whole_widths[tokens]

    def predict(self, ids: Tensor, states: Tensor, fill: Fill, fill_after: Fill) -> Tensor:
        """Run the model's own forward with given outputs of its last block.

        Args:
            ids: (batch, tokens), int64.
            states: a stream's (batch, tokens, ...), after the last block; gradients flow back to them.
            fill: gives the weights that are needed before the last block.
            fill_after: gives those after it, on the device of the states.

        Returns:
            The logits (batch, tokens, words). A model that computes none this way may raise anything.
        """
        form = self.forms[self.running[-1]]
        return self._predicted(ids, form.entering(states), form.beside(states), fill, fill_after)

    def _predicted(
        self, ids: Tensor, states: Tensor, beside: Mapping[int, Any], fill: Fill, fill_after: Fill
    ) -> Tensor:
        """`predict` with states in the model's layout, and what the last block returns besides them, by tuple index."""
        # All other places hold None: what follows the blocks might use a value there instead of the states.
        given = (states, *map(beside.get, range(1, abs(self._returned)))) if self._returned else states
        fills = [fill]

        def saw(index: int, *_: Any) -> Any:
            if index != self.running[-1]:
                return None
            fills.append(fill_after)
            return given

        def filled(path: str, module: nn.Module, of: Tensor | None) -> None:
            fills[-1](path, module, of)

        logits: Tensor = self._run(ids, filled, recorders(self.blocks, saw, -abs(self._returned))).logits
        if logits.shape[:2] != ids.shape:
            raise ValueError(f"its logits are of shape {list(logits.shape)} for {list(ids.shape)} tokens")
        return logits

    def _reads_after(self, states: Tensor, beside: Mapping[int, Tensor]) -> set[int]:
        """The tuple indices of what the last block returns besides the states and the model uses after its blocks.

        Args:
            states: in the model's layout, for one sample of a few tokens.
            beside: what the last block may return besides them, by tuple index.
        """

        def runs(beside: Mapping[int, Any]) -> bool:
            try:
                self._predicted(self.few_ids(), states, beside, fill_with_nothing, fill_with_nothing)
            except Exception:  # whatever it raises, a placeholder was used
                return False
            finally:
                self.release()
            return True

        if not beside or not runs(beside):
            return set()
        return {place for place in beside if not runs({**beside, place: Beside(place)})}

    @cached_property
    @torch.no_grad()
    def forms(self) -> list[Form]:
        """How each block is given its states, found by running the model on a few tokens."""
        ids = self.few_ids()
        states, calls = self._recorded(ids, fill_with_nothing, False)
        refuse_caches(self.name, calls)
        # States from weights of zero may all be zero, in which no change shows.
        Passing(self.name, 0).check(calls, self._recorded(ids, fill_with_nothing, True)[1])
        more = self.few_ids(3)[:, : -(-ids.shape[1] // 2)]
        others, calls_of_others = self._recorded(more, fill_with_nothing, False)
        self.release()
        refuse_written(self.name, self.blocks, calls_of_others, others)
        places = axes((states.shape, others.shape), (ids.shape, more.shape))
        if places is None:
            raise UnsupportedModelError(
                f"{self.name}: its blocks are given states of shape {list(states.shape)} for {ids.shape[0]} sample of "
                f"{ids.shape[1]} tokens, and {list(others.shape)} for {more.shape[0]} of {more.shape[1]}; blocks whose "
                "states do not have the same size for every token of every sample cannot be pruned one by one."
            )
        plain = Form(*places)
        calls = [replace(call, form=replace(plain, runs=call.form.runs)) for call in calls]
        reads_after = partial(self._reads_after, torch.zeros_like(states))
        joined = find_joined(self.blocks, calls, self.running, plain.of(states), reads_after)
        calls = [call if index in joined else call.without_beside() for index, call in enumerate(calls)]
        if not hands_on(calls):
            return [call.form for call in calls]
        return find_forms(self.name, self.blocks, calls, states, plain, reads_after)

    def refuse_written(self, into: Set[str]) -> None:
        """Raise `UnsupportedModelError` if blocks hand on something in tensors that they write into.

        `into` are the names of the arguments that hold these tensors.
        """
        with torch.no_grad():
            states, calls = self._recorded(self.few_ids(), fill_with_nothing, False)
        self.release()
        refuse_written(self.name, self.blocks, calls, states, into)

    def _recorded(self, ids: Tensor, fill: Fill, disturb: bool) -> tuple[Tensor, list[Call]]:
        """The states that enter the first block, in the model's layout, and what each block is passed with them.

        Sets `_returned` and `_early` to the first values with which the model runs.
        """
        first: Exception | None = None
        for early in dict.fromkeys((self._early, True)):
            self._early, first = early, None  # with all weights filled in, its error says more
            for returned in dict.fromkeys((self._returned, *_RETURNED)):
                self._returned = returned
                try:
                    return self._record(ids, fill, disturb)
                except Exception as error:  # the blocks of this model may return something else
                    if is_expected(error):
                        raise
                    first = first or error
            self._returned = 0
        self._early = False
        raise UnsupportedModelError(
            f"{self.name}: its forward does not run over recorders in place of its blocks "
            f"({type(first).__name__}: {first}); it must run on input_ids alone, and blocks must return the states "
            "that they are given, alone or first in a tuple."
        ) from first

    def _record(self, ids: Tensor, fill: Fill, disturb: bool) -> tuple[Tensor, list[Call]]:
        entered: list[Tensor] = []
        calls: list[Call] = []

        def saw(index: int, states: Tensor, call: Call) -> None:
            if index != self.running[len(calls)]:
                raise UnsupportedModelError(
                    f"{self.name}: block {index} is called where block {self.running[len(calls)]} was "
                    "expected; blocks that do not run once each in their order cannot be pruned one by one."
                )
            if calls and states is not entered[0]:
                if states.shape != entered[0].shape:
                    raise TypeError("the blocks return tuples")
                handed = disturbed(entered[-1]) if disturb else entered[0]
                if not torch.equal(states.nan_to_num(), handed.nan_to_num()):  # of zeros a model may make NaN
                    raise UnsupportedModelError(
                        f"{self.name}: the model changes the hidden states between block {index - 1} "
                        f"and block {index}, so its blocks cannot be run one by one: have the block change them."
                    )
            entered.append(states)
            calls.append(call)
            if len(calls) == len(self.running):
                raise LastBlockReached

        try:
            self._run(ids, fill, recorders(self.blocks, saw, self._returned, disturb))
        except LastBlockReached:
            passed_over = Call((), {}, 0, Form(runs=False))
            by_number = dict(zip(self.running, calls, strict=True))
            return entered[0], [by_number.get(index, passed_over) for index in range(len(self.blocks))]
        raise UnsupportedModelError(
            f"{self.name}: only {len(calls)} of {len(self.running)} blocks at {self.blocks_path} run."
        )

    def _run(self, ids: Tensor, fill: Fill, recording: AbstractContextManager[None]) -> Any:
        """The output of the model's own forward over recorders."""
        with recording, filling(self.model, (self.blocks_path,), fill, ids, self._early), quiet_transformers():
            return uncached(self.model, ids)


def _find_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost lists of modules that each hold linears, or parameters of three or more dimensions, by path."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if len(module) and all(not is_linear(child) and _holds_matrices(child) for child in module):
            found[path] = module
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no list of blocks with linears was found; expected an nn.ModuleList of modules "
            "that each hold linears, or matrices of experts."
        )
    return found


def _holds_matrices(module: nn.Module) -> bool:
    """Whether a module has linears, or parameters of three or more dimensions."""
    return bool(find_linears(module)) or any(parameter.dim() >= 3 for parameter in module.parameters())
