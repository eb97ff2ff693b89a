"""Finds what would be pruned of a model, from its configuration and tensor headers alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from reprune.errors import InputError, RepruneError, UnsupportedModelError, short
from reprune.model.block import LinearGroup
from reprune.model.decoder import Decoder
from reprune.model.linears import Linear, Stack, find_linears, find_routers, other_matrices
from reprune.planning.choice import Choice, fits, fits_place, of_all_experts
from reprune.planning.schedule import ranges
from reprune.planning.sparsities import Sparsities

_IDLE = 0.4  # of the weights in a block's linears; if more than this never run, something is wrong
_LARGE = 0.1  # of the weights in a block's matrices; a larger part stays dense only if the user excludes it


@dataclass(frozen=True)
class BlockSurvey:
    """Which matrices of one block are pruned, and which stay dense."""

    index: int
    groups: tuple[tuple[str, ...], ...]  # names of the linears to be pruned, by shared input
    shapes: dict[str, tuple[int, int]]  # (rows, columns) of every linear
    dense: tuple[str, ...]  # linears that the recipe's choice keeps dense
    routers: tuple[str, ...]  # linears that choose experts; they always stay dense
    idle: tuple[str, ...]  # linears that never run on text; they stay dense
    others: dict[str, tuple[int, ...]]  # matrices that are not the weight of a linear; they stay dense
    experts: dict[str, float]  # by linear of a stack of experts: the share of tokens that reach it by uniform routing
    stages: dict[str, str]  # by linear of an expert or a stack: the stage of its group, as in `LinearGroup`
    read: tuple[str, ...]  # idle linears whose weights are used, but not to multiply inputs by them as they are
    groups_known: bool  # False if it takes the block's weights to find which linears share inputs


@final
@dataclass(frozen=True)
class Survey:
    """All blocks of a model."""

    blocks: tuple[BlockSurvey, ...]
    refusals: tuple[str, ...]  # why the model cannot be pruned in this way; empty if it can
    notes: tuple[str, ...]  # parts of the recipe that have no effect on this model

    def check(self) -> None:
        """Raise `UnsupportedModelError` with all refusals, if there are any."""
        if self.refusals:
            raise UnsupportedModelError("\n".join(self.refusals))

    @property
    def pruned_weights(self) -> int:
        return sum(math.prod(block.shapes[name]) for block in self.blocks for group in block.groups for name in group)


def survey(decoder: Decoder, sparsities: Sparsities, choice: Choice) -> Survey:
    """Survey all blocks, without reading any weights.

    Raises:
        InputError: no linear of any block would be pruned, or a pattern of names in the choice or in
            `sparsity_by_name` fits nothing.
    """
    blocks: list[BlockSurvey] = []
    refusals: dict[str, list[int]] = {}  # the blocks that each refusal is about
    for index in range(len(decoder)):
        block, reasons = _survey_block(decoder, index, sparsities, choice)
        blocks.append(block)
        for reason in dict.fromkeys(reasons):
            refusals.setdefault(reason, []).append(index)
    places = {
        (block.index, name)
        for block in blocks
        for name in (*block.shapes, *other_matrices(decoder.skeleton.blocks[block.index]))
    }
    given = [("include", name) for name in choice.include] + [("exclude", name) for name in choice.exclude]
    for key, pattern in (*given, *(("sparsity_by_name", name) for name in sparsities.by_name)):
        if not any(fits_place(index, name, pattern) for index, name in places):
            there = ", ".join(sorted({name for _, name in places}))
            hint = _hint(decoder, pattern, places)
            raise InputError(f"{key}: {pattern!r} matches no matrix of a block{hint}; the matrices are {there:.2000}.")
    if not any(block.groups for block in blocks) and not refusals:
        raise InputError(
            f"{decoder.name}: no linear is left to prune in any block; see 'only', 'include' and 'exclude'."
        )
    said = (
        f"block {found[0]}: {reason}" if len(found) == 1 else f"blocks {ranges(found)}: {reason}"
        for reason, found in refusals.items()
    )
    return Survey(tuple(blocks), tuple(said), tuple(_idle_patterns(blocks, sparsities)))


def _idle_patterns(blocks: Sequence[BlockSurvey], sparsities: Sparsities) -> Iterator[str]:
    """Notes on names in `sparsity_by_name` that decide the sparsity of no linear."""
    places = [(block.index, name) for block in blocks for group in block.groups for name in group]
    deciding = {sparsities.naming(index, name) for index, name in places}
    for pattern in sparsities.by_name:
        if pattern not in deciding:
            yield (
                f"sparsity_by_name: {pattern!r} has no effect: all that it fits stays dense, or a name before it "
                "decides"
            )


def _hint(decoder: Decoder, pattern: str, places: set[tuple[int, str]]) -> str:
    """A hint for a pattern that fits nothing, if it fits a name within the whole model instead of a block."""
    skeleton = decoder.skeleton
    path = f"{skeleton.blocks_path}."
    within = pattern.removeprefix(path)
    if within != pattern and any(fits_place(index, name, within) for index, name in places):
        return f": give it with the block's number, {within!r}"
    for name, module in skeleton.model.named_modules():
        if fits(name, pattern) and not name.startswith(path) and [*module.parameters(recurse=False)]:
            return ": what is outside the blocks stays dense anyway"
    return ""


def _survey_block(
    decoder: Decoder, index: int, sparsities: Sparsities, choice: Choice
) -> tuple[BlockSurvey, list[str]]:
    """The survey of a block, and the reasons why it cannot be pruned, if any."""
    module = decoder.skeleton.blocks[index]
    refusals: list[str] = []
    stacks: tuple[Stack, ...] = ()
    try:
        stacks = decoder.weightless.stacks(index)
    except RepruneError:
        raise
    except Exception as error:  # a module may raise anything
        refusals.append(f"the matrices that it multiplies by cannot be found ({short(error)})")
    linears = find_linears(module, stacks)
    routers = find_routers(module, stacks)
    dense = choice.kept_dense(index, linears) - routers
    refusals += _misfits(index, [linear for linear in linears if linear.name not in dense | routers], sparsities)
    found = _groups(decoder, index)
    groups = [(linear.name,) for linear in linears] if found is None else [group.names for group in found]
    experts = {name for group in found or () if group.expert for name in group.names}
    stages = {name: group.stage for group in found or () if group.stage is not None for name in group.names}
    others = {
        name: shape for name, shape in other_matrices(module, stacks).items() if not choice.leaves_dense(index, name)
    }
    all_of = sum(math.prod(linear.shape) for linear in linears)
    whole = all_of + sum(map(math.prod, others.values()))
    refusals += _large_others(others, whole)
    running = {name for group in groups for name in group}
    idle = [linear for linear in linears if linear.name not in running | dense | routers]
    read = decoder.weightless.read(index) if idle else set()
    most = _IDLE * all_of if index in decoder.skeleton.running else math.inf
    refusals += _large_idle(idle, read, most, whole)
    left = (tuple(name for name in group if name not in dense | routers) for group in groups)
    return (
        BlockSurvey(
            index,
            groups=tuple(group for group in left if group),
            shapes={linear.name: linear.shape for linear in linears},
            dense=tuple(sorted(dense)),
            routers=tuple(sorted(routers)),
            idle=tuple(linear.name for linear in idle),
            others=others,
            experts={one.name: one.share for one in linears if one.name in experts and one.stack is not None},
            stages=stages,
            read=tuple(linear.name for linear in idle if linear.name in read),
            groups_known=found is not None,
        ),
        refusals,
    )


def _groups(decoder: Decoder, index: int) -> list[LinearGroup] | None:
    """A block's groups; None if they are found when it is loaded, as not every kernel runs on the meta device."""
    try:
        return decoder.weightless.groups(index)
    except RepruneError:
        raise
    except Exception:  # a module may raise anything
        return None


