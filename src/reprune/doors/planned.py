"""Plans a run before any weight is read: what it would do, why it would be refused, and what it would take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch

from reprune.doors.devices import DTYPES, or_in_float32, slowness
from reprune.doors.found import find_headers, find_model
from reprune.doors.generation.selfmade import texts_of, unwritten
from reprune.doors.given import listening, made_recipe
from reprune.doors.prepare import (
    check_dense,
    check_disk,
    check_distillation,
    check_memory,
    check_out,
    check_room,
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


@final
@dataclass(frozen=True)
class Plan:
    """What `prune` would do with the same arguments."""

    recipe: Recipe  # for `prune`; for a run on another machine, device and precision stay as asked for
    decoder: Decoder
    survey: Survey
    machine: Machine | None  # that the run is forecast for; None: this one
    crew: Crew  # the processes
    out: Path | None  # the folder to write, if given

    @cached_property
    @undisturbed()
    def refusals(self) -> tuple[str, ...]:
        """The reasons for which `prune` would refuse, a line each: the model, memory and disk here, the texts.

        It may also refuse texts that are `unread` here.
        """
        checks: list[Callable[[], object]] = []
        if self.machine is None:
            checks.append(lambda: check_memory(self.recipe, self.decoder, self.texts))
            checks.append(lambda: check_room(self.decoder))
        if (out := self.out) is not None:
            checks.append(lambda: check_out(out))
            checks.append(lambda: check_disk(self.recipe, self.decoder, sum(self.samples), out))
        checks.append(lambda: check_texts(self.recipe, self.decoder))
        return (*self.survey.refusals, *(said for check in checks if (said := refusal(check)) is not None))

    @property
    def unread(self) -> tuple[str, ...]:
        """The sources whose texts a plan does not read: those on the Hub, and the texts that the model is to write."""
        named = dict.fromkeys(parse_source(one).name for one in (*self.recipe.calibration, *self.recipe.heldout))
        own = ["the model's own texts"] if self.recipe.self_generate.samples else []
        return (*(name for name in named if not find_source(name).local), *own)

    @property
    def schedule(self) -> list[Window]:
        """The windows, without a distillation after them."""
        return windows(len(self.decoder), self.recipe.schedule.size, self.recipe.schedule.stride)

    @cached_property
    def samples(self) -> tuple[int, int]:
        """The numbers of calibration samples and of held-out samples."""
        return count_samples(self.recipe)

    @property
    def weights(self) -> int:
        """The number of weights in the model."""
        return sum(math.prod(entry.shape) for entry in self.decoder.checkpoint.entries.values())

    @property
    def bytes(self) -> int:
        """The bytes of the model's weights in its files."""
        return self.decoder.checkpoint.bytes

    @property
    def undownloaded_bytes(self) -> int:
        """The bytes of a Hub model's weights that a run will download first."""
        return self.decoder.checkpoint.undownloaded_bytes

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.decoder.folder

    @cached_property
    def texts(self) -> int:
        """How many texts the model will write before the run; 0 if this machine's cache already has them."""
        here = self.machine is None and not self.undownloaded_bytes
        return unwritten(self.recipe, self.decoder) if here else texts_of(self.recipe)

    @property
    def products(self) -> str:
        """The precision of products; `auto`, which only a recipe for another machine still says, is that of a GPU."""
        return "bfloat16" if self.recipe.precision == "auto" else self.recipe.precision

    def _writer_bytes(self, texts: int) -> int:
        precision = Precision(DTYPES[self.products])
        return whole_bytes(self.decoder.checkpoint, precision, self.recipe.trust_remote_code) if texts else 0

    @cached_property
    @undisturbed()
    def _work(self) -> Work:
        recipe, decoder = self.recipe, self.decoder
        assert recipe.seqlen is not None
        return Work(
            decoder.costs(recipe.seqlen, None if self.machine is None else "cuda"),
            [
                [
                    Group.of(
                        (block.shapes[name] for name in names),
                        block.experts.get(names[0]),
                        block.stages.get(names[0]),
                    )
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
            decoder.own_bytes(recipe.seqlen),
        )

    @cached_property
    @undisturbed()
    def forecast(self) -> Forecast:
        """What the run will take, by this machine's speed as measured now, or by another machine's data sheet.

        The time in which the model writes texts is not included.
        """
        if self.machine is not None:
            return self._forecast(self.machine.speed(self.products), self.texts)
        device, products = torch.device(self.recipe.device), DTYPES[self.products]
        return self._forecast(measure_speed(device, products, lambda: self._work), self.texts)

    @property
    def memory_bytes(self) -> int:
        """The memory of the forecast; it depends neither on a machine's speed nor on its cache."""
        return self._forecast(Speed(1.0, 1.0, 1.0), texts_of(self.recipe)).memory_bytes

    def _forecast(self, speed: Speed, texts: int) -> Forecast:
        elsewhere = {} if self.machine is None else {"device": "cuda", "precision": self.products}
        recipe, writer = self.recipe.model_copy(update=elsewhere), self._writer_bytes(texts)
        return forecast(recipe, self._work, speed, resident_bytes(), self.crew, writer)


@undisturbed()
def plan_by_recipe(
    recipe: Recipe,
    watcher: Watcher,
    machine: Machine | None = None,
    crew: Crew = ONE_PROCESS,
    out: Path | None = None,
    *,
    download: bool = True,
) -> Plan:
    """Plan from a model's configuration and tensor headers; load no weights.

    Args:
        download: whether the weights of a Hub model are downloaded first, for a run that follows; otherwise only
            their headers are read, if they are not in the Hub's cache.
        recipe, machine, crew, out: `Plan` describes them.
        watcher: is told what is worth a note.

    Raises:
        InputError: the recipe does not fit the model at all. Other refusals are in `Plan.refusals`.
    """
    return or_in_float32(
        recipe.precision,
        lambda one: _plan(recipe.model_copy(update={"precision": one}), watcher, machine, crew, out, download),
        watcher.note,
        lambda: crew.count == 1,  # as in a run
    )


def _plan(
    recipe: Recipe, watcher: Watcher, machine: Machine | None, crew: Crew, out: Path | None, download: bool
) -> Plan:
    calibration, _ = count_samples(recipe)
    if calibration < crew.count:
        raise InputError(
            f"--ranks {crew.count}: each process needs a sample, but there are {calibration}; give at most "
            f"{calibration}."
        )
    asked = {"device": recipe.device, "precision": recipe.precision}
    if machine is not None:  # nothing is run there: blocks without values are on the CPU here
        precision = "bfloat16" if recipe.precision == "auto" else recipe.precision
        recipe = recipe.model_copy(update={"device": "cpu", "precision": precision})
    recipe = settle(recipe)
    # This may download the model, so what needs no model comes first.
    if download:
        folder, away = find_model(recipe.model, notify=watcher.note), None
    else:
        folder, away = find_headers(recipe.model, notify=watcher.note)
    check_dense(folder)
    for slow in slowness(recipe.precision, recipe.device) if machine is None else ():
        watcher.note(slow)
    decoder = open_decoder(recipe, folder, away)
    recipe = settle_seqlen(recipe, decoder)
    check_schedule(recipe, decoder)
    check_distillation(recipe, decoder)
    surveyed = survey(decoder, recipe.sparsities, recipe.choice)
    for note in surveyed.notes:
        watcher.note(note)
    return Plan(
        recipe if machine is None else recipe.model_copy(update=asked),
        decoder,
        surveyed,
        machine,
        crew,
        out,
    )


def make_crew(ranks: int | None, network: str | None, machine: Machine | None) -> Crew:
    """The processes and the named network between them, by default that of the machine."""
    if ranks is not None and ranks < 1:
        raise InputError(f"--ranks {ranks}: expected at least 1.")
    if network is not None and ranks is None:
        raise InputError(f"--network {network}: only several processes exchange anything; give --ranks N too.")
    count = ranks or 1
    return Crew(count, find_network(network or "local") if machine is None else machine.network(network, count))


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
    """What `prune` with the same arguments would do; loads no weights, and downloads none.

    Args:
        model: a local folder, a Hub id, or a .gguf file.
        out: the folder that it would write, to check that it is free and has room.
        on: the name of another machine to forecast for.
        ranks: the number of processes.
        network: the network that connects them: local, nvlink or 100g.
        settings, watcher, flags: as for `prune`.

    Returns:
        What the run will do and take (`forecast`), and in `refusals` why it would be refused. For that, texts in
        files and folders are read; `unread` names the other sources.

    Raises:
        InputError: an argument cannot be used at all.
    """
    machine = None if on is None else find_machine(on)
    crew = make_crew(ranks, network, machine)
    watcher = listening(watcher, Watcher)
    recipe = made_recipe(model, flags.pop("recipe", None), flags, settings, watcher)
    if machine is not None and str(flags.get("device") or "auto") not in ("auto", "cuda"):
        watcher.note(f"--device {flags['device']} has no effect: the forecast is for {machine.name}")
    return plan_by_recipe(
        recipe, watcher, machine, crew, None if out is None else local_path(out, "out"), download=False
    )
