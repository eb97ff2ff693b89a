"""Prunes a window's fresh blocks, which are dense until then, from the states that reach each of them.

The statistics of a block's linear groups come from one pass of the samples through the dense block. If that pass also
makes the window's targets (one block, a local teacher), it is made only once.
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
    of_first: Known | None  # statistics of block 0 that earlier runs gathered; new ones are added
    _on_the_way: Known = field(default_factory=dict, init=False)

    def gathering(self, blocks: Sequence[PrunedBlock]) -> AbstractContextManager[None] | None:
        """A context in which the pass that makes these blocks' targets gathers their statistics; None if it cannot."""
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
        """Prune a window's fresh blocks in place, one after the other; earlier windows pruned its `open_blocks`.

        Returns:
            The notes that the watcher was given, and the states that enter the last fresh block (held by `streams`),
            or None if there is no fresh block.
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
            self._on_the_way.clear()  # Gram matrices take much memory
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
        twin = self.decoder.load(index)  # a dense copy: pruning changes the block in place
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