def _misfits(index: int, linears: Sequence[Linear], sparsities: Sparsities) -> Iterator[str]:
    """Refusals of a block's linears that their pattern does not fit."""
    for linear in linears:
        called = linear.name if linear.stack is None else of_all_experts(linear.name)
        try:
            sparsities.of(index, linear.name).check(linear.shape[1], called)
        except InputError as error:
            yield str(error)


def _large_others(others: Mapping[str, tuple[int, ...]], whole: int) -> Iterator[str]:
    """Refusals of matrices that are no linears' weights but a large part of a block, which has `whole` weights."""
    for name, shape in others.items():
        if math.prod(shape) > _LARGE * whole:
            yield (
                f"the matrix {name} {list(shape)} is not the weight of a linear, so it cannot be pruned, and it is "
                f"{math.prod(shape) / whole:.0%} of the block; leave it dense with --set 'exclude=[\"{name}\"]'"
            )


def _large_idle(idle: Sequence[Linear], read: Collection[str], most: float, whole: int) -> Iterator[str]:
    """Refusals of linears that never run but are a large part of a block, which has `whole` weights.

    Together they may have at most `most` weights; `read` names those whose weights are used.
    """
    all_idle = sum(math.prod(linear.shape) for linear in idle)
    much = all_idle > most
    for linear in idle:
        share, leave = math.prod(linear.shape) / whole, f"leave it dense with --set 'exclude=[\"{linear.name}\"]'"
        if linear.name not in read:
            if much:
                yield f"the linear {linear.name} never runs; {leave}"
        elif share > _LARGE or much:
            part = f"it is {share:.0%}" if share > _LARGE else f"all that do not run are {all_idle / whole:.0%}"
            yield (
                f"the weight of the linear {linear.name} is used, but inputs are not multiplied by it as it is, so it "
                f"cannot be pruned, and {part} of the block; {leave}"
            )
