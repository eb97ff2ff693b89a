"""What a run would do, would be refused for, and would take: known before any weight is read."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch

from reprune.doors.devices import DTYPES, slowness
from reprune.doors.found import find_model
from reprune.doors.generation.selfmade import texts_of, unwritten
from reprune.doors.given import made_recipe
from reprune.doors.prepare import (
    check_dense,
    check_disk,
    check_distillation,
    check_memory,
    check_out,
    check_schedule,
    check_texts,
    count_samples,
    open_decoder,
    refusal,
    settle,
    settle_seqlen,
)
from reprune.engine.exchange import Crew, find_network
from reprune.engine.forecast import ONE_PROCESS, Forecast, forecast
from reprune.engine.machines import Machine, find_machine
from reprune.engine.peak_memory import resident_bytes
from reprune.engine.speed import Speed, measure_speed
from reprune.engine.watcher import Watcher
from reprune.engine.work import Group, Work
from reprune.errors import InputError
from reprune.files.local import local_path
from reprune.model.block import Precision
from reprune.model.decoder import Decoder
from reprune.model.undisturbed import undisturbed
from reprune.model.whole import whole_bytes
from reprune.planning.recipe import Recipe
from reprune.planning.schedule import Window, windows
from reprune.planning.sources import find_source, parse_source
from reprune.planning.survey import Survey, survey

_IN_ONE = 8  # GPUs of a machine


@final
@dataclass(frozen=True)
class Plan:
    """What `prune` would do with the same arguments."""

    recipe: Recipe  # for `prune`; of another machine's run, device and precision are as asked for
    decoder: Decoder
    survey: Survey
    machine: Machine | None  # that the run is forecast for; None is this one
    crew: Crew  # the processes
    out: Path | None  # the folder to write, where it is said

    @cached_property
    def refusals(self) -> tuple[str, ...]:
        """Why `prune` would refuse, a line each: by the model, the memory and disk that are here, its texts.

        It may refuse texts that are `unread`, too.
        """
        checks: list[Callable[[], object]] = []
        if self.machine is None:
            checks.append(lambda: check_memory(self.recipe, self.decoder, self.texts))
        if (out := self.out) is not None:
            checks.append(lambda: check_out(out))
            checks.append(lambda: check_disk(self.recipe, self.decoder, sum(self.samples), out))
        checks.append(lambda: check_texts(self.recipe, self.decoder))
        return (*self.survey.refusals, *(said for check in checks if (said := refusal(check)) is not None))

    @property
    def unread(self) -> tuple[str, ...]:
        """The sources whose texts no plan reads: those of the Hub, and what the model is to write itself."""
        named = dict.fromkeys(parse_source(one).name for one in (*self.recipe.calibration, *self.recipe.heldout))
        own = ["the model's own texts"] if self.recipe.self_generate.samples else []
        return (*(name for name in named if not find_source(name).local), *own)

    @property
    def schedule(self) -> list[Window]:
        """The windows, without a distillation after them."""
        return windows(len(self.decoder), self.recipe.schedule.size, self.recipe.schedule.stride)

    @cached_property
    def samples(self) -> tuple[int, int]:
        """How many there are to calibrate on, and held out."""
        return count_samples(self.recipe)

    @property
    def weights(self) -> int:
        """How many the model has."""
        return sum(math.prod(entry.shape) for entry in self.decoder.checkpoint.entries.values())

    @property
    def bytes(self) -> int:
        """Of its files."""
        return self.decoder.checkpoint.bytes

    @property
    def folder(self) -> Path:
        """The model's."""
        return self.decoder.folder

    @cached_property
    def texts(self) -> int:
        """How many texts the model will write itself before; none where they are in the cache of this machine."""
        return unwritten(self.recipe, self.decoder) if self.machine is None else texts_of(self.recipe)

    @property
    def products(self) -> str:
        """The precision of products; `auto`, which only the recipe of another machine's run still says, is a GPU's."""
        return "bfloat16" if self.recipe.precision == "auto" else self.recipe.precision

    def _writer_bytes(self, texts: int) -> int:
        return whole_bytes(self.folder, Precision(DTYPES[self.products]), self.recipe.trust_remote_code) if texts else 0

    @cached_property
    @undisturbed()
    def _work(self) -> Work:
        recipe, decoder = self.recipe, self.decoder
        assert recipe.seqlen is not None
        return Work(
            decoder.costs(recipe.seqlen, None if self.machine is None else "cuda"),
            [
                [
                    Group.of((block.shapes[name] for name in names), block.experts.get(names[0]))
                    for names in block.groups
                ]
                for block in self.survey.blocks
            ],
            self.schedule,
            *self.samples,
            recipe.seqlen,
            [decoder.block_bytes(index) for index in range(len(decoder))],
            decoder.outside_bytes(),
            decoder.head_shape,
        )

    @cached_property
    @undisturbed()
    def forecast(self) -> Forecast:
        """What the run will take: by what this machine does in a second just now, or another by its data sheet.

        The time in which the model writes texts is not in it.
        """
        recipe, writer = self.recipe, self._writer_bytes(self.texts)
        if self.machine is not None:
            there = recipe.model_copy(update={"device": "cuda"})
            return forecast(there, self._work, self.machine.speed(self.products), resident_bytes(), self.crew, writer)
        speed = measure_speed(torch.device(recipe.device), DTYPES[self.products])
        return forecast(recipe, self._work, speed, resident_bytes(), self.crew, writer)

    @property
    def memory_bytes(self) -> int:
        """The forecast's memory, whatever a machine does in a second or has in its cache."""
        writer = self._writer_bytes(texts_of(self.recipe))
        return forecast(self.recipe, self._work, Speed(1.0, 1.0, 1.0), resident_bytes(), self.crew, writer).memory_bytes


