"""The paper's algorithm: prune and reconstruct window after window, each durable before the next begins.

LR, BR, GP and CR are not branches of this loop but its arguments: the schedule's window size, the teacher, and the
solver (see `reprune.planning.recipe.RUNG_SETTINGS`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from reprune.engine.agreement import agree_
from reprune.engine.allocate import allocate
from reprune.engine.books import Books
from reprune.engine.dense import Dense
from reprune.engine.distillation import distill
from reprune.engine.failures import failure_notes, float16_advice
from reprune.engine.fresh import FreshBlocks
from reprune.engine.frontier import Frontier
from reprune.engine.peak_memory import forget_peak_memory
from reprune.engine.record import block_record, conditions, exchange_record, window_record
from reprune.engine.shared import Shared
from reprune.engine.watcher import Watcher
from reprune.engine.window import PrunedBlock, WindowProblem
from reprune.errors import NumericalError
from reprune.math.adam import Adam
from reprune.math.pruner import Pruner
from reprune.math.seeds import seed_of
from reprune.math.solver import Fit, Solver
from reprune.model.block import Block
from reprune.model.decoder import Decoder
from reprune.model.full_speed import full_speed
from reprune.model.streams import StreamStore
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window, once_more, windows


@final
@dataclass(frozen=True)
class Methods:
    """A recipe's pruner, solver, schedule and distillation, as objects."""

    pruner: Pruner[Any]
    solver: Solver
    schedule: list[Window]
    distillation: tuple[Adam, Window] | None  # the descent that fits the last blocks once more, and these blocks

    @staticmethod
    def of(recipe: Recipe, blocks: int) -> Methods:
        schedule = windows(blocks, recipe.schedule.size, recipe.schedule.stride)
        descent = recipe.build_distillation()
        return Methods(
            recipe.build_pruner(),
            recipe.solver.build(recipe.guard),
            schedule,
            None if descent is None else (descent, once_more(len(schedule), blocks, recipe.distill.blocks)),
        )

    def batch_sizes(self, samples: int) -> set[int]:
        """The batch sizes in which a fit passes samples through a block, out of `samples` in all."""
        found = self.solver.batch_sizes(samples)
        return found if self.distillation is None else found | self.distillation[0].batch_sizes(samples)

    @property
    def steps(self) -> list[Window]:
        """All windows, and distillation if there is one: each is committed when it is finished."""
        return self.schedule if self.distillation is None else [*self.schedule, self.distillation[1]]


@full_speed()
def run_windows(
    recipe: Recipe,
    decoder: Decoder,
    books: Books,
    watcher: Watcher,
    shared: Shared | None,
    statistics_samples: int | None,
) -> None:
    """Do all steps of a settled recipe that the books do not hold yet.

    The pruner's statistics come from the first `statistics_samples` calibration samples; None means all.

    Raises:
        NumericalError: a value is not finite, or cannot be used; finished steps stay finished.
        ChangedError: a file of the model has changed since it was opened; finished steps stay finished.
    """
    forget_peak_memory(recipe.device)
    methods = Methods.of(recipe, len(decoder))
    done = books.done()
    watcher.started(len(methods.steps), done)
    if done >= len(methods.steps):
        return
    torch.manual_seed(recipe.seed)
    books.clear_streams()  # left behind by a process that was killed
    # The store closes its files however the run ends; left open, they would keep taking room on the disk.
    with StreamStore(int(recipe.streams.memory), books.streams) as store, _naming_float16(decoder):
        watcher.phase(None, "embedding the samples")
        calibration, heldout = books.samples()
        frontier = Frontier(
            decoder,
            calibration,
            heldout,
            recipe.solver.samples_at_a_time,
            store,
            shared,
            statistics_samples,
            methods.batch_sizes(len(calibration)),
            books.ranks,
            None if methods.distillation is None else methods.distillation[1].blocks[0],
        )
        for index in (index for window in methods.schedule[:done] for index in window.retired):
            watcher.phase(None, f"replaying block {index}")
            frontier.replay(decoder.load(index), decoder.load(index, books.retired(index)))
        still_open = books.open_blocks(decoder)
        sparsities = recipe.sparsities
        if recipe.allocation.name != "uniform":
            if (shares := books.allocation()) is None:
                shares = allocate(recipe, methods.pruner, decoder, frontier, watcher)
                decoder.checkpoint.check_unchanged()
                books.keep_allocation(shares)
            sparsities = sparsities.allocated(shares)
        of_first = shared.statistics if shared is not None else None
        pruning = FreshBlocks(recipe, methods.pruner, sparsities, decoder, frontier, of_first)
        doing = _Windows(recipe, methods, decoder, books, watcher, frontier, pruning)
        for window in methods.schedule[done:]:
            still_open = doing.do(window, still_open)
        if methods.distillation is not None:
            distill(recipe, *methods.distillation, decoder, books, watcher, frontier, sparsities)
    decoder.forget_samples()  # while the rest of the result is written
    books.clear_streams()


