"""Finds what blocks hand to later ones besides the states, by running each on a few tokens without its weights.

Some blocks return more than the states, and some models pass it on, or blocks write it to a mapping. If no later block
uses it, or if it is in fact None, it need not be carried along. To find out, a block is run with an object in that
place that fails when it is used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import Cache

from reprune.errors import UnsupportedModelError, out_of_memory, short
from reprune.model.block import Call
from reprune.model.forms import EXACT, Beside, Form, Place, Slot, found, is_shared
from reprune.model.passing import to_device
from reprune.model.without_weights import run_without_weights

ReadsAfter = Callable[[Mapping[int, Tensor]], set[int]]
"""From what the last block returns besides the states, by index in its tuple, to the indices of those that the model
uses after its blocks."""


def refuse_caches(model: str, calls: Sequence[Call]) -> None:
    """Raise `UnsupportedModelError` if a model passes its blocks a cache although it was told to use none."""
    for index, call in enumerate(calls):
        for value in (*call.args, *call.kwargs.values()):
            if isinstance(value, Cache):
                raise UnsupportedModelError(
                    f"{model}: block {index} is passed a {type(value).__name__} though use_cache is False; blocks "
                    "that write to a cache in each pass cannot be pruned one by one: have the model's forward make no "
                    "cache then."
                )


@torch.no_grad()
def find_joined(
    blocks: nn.ModuleList, calls: Sequence[Call], running: Sequence[int], states: Tensor, reads_after: ReadsAfter
) -> set[int]:
    """The indices of the blocks that use what the one before them returns besides the hidden states.

    So do those that only pass it on, to a block that uses it or to what follows the blocks. Whole numbers of pairs of
    tokens say which tokens a block reads. If it passes them on, they count as used: of a few tokens it may read all,
    whatever they say.

    Args:
        blocks: on the meta device; left as they are.
        calls: what each is passed, with placeholders for what the one before it returns besides the states.
        running: the indices of the blocks that run, in their order.
        states: a stream's states, of the shape that enters them.
        reads_after: see `ReadsAfter`.
    """
    if not any(call.beside for call in calls):
        return set()
    some = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    entries: dict[int, Any] = {}  # by identity of a mapping that blocks are passed: a copy that they write to

    def with_entries(value: Any) -> Any:
        return entries.setdefault(id(value), deepcopy(value)) if is_shared(value) else value

    def run(index: int, call: Call) -> dict[int, Any]:
        outputs = run_without_weights(blocks[index], *call.bind(some, anew=False))
        return dict(enumerate(outputs)) if isinstance(outputs, tuple | list) else {}

    used: dict[int, set[int]] = {}  # by block: what it may use, by index in the tuple of the one before it
    passed_on: dict[int, dict[int, int]] = {}  # by block: what it returns as it is given it, by index in both tuples
    given: dict[int, Any] | None = {}  # what the one before it returns; None if that cannot be told
    for index in running:
        call, before = calls[index].each(with_entries), given
        there = {beside.place for beside in call.beside if before is None or before.get(beside.place) is not None}
        if there:
            try:
                returned = run(index, call).items()
                passed_on[index] = {place: value.place for place, value in returned if isinstance(value, Beside)}
            except Exception:  # whatever it raises, a placeholder was used, or the block cannot be run
                used[index] = there
            else:
                known, tokens = before or {}, some.shape[1]
                used[index] = {one for one in passed_on[index].values() if _chooses_tokens(known.get(one), tokens)}
        given = None
        with suppress(Exception):
            outputs = run(index, call.without_beside(before))
            given = None if before is None and call.beside else outputs
    found: set[int] = set()
    wanted = {*passed_on.get(running[-1], ())}  # what is used later of what this one returns
    if wanted and given is not None:
        wanted = reads_after({place: value for place, value in given.items() if place and isinstance(value, Tensor)})
    for index in reversed(running):
        passed = passed_on.get(index, {})
        wanted = used.get(index, set()) | {passed[place] for place in wanted & passed.keys()}
        if wanted:
            found.add(index)
    return found


def _chooses_tokens(value: Any, tokens: int) -> bool:
    """Whether a value is whole numbers, or true or false, as many for each token as there are tokens."""
    whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    return whole and list(value.shape).count(tokens) > 1


def hands_on(calls: Sequence[Call]) -> bool:
    """Whether blocks are passed anything that earlier ones made or may have made."""
    return any(call.beside or any(map(is_shared, call.args)) for call in calls) or bool(_shared(calls))


@torch.no_grad()
def find_forms(
    model: str,
    blocks: nn.ModuleList,
    calls: Sequence[Call],
    states: Tensor,
    plain: Form,
    reads_after: ReadsAfter,
) -> list[Form]:
    """The form of each block.

    Args:
        model: its name, for messages.
        blocks: on the meta device; left as they are.
        calls: what each is passed for one sample of a few tokens, with placeholders for what the previous block
            returns besides the states.
        states: that enter the first block, in the model's layout.
        plain: the form without slots.
        reads_after: see `ReadsAfter`.

    Raises:
        UnsupportedModelError: something is handed on that does not belong to a token, or whole numbers are used after
            the blocks.
    """
    main, shared = plain.of(states), _shared(calls)
    plain = replace(plain, rest=tuple(main.shape[2:]))
    search = _Search(model, main.shape[1])
    read: set[int] = set()  # slots of mappings that a later block reads; nothing else of a mapping is carried along
    running = [index for index, call in enumerate(calls) if call.form.runs]
    reads: defaultdict[int, frozenset[int]] = defaultdict(frozenset)
    writes: defaultdict[int, frozenset[int]] = defaultdict(frozenset)
    for index, following in zip(running, [*running[1:], None], strict=True):
        call, reads[index] = calls[index], search.at_hand
        if any(map(is_shared, call.args)):
            raise search.refusal(index, "it does so in an argument without a name")
        form = replace(plain, slots=tuple(search.slots), reads=reads[index])
        call = replace(call, form=form)
        stream = form.of(torch.zeros_like(states, dtype=torch.float32), search.whole_width)
        try:
            args, kwargs = call.bind(stream)
            handed = {name: dict(kwargs[name]) for name in shared.keys() & kwargs.keys()}
            outputs = run_without_weights(blocks[index], args, kwargs)
        except Exception as error:  # whatever a module raises
            raise search.refusal(index, f"it fails when it is run by itself ({short(error)})") from error
        if following is None:
            wanted = reads_after(search.returned())
        else:
            wanted = {beside.place for beside in calls[following].beside}
        given = {number for number in reads[index] if not isinstance(search.slots[number].place, int)}
        if not given <= read and _reads_entries(blocks[index], call, stream, shared.keys(), wanted):
            read |= given
        put_out = _put_out(outputs, wanted, kwargs, handed)
        if any(not isinstance(place, int) and shared[place[0]] for place, _ in put_out):
            raise search.refusal(index, "it does so in one of several mappings of the same name")
        writes[index] = search.take(index, put_out)
        if following is None and any(slot.whole and slot.place in wanted for slot in search.slots):
            raise search.refusal(index, "that is whole numbers which are used after the last block")
    kept = [number for number, slot in enumerate(search.slots) if isinstance(slot.place, int) or number in read]
    for number in kept:
        if (inexact := search.inexact.get(search.slots[number].place)) is not None:
            raise search.refusal(inexact, f"that is whole numbers beyond {EXACT:,}")
    kept.sort(key=lambda number: search.slots[number].whole)
    plain = replace(plain, slots=tuple(search.slots[number] for number in kept))
    return [
        replace(
            plain,
            reads=frozenset(new for new, number in enumerate(kept) if number in reads[index]),
            writes=frozenset(new for new, number in enumerate(kept) if number in writes[index]),
            runs=call.form.runs,
        )
        for index, call in enumerate(calls)
    ]


@final
class _Search:
    """The slots that were found so far, and which of them the next block is handed."""

    def __init__(self, model: str, tokens: int) -> None:
        self._model = model
        self._tokens = tokens
        self.slots: list[Slot] = []
        self.inexact: dict[Place, int] = {}  # by place of whole numbers that float32 does not hold: a block
        self.at_hand: frozenset[int] = frozenset()

    @property
    def whole_width(self) -> int:
        """How many columns each slot of whole numbers has in this trial."""
        return next((slot.width for slot in self.slots if slot.whole), 0)

    def returned(self) -> dict[int, Tensor]:
        """Zeros for what blocks return besides the states for one sample, by index in their tuple."""
        return {
            slot.place: slot.value(torch.zeros(1, self._tokens, slot.width))
            for slot in self.slots
            if isinstance(slot.place, int)
        }

    def take(self, index: int, put_out: Sequence[tuple[Place, Any]]) -> frozenset[int]:
        """Record what a block has put out; returns the indices of the slots that it has written."""
        written = frozenset(self._number(index, place, value) for place, value in put_out)
        # Entries of mappings stay for all later blocks; what a block returns is for the next one only.
        self.at_hand = written | {number for number in self.at_hand if not isinstance(self.slots[number].place, int)}
        return written

    def _number(self, index: int, place: Place, value: Any) -> int:
        slot = self._slot(index, place, value)
        if slot.whole and bool((value.double().abs() > EXACT).any()):
            self.inexact.setdefault(place, index)
        for number, known in enumerate(self.slots):
            if known.place == place:
                if known != slot:
                    raise self.refusal(index, "that has different shapes in different blocks")
                return number
        if slot.whole and self.whole_width not in (0, slot.width):
            raise self.refusal(index, "that is several sets of whole numbers of different sizes")
        self.slots.append(slot)
        return len(self.slots) - 1

    def _slot(self, index: int, place: Place, value: Any) -> Slot:
        if not isinstance(value, Tensor) or value.is_complex():
            what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise self.refusal(index, f"that is {what}")
        places = [axis for axis, size in enumerate(value.shape) if axis and size == self._tokens]
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        # A token may have one whole number for each token: those that it reads, in the order of their scores.
        if not places or len(value) != 1 or (len(places) > 1 and dtype.is_floating_point):
            raise self.refusal(index, f"that has the shape {list(value.shape)} for one sample of {self._tokens} tokens")
        axis = places[0]
        return Slot(place, tuple(value.shape[1:axis] + value.shape[axis + 1 :]), axis, dtype)

    def refusal(self, index: int, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._model}: block {index} hands more than the hidden states to later blocks, and {why}; only numbers "
            "that belong to a token can be carried along with the token's states."
        )


@torch.no_grad()
def find_whole_width(model: str, blocks: nn.ModuleList, calls: Sequence[Call], states: Tensor) -> int:
    """How many columns each slot of whole numbers has in a stream with as many tokens as these states.

    Blocks are run without their weights for that: all on the meta device, or if all depend on values, one with zeros.

    Args:
        model: its name, for messages.
        blocks: on the meta device; left as they are.
        calls: what each is passed for one sample, with its form.
        states: that enter the first block, in the model's layout.

    Raises:
        UnsupportedModelError: no block can be run so, or blocks differ.
    """
    tokens = calls[0].form.of(states).shape[1]
    whole = calls[0].form.whole
    first = [
        (block, call)
        for block, call in zip(blocks, calls, strict=True)
        if call.form.runs and whole & call.form.writes and not whole & call.form.reads
    ]
    said = ""
    for run, device in ((_run_on_meta, "meta"), (run_without_weights, "cpu")):
        widths: set[int] = set()
        for block, call in first:
            if widths and device == "cpu":  # the others would take as long again
                break
            try:
                (there,) = to_device([call], torch.device(device))
                args, kwargs = there.bind(there.form.of(torch.zeros_like(states, dtype=torch.float32, device=device)))
                outputs = run(block, args, kwargs)
                slots = (there.form.slots[number] for number in whole & there.form.writes)
                values = ((slot, found(slot.place, outputs, kwargs)) for slot in slots)
                widths |= {slot.columns(value).shape[-1] for slot, value in values if value is not None}
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"{model}: {error}") from error
            except Exception as error:  # whatever a module raises
                if out_of_memory(error) is not None:  # no fault of the model
                    raise
                said = f" ({short(error)})"
        if len(widths) > 1:
            raise UnsupportedModelError(
                f"{model}: with samples of {tokens} tokens, some blocks hand {min(widths)} whole numbers for each "
                f"token to later blocks and others {max(widths)}; only as many from each can be carried along with the "
                "token's states."
            )
        if widths:
            return widths.pop()
    raise UnsupportedModelError(
        f"{model}: no block that hands whole numbers to later blocks could be run by itself for samples of {tokens} "
        f"tokens{said}."
    )


def _run_on_meta(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return deepcopy(module).to("meta")(*args, **kwargs)


def _shared(calls: Sequence[Call]) -> dict[str, bool]:
    """The arguments that are one empty mapping for several blocks, and whether a name has several such mappings."""
    given = ((name, id(value)) for call in calls for name, value in call.kwargs.items() if is_shared(value))
    passed = Counter(given)
    mappings = Counter(name for name, _ in passed)
    return {name: mappings[name] > 1 for (name, _), count in passed.items() if count > 1}


def _reads_entries(block: nn.Module, call: Call, stream: Tensor, names: Set[str], wanted: set[int]) -> bool:
    """Whether a block uses an entry of the mappings of these names, or puts it out: placeholders stand for them."""
    args, kwargs = call.bind(stream)
    handed: dict[str, dict[Any, Any]] = {}
    for name in names & kwargs.keys():
        for key in kwargs[name]:
            kwargs[name][key] = Beside(0)
        handed[name] = dict(kwargs[name])
    try:
        outputs = run_without_weights(block, args, kwargs)
    except Exception:  # whatever it raises, a placeholder was used
        return True
    return any(isinstance(value, Beside) for _, value in _put_out(outputs, wanted, kwargs, handed))


def _put_out(
    outputs: Any, wanted: set[int], kwargs: Mapping[str, Any], handed: Mapping[str, Mapping[Any, Any]]
) -> list[tuple[Place, Any]]:
    """All that a block has put out for later ones, in a fixed order."""
    found: list[tuple[Place, Any]] = [(place, outputs[place]) for place in sorted(wanted) if outputs[place] is not None]
    for name, before in sorted(handed.items()):
        for key, value in kwargs[name].items():
            if before.get(key) is value:
                continue
            if isinstance(value, tuple | list):
                found += [((name, key, number), part) for number, part in enumerate(value)]
            else:
                found.append(((name, key, None), value))
    return found
