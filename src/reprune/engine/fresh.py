"""Prunes the blocks of a window that are dense until then, from the states that reach each of them.

The statistics of a linear group come from one pass of the samples through its dense block. Where the same pass of the
same states makes the window's targets too (one block, a local teacher), it is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, final

from reprune.engine.frontier import Frontier
from reprune.engine.pruning import Known, find_groups_, gathering, held_notes, passes, prune_block_
from reprune.engine.refitting import Refitting
from reprune.engine.watcher import Watcher
from reprune.engine.window import PrunedBlock
from reprune.math.least_squares import LeastSquares
from reprune.math.pruner import Pruner
from reprune.model.decoder import Decoder
from reprune.model.streams import Stream
from reprune.planning.recipe import Recipe
from reprune.planning.sparsities import Sparsities


@final
class FreshBlocks:
    """How the fresh blocks of all windows are pruned."""

    def __init__(
        self,
        recipe: Recipe,
        pruner: Pruner[Any],
        sparsities: Sparsities,
        least_squares: LeastSquares | None,
        decoder: Decoder,
        frontier: Frontier,
        of_first: Known | None,
    ) -> None:
        """
        Args:
            recipe: what else decides it.
            pruner, sparsities, least_squares: by what.
            decoder: the dense model.
            frontier: the streams.
            of_first: statistics of block 0, which runs before have gathered; takes those of this one.
        """
        self._recipe = recipe
        self._pruner = pruner
        self._sparsities = sparsities
        self._least_squares = least_squares
        self._decoder = decoder
        self._frontier = frontier
        self._of_first = of_first
        self._on_the_way: Known = {}

    def gathering(self, blocks: Sequence[PrunedBlock]) -> AbstractContextManager[None] | None:
        """Has the pass that makes the targets of these blocks gather their statistics, where it can."""
        apart = self._recipe.pruner.sequential or self._least_squares is not None
        lone = len(blocks) == 1 and not blocks[0].masks
        if not lone or self._recipe.teacher != "local" or apart or not self._frontier.statistics_aside:
            return None
        self._find_groups_(blocks[0], self._frontier.student)
        if len(passes(blocks[0].groups, self._pruner)) > 1:
            return None
        return gathering(blocks[0].block, blocks[0].groups, self._pruner, self._known(blocks[0]), self._frontier.ranks)

    def prune_(
        self, fresh: Sequence[PrunedBlock], open_blocks: Sequence[PrunedBlock], streams: ExitStack, watcher: Watcher
    ) -> tuple[list[str], Stream | None]:
        """Prune a window's fresh blocks, one after the other.

        Args:
            fresh: changed in place.
            open_blocks: those of the window that were pruned before.
            streams: is given what holds the states returned.
            watcher: is told what was not done by the plain rule.

        Returns:
            What it was told, and the states that enter the last of them; None where there is none.
        """
        before = [pruned.block for pruned in open_blocks]
        notes: list[str] = []
        entering: Stream | None = None
        for pruned in fresh:
            streams.close()
            entering = streams.enter_context(self._frontier.through(before))
            self._find_groups_(pruned, entering)
            found = prune_block_(
                pruned,
                partial(self._frontier.inputs, entering, pruned.block),
                self._pruner,
                self._sparsities,
                self._recipe.pruner.sequential,
                self._known(pruned),
                self._refitting(pruned.index, entering),
                self._recipe.pruner.min_tokens,
                self._frontier.ranks,
            )
            self._on_the_way.clear()  # Gram matrices take memory
            if self._recipe.solver.name != "none" or self._recipe.distill.blocks:
                found += held_notes(pruned)
            for note in found:
                watcher.note(note)
            notes += found
            before.append(pruned.block)
        return notes, entering

    def _known(self, pruned: PrunedBlock) -> Known:
        return self._of_first if self._of_first is not None and pruned.index == 0 else self._on_the_way

    def _find_groups_(self, pruned: PrunedBlock, entering: Stream) -> None:
        if not pruned.groups:
            some = partial(self._frontier.few, entering, pruned.block)
            find_groups_(pruned, some, self._recipe.choice, self._frontier.ranks)

    def _refitting(self, index: int, entering: Stream) -> Refitting | None:
        if self._least_squares is None:
            return None
        twin = self._decoder.load(index)  # pruning changes the other in place
        pairs = partial(self._frontier.pairs, entering, twin, self._recipe.teacher)
        frontier = self._frontier
        return Refitting(
            self._least_squares,
            twin,
            pairs,
            frontier.calibration,
            frontier.statistics_samples,
            frontier.statistics_of_all,
            frontier.ranks,
        )
