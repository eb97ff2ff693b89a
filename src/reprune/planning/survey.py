"""What of a model would be pruned, known from its configuration and tensor headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from reprune.errors import InputError, RepruneError, UnsupportedModelError
from reprune.math.patterns import Pattern
from reprune.model.decoder import Decoder
from reprune.model.linears import find_linears, other_matrices
from reprune.planning.choice import Choice, fits


@dataclass(frozen=True)
class BlockSurvey:
    """One block: which of its matrices are pruned, which stay dense, which are in the way."""

    index: int
    groups: tuple[tuple[str, ...], ...]  # names of the linears to be pruned, by shared input
    shapes: dict[str, tuple[int, int]]  # (rows, columns) of every linear
    dense: tuple[str, ...]  # linears that stay dense as they were told to
    others: dict[str, tuple[int, ...]]  # matrices that are no linear's weight and are not excluded
    groups_known: bool = True  # False where only the block's weights will tell which linears share inputs


@final
@dataclass(frozen=True)
class Survey:
    """All blocks of a model."""

    blocks: tuple[BlockSurvey, ...]
    refusals: tuple[str, ...]  # why the model cannot be pruned so; empty where it can

    def check(self) -> None:
        """Raise `UnsupportedModelError` with all refusals, if there are any."""
        if self.refusals:
            raise UnsupportedModelError("\n".join(self.refusals))

    @property
    def pruned_weights(self) -> int:
        return sum(
            block.shapes[name][0] * block.shapes[name][1]
            for block in self.blocks
            for group in block.groups
            for name in group
        )


def survey(decoder: Decoder, pattern: Pattern, choice: Choice) -> Survey:
    """Go through all blocks on the meta device: no weight is read.

    Raises:
        InputError: no linear of any block would be pruned, or a pattern of `choice.exclude` fits nothing.
    """
    blocks, refusals = [], []
    for index in range(len(decoder)):
        block, problems = _survey_block(decoder, index, pattern, choice)
        blocks.append(block)
        refusals += problems
    names = {name for block in blocks for name in (*block.shapes, *_all_others(decoder, block.index))}
    for given in choice.exclude:
        if not any(fits(name, given) for name in names):
            raise InputError(f"exclude: {given!r} fits no matrix of a block; there are {', '.join(sorted(names))}.")
    if not any(block.groups for block in blocks) and not refusals:
        raise InputError(f"{decoder.folder.name}: no linear of any block is left to prune; see 'only' and 'exclude'.")
    return Survey(tuple(blocks), _merged(refusals))


def _all_others(decoder: Decoder, index: int) -> dict[str, tuple[int, ...]]:
    return other_matrices(decoder.skeleton.blocks[index])


def _survey_block(
    decoder: Decoder, index: int, pattern: Pattern, choice: Choice
) -> tuple[BlockSurvey, list[tuple[int, str]]]:
    module = decoder.skeleton.blocks[index]
    linears = find_linears(module)
    dense = choice.kept_dense(linears)
    others = {name: shape for name, shape in other_matrices(module).items() if not choice.leaves_dense(name)}
    refusals = [
        (
            index,
            f"the matrix {name} {list(shape)} is not the weight of a linear, so it cannot be pruned; "
            f"leave it dense with --set 'exclude=[\"{name}\"]'",
        )
        for name, shape in others.items()
    ]
    for linear in linears:
        if linear.name not in dense:
            try:
                pattern.check(linear.shape[1], linear.name)
            except InputError as error:
                refusals.append((index, str(error)))
    try:
        found = decoder.groups_without_weights(index)
        known = True
    except RepruneError:
        raise
    except Exception:  # not every kernel runs on the meta device; the groups show when the block is loaded
        found, known = [(linear.name,) for linear in linears], False
    running = {name for group in found for name in group}
    refusals += [
        (index, f"the linear {linear.name} never runs; leave it dense with --set 'exclude=[\"{linear.name}\"]'")
        for linear in linears
        if linear.name not in running and linear.name not in dense
    ]
    groups = tuple(tuple(name for name in group if name not in dense) for group in found)
    return (
        BlockSurvey(
            index,
            tuple(group for group in groups if group),
            {linear.name: linear.shape for linear in linears},
            tuple(sorted(dense)),
            others,
            known,
        ),
        refusals,
    )


def _merged(refusals: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """One line for the same refusal of many blocks."""
    blocks: dict[str, list[int]] = {}
    for index, reason in refusals:
        blocks.setdefault(reason, []).append(index)
    return tuple(
        f"block {found[0]}: {reason}" if len(found) == 1 else f"blocks {ranges(found)}: {reason}"
        for reason, found in blocks.items()
    )


def ranges(numbers: Sequence[int]) -> str:
    """0-3, 5 for [0, 1, 2, 3, 5]."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
