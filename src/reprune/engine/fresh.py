"""Prunes the blocks of a window that are dense until then, from the states that reach each of them.

The statistics of a linear group come from one pass of the samples through its dense block. Where the same pass of the
same states makes the window's targets too (one block, a local teacher), it is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

from reprune.engine.frontier import Frontier
from reprune.engine.group_statistics import Known, gathering, passes
from reprune.engine.pruning import find_groups_, held_notes, prune_block_
from reprune.engine.refitting import Refitting
from reprune.engine.watcher import Watcher
from reprune.engine.window import PrunedBlock
from reprune.math.pruner import Pruner
from reprune.model.decoder import Decoder
from reprune.model.streams import Stream
from reprune.planning.recipe import Recipe
from reprune.planning.sparsities import Sparsities


@final
@dataclass(frozen=True)
class FreshBlocks:
    """How the fresh blocks of all windows are pruned."""

    recipe: Recipe
    pruner: Pruner[Any]
    sparsities: Sparsities
    decoder: Decoder  # the dense model
    frontier: Frontier
    of_first: Known | None  # statistics of block 0, which runs before have gathered; takes those of this one
    _on_the_way: Known = field(default_factory=dict, init=False)

    def gathering(self, blocks: Sequence[PrunedBlock]) -> AbstractContextManager[None] | None:
        """Has the pass that makes the targets of these blocks gather their statistics, where it can."""
        apart = self.recipe.pruner.sequential or self.recipe.solver.start == "least-squares"
        lone = len(blocks) == 1 and not blocks[0].masks
        if not lone or self.recipe.teacher != "local" or apart or not self.frontier.statistics_aside:
            return None
        self._find_groups_(blocks[0], self.frontier.student)
        if len(passes(blocks[0].groups, self.pruner)) > 1:
            return None
        return gathering(blocks[0].block, blocks[0].groups, self.pruner, self._known(blocks[0]), self.frontier.ranks)

    def prune_(
        self, fresh: Sequence[PrunedBlock], open_blocks: Sequence[PrunedBlock], streams: ExitStack, watcher: Watcher
    ) -> tuple[list[str], Stream | None]:
        """Prune a window's fresh blocks in place, one after the other; `open_blocks` of it were pruned before.

        Returns:
            What the watcher was told, and the states that enter the last of them, which are held by `streams`; None
            where there is none.
        """
        before = [pruned.block for pruned in open_blocks]
        notes: list[str] = []
        entering: Stream | None = None
        for pruned in fresh:
            streams.close()
            entering = streams.enter_context(self.frontier.through(before))
            self._find_groups_(pruned, entering)
            found = prune_block_(
                pruned,
                partial(self.frontier.inputs, entering, pruned.block),
                self.pruner,
                self.sparsities,
                self.recipe.pruner.sequential,
                self._known(pruned),
                self.recipe.pruner.min_tokens,
                self.frontier.ranks,
                self._refitting(pruned.index, entering),
            )
            self._on_the_way.clear()  # Gram matrices take memory
            if self.recipe.solver.name != "none" or self.recipe.distill.blocks:
                found += held_notes(pruned)
            for note in found:
                watcher.note(note)
            notes += found
            before.append(pruned.block)
        return notes, entering

    def _known(self, pruned: PrunedBlock) -> Known:
        return self.of_first if self.of_first is not None and pruned.index == 0 else self._on_the_way

    def _find_groups_(self, pruned: PrunedBlock, entering: Stream) -> None:
        if not pruned.groups:
            find_groups_(pruned, entering, self.frontier, self.recipe.choice)

    def _refitting(self, index: int, entering: Stream) -> Refitting | None:
        if (least_squares := self.recipe.solver.build_least_squares()) is None:
            return None
        twin = self.decoder.load(index)  # pruning changes the other in place
        frontier = self.frontier
        return Refitting(
            least_squares,
            twin,
            partial(frontier.pairs, entering, twin, self.recipe.teacher),
            frontier.calibration,
            frontier.statistics_samples,
            frontier.statistics_of_all,
            frontier.ranks,
        )