@undisturbed()
def plan_by_recipe(
    recipe: Recipe,
    watcher: Watcher,
    machine: Machine | None = None,
    crew: Crew = ONE_PROCESS,
    out: Path | None = None,
) -> Plan:
    """Look at a model's configuration and tensor headers; load no weights. See `Plan` for what else is given.

    Raises:
        InputError: the recipe does not fit the model at all. What would be refused is in `Plan.refusals`.
    """
    folder = find_model(recipe.model, notify=watcher.note)
    check_dense(folder)
    asked = {"device": recipe.device, "precision": recipe.precision}
    if machine is not None:  # nothing is run on it: blocks without values are on the CPU
        precision = "bfloat16" if recipe.precision == "auto" else recipe.precision
        recipe = recipe.model_copy(update={"device": "cpu", "precision": precision})
    recipe = settle(recipe)
    for slow in slowness(recipe.precision, recipe.device) if machine is None else ():
        watcher.note(slow)
    decoder = open_decoder(recipe, folder)
    recipe = settle_seqlen(recipe, decoder)
    check_schedule(recipe, decoder)
    check_distillation(recipe, decoder)
    planned = Plan(
        recipe if machine is None else recipe.model_copy(update=asked),
        decoder,
        survey(decoder, recipe.sparsities, recipe.choice),
        machine,
        crew,
        out,
    )
    recipe.pruner.build()  # which may refuse its settings
    calibration, _ = planned.samples
    if calibration < crew.count:
        raise InputError(
            f"--ranks {crew.count}: each process needs a sample, and there are {calibration}; give {calibration} at "
            "most."
        )
    return planned


def make_crew(ranks: int | None, network: str | None, machine: Machine | None) -> Crew:
    """So many processes, on a network with a name: by default what machines of eight GPUs have."""
    if ranks is not None and ranks < 1:
        raise InputError(f"--ranks {ranks}: expected at least 1.")
    if network is not None and ranks is None:
        raise InputError(f"--network {network}: of how many processes? Give --ranks too.")
    usual = "local" if machine is None else "nvlink" if (ranks or 1) <= _IN_ONE else "100g"
    return Crew(ranks or 1, find_network(network or usual))


def plan(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    on: str | None = None,
    ranks: int | None = None,
    network: str | None = None,
    settings: str | Sequence[str] = (),
    watcher: Watcher | None = None,
    **flags: Any,
) -> Plan:
    """What `prune` with the same arguments would do; loads no weights.

    Args:
        model: a local folder, a Hub id, or a .gguf file.
        out: the folder that it would write: is it free, and is there room?
        on: the name of a machine, where that is not this one.
        ranks: so many processes.
        network: what they exchange over: local, nvlink or 100g.
        settings, watcher, flags: as of `prune`.

    Returns:
        What the run will do and take (`forecast`), and in `refusals` why it would be refused. Files and folders of
        texts are read for that; `unread` names the other sources.

    Raises:
        InputError: something given cannot be used at all.
    """
    machine = None if on is None else find_machine(on)
    crew = make_crew(ranks, network, machine)
    watcher = watcher or Watcher()
    recipe = made_recipe(model, flags.pop("recipe", None), flags, settings, watcher)
    return plan_by_recipe(recipe, watcher, machine, crew, None if out is None else local_path(out))
