"""Prunes one block: finds its linear groups and, group by group, gathers statistics and runs the pruner."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from reprune.engine.frontier import Frontier
from reprune.engine.group_statistics import Inputs, Known, gathered, passes
from reprune.engine.refitting import Refitting
from reprune.engine.window import PrunedBlock, pruned_before
from reprune.errors import UnsupportedModelError, naming
from reprune.math.checked import Checked
from reprune.math.magnitude import Magnitude
from reprune.math.pruner import Pruned, Pruner
from reprune.math.ranks import Ranks
from reprune.math.statistics import Statistics
from reprune.model.block import Block, Call, LinearGroup
from reprune.model.streams import Stream
from reprune.planning.choice import Choice
from reprune.planning.sparsities import Sparsities

_NAMED = 8  # linears, or experts, that a note names


@torch.no_grad()
def linear_groups(block: Block, states: Tensor, call: Call, kept_dense: Collection[str]) -> list[LinearGroup]:
    """The linear groups that are to be pruned; a linear that never runs is in none.

    Args:
        block: the dense block.
        states, call: a batch of what reaches it.
        kept_dense: names of linears that stay dense.
    """
    found = block.groups(states, call)
    left = [
        replace(group, linears=tuple(one for one in group.linears if one.name not in kept_dense)) for group in found
    ]
    return [group for group in left if group.linears]


def find_groups_(pruned: PrunedBlock, entering: Stream, frontier: Frontier, choice: Choice) -> None:
    """Set a dense block's groups to be pruned, which the first rank finds by running it on a few of its inputs."""
    ranks = frontier.ranks
    if ranks.first:
        states, call = frontier.few(entering, pruned.block)
        kept_dense = choice.kept_dense(pruned.index, pruned.block.linears) | pruned.block.routers
        pruned.groups = linear_groups(pruned.block, states, call, kept_dense)
    if not ranks.alone:
        told = ranks.tell([[list(group.names), group.once, group.expert, group.stage] for group in pruned.groups])
        by_name = {linear.name: linear for linear in pruned.block.linears}
        pruned.groups = [
            LinearGroup(tuple(by_name[name] for name in names), once, expert, stage)
            for names, once, expert, stage in told
        ]


@torch.no_grad()
def prune_block_(
    pruned: PrunedBlock,
    inputs: Inputs,
    pruner: Pruner[Any],
    sparsities: Sparsities,
    sequential: bool,
    known: Known,
    min_tokens: int,
    ranks: Ranks,
    refitting: Refitting | None = None,
) -> list[str]:
    """Choose the masks of a block's linears, and set their weights to the pruner's or the refitting's.

    Args:
        pruned: the dense block with its groups and without masks; changed in place.
        inputs: the states that reach it in the sparse model, over the samples that statistics are gathered from.
        pruner, sparsities: how to prune.
        sequential: gather each group's statistics after the groups before it have been pruned; otherwise all
            statistics come from the dense block.
        known: statistics gathered earlier from the same block, inputs and precision; new ones are added.
        min_tokens: an expert reached by fewer tokens than this, or by none, is pruned by magnitude.
        ranks: the processes that share the samples; each group is pruned by one of them, which tells the others.
        refitting: fit each group by least squares once it is pruned; statistics are then sequential.

    Returns:
        Notes on exceptions from the plain rule.

    Raises:
        NumericalError: the pruner cannot use the numbers.
        UnsupportedModelError: no calibration token was seen to reach a group, or any expert of a stage.
    """
    job = _Job(pruned, inputs, pruner, sparsities, {} if sequential else known, max(min_tokens, 1), ranks)
    notes: list[str] = []
    for together in _stages(pruned.groups) if sequential or refitting is not None else [pruned.groups]:
        if refitting is None:
            notes += job.prune_(together)
        elif not any(group.expert for group in together):
            for group in together:
                notes += job.refit_(group, refitting)
        else:
            notes += job.prune_(together)
            notes.append(
                f"{_place(pruned, together)}: not fitted by least squares: each expert reads tokens of its own"
            )
    _require_tokens(pruned)
    return notes + job.other_shares()