@contextmanager
def _naming_float16(decoder: Decoder) -> Iterator[None]:
    """Add to a `NumericalError` that products were in float16, if they were: resuming would fail in the same way."""
    try:
        yield
    except NumericalError as error:
        if not float16_advice(decoder):
            raise
        raise NumericalError(f"{error}{float16_advice(decoder)}") from None


@final
@dataclass(frozen=True)
class _Windows:
    """What the steps of all windows have in common."""

    recipe: Recipe
    methods: Methods
    decoder: Decoder
    books: Books
    watcher: Watcher
    frontier: Frontier
    pruning: FreshBlocks

    def do(self, window: Window, still_open: list[PrunedBlock]) -> list[PrunedBlock]:
        """Prune and reconstruct a window, and commit it.

        Takes the window's blocks that earlier windows left open; returns those that it leaves open itself. It keeps no
        other block, so that the next window's blocks can take their memory.
        """
        recipe, books, watcher, frontier = self.recipe, self.books, self.watcher, self.frontier
        ranks = frontier.ranks
        began, traffic = time.monotonic(), replace(ranks.traffic)
        watcher.phase(window, "targets")
        fresh = [PrunedBlock(self.decoder.load(index)) for index in window.fresh]
        blocks = still_open + fresh
        gathering = self.pruning.gathering(blocks)
        loaded = {pruned.index: pruned.block for pruned in fresh}

        def dense(index: int) -> Block:
            return loaded[index] if index in loaded else self.decoder.load(index)

        with frontier.targets(window, dense, recipe.teacher, gathering) as targets, ExitStack() as streams:
            said = self._route(blocks, fresh, dense) if recipe.solver.repeats_routes else []

            watcher.phase(window, "pruning")
            notes, entering = self.pruning.prune_(fresh, still_open, streams, watcher)

            watcher.phase(window, "reconstruction")
            features = frontier.features_of(targets) if recipe.solver.name != "none" else None
            problem = WindowProblem(
                frontier,
                blocks,
                targets,
                entering_last=entering,
                checkpointing=recipe.solver.checkpointing,
                features=features,
                standardized=recipe.solver.standardizes,
                teacher_forcing=recipe.solver.teacher_forcing,
            )
            fit = self._fit(window, problem)
            failed = failure_notes(str(window), fit.failures, self.decoder)
            for note in failed:
                watcher.note(note)
            streams.close()
            agree_(blocks, ranks)

            watcher.phase(window, "advancing")
            retired = [pruned for pruned in blocks if pruned.index in window.retired]
            written: dict[str, str] = {}
            for pruned in retired:
                written |= books.write_block(pruned.index, pruned.round_(self.decoder))
            advanced = [pruned.block for pruned in blocks]
            errors, block_errors = frontier.advance(window, advanced, targets, features and features.scale)
            if not errors.finite:
                fitted = "its reconstruction" if fit.epochs else "pruning"
                raise NumericalError(f"{window}: its outputs are not finite after {fitted}")
            # Under a local teacher, no target shows that the dense model's own states are not finite.
            if strange := [index for index, one in block_errors.items() if not one.finite]:
                raise NumericalError(f"block {strange[0]}: its outputs, or the dense model's, are not finite")
        open_ = [pruned for pruned in blocks if pruned.index not in window.retired]
        notes = said + notes + failed
        record = window_record(window, fit, errors, recipe.solver, features, fresh, notes, time.monotonic() - began)
        self.decoder.checkpoint.check_unchanged()  # on each rank, before any can commit
        record |= exchange_record(ranks, traffic)
        sparsities = self.pruning.sparsities
        entry = {
            "window": record,
            "blocks": [block_record(one, block_errors[one.index], sparsities, recipe.choice) for one in retired],
            **conditions(ranks, recipe.device),
        }
        if window is self.methods.schedule[-1]:
            entry["forward"] = frontier.probe_record()
        books.commit(window, entry, written, open_)
        watcher.window_done(window, record)
        return open_

    def _route(self, blocks: Sequence[PrunedBlock], fresh: Sequence[PrunedBlock], dense: Dense) -> list[str]:
        """Let blocks repeat the dense model's choices of experts; returns the notes that the watcher was given."""
        for pruned in blocks:
            if pruned.routes is None and pruned.block.routed:
                pruned.routes = self.frontier.routes(dense(pruned.index))
        notes = [
            f"block {pruned.index}: solver.routing teacher has no effect, as its experts are not chosen by topk"
            for pruned in fresh
            if pruned.routes is not None and not pruned.routes.found
        ]
        for note in notes:
            self.watcher.note(note)
        return notes

    def _fit(self, window: Window, problem: WindowProblem) -> Fit:
        if not problem.parameters:  # text passes through none of its blocks
            return Fit()
        seed = seed_of(self.recipe.seed, window.index)
        planned = self.methods.solver.planned(len(window.blocks))
        with problem.fitting(str(window)):
            return self.methods.solver.fit(problem, seed, lambda epoch: self.watcher.epoch(window, epoch, planned))