def _require_tokens(pruned: PrunedBlock) -> None:
    """Raise `UnsupportedModelError` if no token was seen to reach any expert of a stage."""
    reached: dict[str, int] = {}  # by stage
    for group in (group for group in pruned.groups if group.expert):
        stage = group.stage or ""
        reached[stage] = reached.get(stage, 0) + pruned.tokens[group.names[0]]
    if blind := next((stage for stage, tokens in reached.items() if not tokens), None):
        raise UnsupportedModelError(
            f"block {pruned.index}: no token was seen to reach the experts of {blind}; if --set "
            f"precision=float32 does not help, leave them dense with --set 'exclude=[\"{blind}*\"]'."
        )


def _stages(groups: Sequence[LinearGroup]) -> list[list[LinearGroup]]:
    """Groups by stage, in order: those of one stage are independent; a group without one is a stage of its own."""
    found: dict[int | str, list[LinearGroup]] = {}
    for number, group in enumerate(groups):
        found.setdefault(number if group.stage is None else group.stage, []).append(group)
    return list(found.values())


@final
@dataclass(frozen=True)
class _Job:
    """What the pruning of all groups of a block has in common."""

    pruned: PrunedBlock
    inputs: Inputs
    pruner: Pruner[Any]
    sparsities: Sparsities
    known: Known
    min_tokens: int
    ranks: Ranks

    def prune_(self, groups: Sequence[LinearGroup]) -> list[str]:
        """Prune groups by statistics of the block as it is now; returns notes."""
        notes: list[str] = []
        results: list[tuple[LinearGroup, list[Pruned] | None]] = []
        poor: dict[str, list[LinearGroup]] = {}  # by stage: experts that too few tokens reach
        parts = passes(groups, self.pruner)
        # Results are held back only if a later pass still needs the unpruned block for statistics, or if other
        # processes prune their groups meanwhile; otherwise each is set at once, to save memory.
        at_once = len(parts) == 1 and self.ranks.alone
        for together in parts:
            for group, statistics in zip(together, self._statistics(together), strict=True):
                if group.expert:
                    stage = group.stage or ""
                    self.pruned.tokens |= dict.fromkeys(group.names, statistics.tokens)
                    if self._is_poor(group, statistics):
                        poor.setdefault(stage, []).append(group)
                if at_once:
                    notes += self._set_(group, self._results(group, statistics), 0)
                    continue
                mine = len(results) % self.ranks.count == self.ranks.number
                results.append((group, self._results(group, statistics) if mine else None))
        for number, (group, found) in enumerate(results):
            notes += self._set_(group, found, number % self.ranks.count)
        return notes + [self._note(stage, few) for stage, few in poor.items()]

    def refit_(self, group: LinearGroup, refitting: Refitting) -> list[str]:
        """Prune a group's matrices and fit the kept weights; returns notes."""
        place = _place(self.pruned, [group])
        statistics = self.pruner.statistics(group.columns, self.pruned.block.device)
        pairs = refitting.gather(self.pruned.block, group, statistics)
        if isinstance(pairs, str):
            return [*self.prune_([group]), f"{place}: not fitted by least squares: {pairs}"]
        results, ridge = None, None
        if self.ranks.first:
            results = self._results(group, statistics)
            with naming(place):
                fit = refitting.refit(group, results, pairs)
            ridge = fit.ridge
            results = [replace(result, weight=weight) for result, weight in zip(results, fit.weights, strict=True)]
        self.pruned.ridges[group.names] = self.ranks.tell(ridge)
        return self._set_(group, results, 0)

    def other_shares(self) -> list[str]:
        """A note if another package's pruner pruned a different share of some matrices than it was asked to."""
        if not isinstance(self.pruner, Checked):
            return []
        told: list[str] = []
        for name, mask in self.pruned.masks.items():
            found, asked = 1.0 - float(mask.float().mean()), self.sparsities.of(self.pruned.index, name).sparsity
            if abs(found - asked) > 0.5 / mask.shape[1] + 0.01:
                told.append(f"{found:.1%} of {name} instead of {asked:.1%}")
        if not told:
            return []
        return [
            f"block {self.pruned.index}: pruner {self.pruner.name} did not prune the share asked for in {len(told)} "
            f"of {len(self.pruned.masks)} matrices, for example {told[0]}"
        ]

    def _results(self, group: LinearGroup, statistics: Statistics) -> list[Pruned]:
        pruner: Pruner[Any] = Magnitude() if self._is_poor(group, statistics) else self.pruner
        found: dict[str, Pruned] = {}
        patterns = {name: self.sparsities.of(self.pruned.index, name) for name in group.names}
        with naming(_place(self.pruned, [group])):
            for pattern in dict.fromkeys(patterns.values()):
                linears = [linear for linear in group.linears if patterns[linear.name] == pattern]
                results = pruner.prune([linear.matrix() for linear in linears], statistics, pattern)
                found |= {linear.name: result for linear, result in zip(linears, results, strict=True)}
        return [found[name] for name in group.names]

    def _set_(self, group: LinearGroup, results: Sequence[Pruned] | None, source: int) -> list[str]:
        """Set a group's masks and weights to the results of rank `source` (None on the others); returns its notes."""
        if results is None:
            device = self.pruned.block.device
            results = [
                Pruned(
                    torch.empty(linear.shape, device=device), torch.empty(linear.shape, dtype=torch.bool, device=device)
                )
                for linear in group.linears
            ]
        for linear, result in zip(group.linears, results, strict=True):
            self.ranks.copy_([result.weight, result.mask], source)
            linear.set_(result.weight)
            self.pruned.masks[linear.name] = result.mask
        said = self.ranks.tell(list(dict.fromkeys(note for result in results for note in result.notes)), source)
        return [f"{_place(self.pruned, [group])}: {note}" for note in said]

    def _statistics(self, groups: Sequence[LinearGroup]) -> list[Statistics]:
        known = self.known if len(groups) == len(self.pruned.groups) else {}
        return gathered(self.pruned.block, self.inputs, groups, self.pruner, known, self.ranks)

    def _is_poor(self, group: LinearGroup, statistics: Statistics) -> bool:
        """Whether too few tokens reach an expert for the pruner."""
        return group.expert and statistics.tokens < self.min_tokens

    def _note(self, stage: str, few: Sequence[LinearGroup]) -> str:
        experts = sum(group.stage == stage for group in self.pruned.groups)
        names = ", ".join(
            f"{group.linears[0].name} ({self.pruned.tokens[group.linears[0].name]})" for group in few[:_NAMED]
        )
        more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
        tokens = f"fewer than {self.min_tokens} tokens" if self.min_tokens > 1 else "no token"
        return (
            f"block {self.pruned.index}: {len(few)} of {experts} experts of {stage} were reached by {tokens} and are "
            f"pruned by magnitude: {names}{more}"
        )


def held_notes(pruned: PrunedBlock) -> list[str]:
    """Notes on matrices that are not pruned now but keep earlier zeros, of a block whose masks have been chosen."""
    left = [linear for linear in pruned.block.linears if linear.name not in pruned.masks]
    if not (names := [linear.name for linear in left if pruned_before(linear) is not None]):
        return []
    why = "not pruned, but a quarter or more is zero, as after an earlier pruning: the zeros stay"
    return [f"{_of_linears(pruned, names)}: {why}"]


def _place(pruned: PrunedBlock, groups: Sequence[LinearGroup]) -> str:
    return _of_linears(pruned, [name for group in groups for name in group.names])


def _of_linears(pruned: PrunedBlock, names: Sequence[str]) -> str:
    return f"block {pruned.index}, {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
