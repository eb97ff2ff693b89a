"""Prepares what a run needs, and refuses what cannot be used, before anything is written."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from reprune.doors.devices import DTYPES, settle_together
from reprune.doors.formats import size
from reprune.doors.memory import available_memory
from reprune.engine.footprint import disk_bytes, least_memory_bytes
from reprune.engine.ledger import Ledger
from reprune.engine.names import RECORD
from reprune.errors import InputError
from reprune.files.readable import is_there
from reprune.math.ranks import ALONE, Ranks
from reprune.model.block import Precision
from reprune.model.decoder import Decoder
from reprune.model.snapshots import by_hand, called
from reprune.model.undownloaded import Undownloaded
from reprune.model.whole import whole_bytes
from reprune.planning.recipe import Recipe
from reprune.planning.samples import Samples, draw_samples
from reprune.planning.schedule import windows
from reprune.planning.shares import share_out
from reprune.planning.sources import SourceSpec, find_source, parse_source
from reprune.planning.tokenizer import load_tokenizer

DEFAULT_SEQLEN = 1024  # the paper's
_UNWRITTEN = "c4"  # in place of texts that the model has yet to write: any source that is not on this machine


def refusal(check: Callable[[], object]) -> str | None:
    """The message with which a check refuses; None if it passes."""
    try:
        check()
    except InputError as error:
        return str(error)
    return None


def check_dense(folder: Path) -> None:
    """Raise `InputError` if a model is a result of `prune`: a sparse teacher would lack what the pruning removed."""
    if is_there(folder / RECORD, str(folder / RECORD)):
        raise InputError(
            f"{called(folder)}: is sparse already, a result of reprune; prune the dense model it was made from. (To "
            f"prune it further all the same, compared with itself as it is now, {by_hand(folder, f'remove {RECORD}')}.)"
        )


def check_out(out: Path) -> None:
    """Raise `InputError` unless a result can be written to `out`.

    Files of a process that was killed before its run began do not matter.
    """
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"--out {out}: has bytes that are not UTF-8, which the paths of weight files cannot have; give another "
            "folder."
        ) from None
    ledger = Ledger(out)
    begun = ledger.exists
    there = _there(out)
    if not there.is_dir():
        which = "" if there == out.absolute() else f"{there} "
        raise InputError(f"--out {out}: {which}is a file; give a folder that does not exist yet.")
    for folder in (out, *out.parents):
        if folder.is_symlink() and not folder.exists():
            where = "" if folder == out else f"{folder} "
            raise InputError(
                f"--out {out}: {where}is a link to {folder.readlink()}, which does not exist; make that folder, or "
                "give another."
            )
    if out.is_dir() and ledger.never_began:
        ledger.check_links()
    elif out.is_dir() and any(out.iterdir()):
        if begun:
            raise InputError(f"--out {out}: {ledger.way_on}, or give another folder.")
        raise InputError(f"--out {out}: is not empty; give a folder that does not exist yet.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: {there} cannot be written to; give another folder.")


def _there(out: Path) -> Path:
    """The innermost folder among `out` and its parents that exists and is accessible."""
    return next(folder for folder in (out.absolute(), *out.absolute().parents) if os.access(folder, os.F_OK))


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def check_disk(recipe: Recipe, decoder: Decoder, samples: int, out: Path) -> None:
    """Raise `InputError` if a run on these numbers of samples needs more disk than is free."""
    assert recipe.seqlen is not None
    stream = 4 * samples * recipe.seqlen * decoder.width(recipe.seqlen)
    own = samples * decoder.own_bytes(recipe.seqlen)
    disk = disk_bytes(recipe, len(decoder), stream, own, decoder.checkpoint.bytes)
    there, coming = _there(out), decoder.checkpoint.undownloaded_bytes
    free, then = shutil.disk_usage(there).free, ""
    if coming and there.stat().st_dev == _there(_hub_cache()).stat().st_dev:
        free, then = max(free - coming, 0), " once the model is downloaded"
    if disk > free:
        raise InputError(
            f"--out {out}: a run writes about {size(disk)}, but {size(free)} are free there{then}; give a folder on "
            "another disk."
        )


def check_room(decoder: Decoder) -> None:
    """Raise `InputError` if the cache of the Hub has no room for the weights that a run downloads to it."""
    needed, cache = decoder.checkpoint.undownloaded_bytes, _hub_cache()
    if needed and needed > (free := shutil.disk_usage(_there(cache)).free):
        raise InputError(
            f"{decoder.name}: its weights are still to be downloaded, {size(needed)}, but {size(free)} are free in "
            f"{cache}; set HF_HUB_CACHE to a folder on another disk."
        )


def check_memory(recipe: Recipe, decoder: Decoder, texts: int) -> None:
    """Raise `InputError` if a run surely needs more memory than there is, or if writing its texts does."""
    schedule = windows(len(decoder), recipe.schedule.size, recipe.schedule.stride)
    parameters = [sum(map(math.prod, decoder.shapes(index).values())) for index in range(len(decoder))]
    memory = least_memory_bytes(recipe, schedule, parameters)
    available = available_memory(recipe.device)
    if available is not None and memory > available:
        raise InputError(
            f"--device {recipe.device}: a window and its solver's state take at least {size(memory)} of memory, but "
            f"{size(available)} are available; see what 'reprune plan' says with --set solver.compact=true, "
            "--set solver.rank=64, or a rung with one block per window."
        )
    precision = Precision(DTYPES[recipe.precision])
    whole = whole_bytes(decoder.checkpoint, precision, recipe.trust_remote_code) if texts else 0
    if available is not None and whole > available:
        raise InputError(
            f"--self-generate {recipe.self_generate.samples}: the whole model, which writes the texts, takes at least "
            f"{size(whole)} of memory, but {size(available)} are available; have a server write them (reprune generate "
            "--endpoint URL), and give the file with --calibration."
        )


def settle(recipe: Recipe, ranks: Ranks = ALONE) -> Recipe:
    """The recipe with `auto` replaced by what this machine has, or the first process's machine."""
    device, precision = settle_together(recipe.device, recipe.precision, ranks)
    return recipe.model_copy(update={"device": device, "precision": precision})


def open_decoder(recipe: Recipe, folder: Path, undownloaded: Undownloaded | None = None) -> Decoder:
    """The model that a settled recipe prunes; to plan it, its weights may be only on the Hub."""
    return Decoder(
        folder,
        device=torch.device(recipe.device),
        precision=Precision(DTYPES[recipe.precision]),
        trust_remote_code=recipe.trust_remote_code,
        undownloaded=undownloaded,
    )


def settle_seqlen(recipe: Recipe, decoder: Decoder) -> Recipe:
    """The recipe with the length of a sample set, and checked against the model's longest."""
    limit = decoder.skeleton.max_positions
    if recipe.seqlen is None:
        return recipe.model_copy(update={"seqlen": min(DEFAULT_SEQLEN, limit or DEFAULT_SEQLEN)})
    if limit is not None and recipe.seqlen > limit:
        raise InputError(f"--seqlen {recipe.seqlen}: {decoder.name} takes at most {limit} tokens; give that or less.")
    return recipe


def check_schedule(recipe: Recipe, decoder: Decoder) -> None:
    """Raise `InputError` if overlapping windows are larger than the model: many of them would be the whole model.

    Windows of two blocks, which rungs use, are accepted for a model of one block: there are only two of them.
    """
    size, stride = recipe.schedule.size, recipe.schedule.stride
    if size > max(len(decoder), 2) and stride < size:
        raise InputError(
            f"schedule.size {size}: {decoder.name} has {len(decoder)} blocks; give at most {len(decoder)}, or for one "
            f"window of all blocks also schedule.stride={size}."
        )


def check_distillation(recipe: Recipe, decoder: Decoder) -> None:
    """Raise `InputError` unless the model has the blocks to distill, text passes through one, and the last predicts."""
    asked, least = recipe.distill.blocks, len(decoder) - decoder.skeleton.running[-1]
    if asked > len(decoder):
        raise InputError(f"distill.blocks {asked}: {decoder.name} has {len(decoder)} blocks; give that or less.")
    if 0 < asked < least:
        last = "block" if asked == 1 else f"{asked} blocks"
        raise InputError(
            f"distill.blocks {asked}: no text passes through the last {last} of {decoder.name}; give at least {least}."
        )
    if asked:
        decoder.check_predicts()


def said_lacking(decoder: Decoder) -> str | None:
    """A note if the model's files lack something that its blocks do not need, such as a head."""
    if not decoder.lacking:
        return None
    return (
        f"{decoder.name}: its files lack {', '.join(decoder.lacking):.300}; its blocks can be pruned all the same, but "
        "the result will lack it too, and neither model's predictions can be evaluated"
    )


def count_samples(recipe: Recipe) -> tuple[int, int]:
    """The numbers of calibration samples and of held-out samples; opens no source.

    Raises:
        InputError: a source's name or count cannot be right.
    """
    calibration, heldout = ([parse_source(name) for name in names] for names in (recipe.calibration, recipe.heldout))
    for source in (*calibration, *heldout):
        find_source(source.name)
    if own := recipe.self_generate.samples:
        calibration.append(SourceSpec(_UNWRITTEN, own))
    shares = share_out(calibration, heldout, recipe.samples)
    counts = {role: sum(share.count for share in shares if share.role == role) for role in ("calibration", "heldout")}
    return counts["calibration"], counts["heldout"]


def check_texts(recipe: Recipe, decoder: Decoder) -> None:
    """Raise `InputError` if a run would be refused because of its tokenizer or a text on this machine."""
    draw(recipe, decoder, _UNWRITTEN if recipe.self_generate.samples else None, local=True)


def draw(recipe: Recipe, decoder: Decoder, own: str | Path | None = None, local: bool = False) -> Samples:
    """The samples of a recipe whose seqlen is settled; `own` is the source of the texts that its model has written.

    With `local`, only texts on this machine are read.
    """
    assert recipe.seqlen is not None
    tokenizer = load_tokenizer(decoder.folder, recipe.trust_remote_code)
    written = [] if own is None else [SourceSpec(str(own), recipe.self_generate.samples)]
    samples = draw_samples(
        tokenizer,
        [*(parse_source(source) for source in recipe.calibration), *written],
        [parse_source(source) for source in recipe.heldout],
        samples=recipe.samples,
        seqlen=recipe.seqlen,
        seed=recipe.seed,
        local=local,
    )
    check_ids(decoder.name, torch.cat([samples.calibration, samples.heldout]), decoder.vocabulary)
    return samples


def check_ids(model: str, ids: Tensor, rows: int) -> None:
    """Raise `InputError` unless an embedding with this many rows has a row for each token id."""
    if ids.numel() and (largest := int(ids.max())) >= rows:
        raise InputError(
            f"{model}: its tokenizer yields the id {largest}, but its embedding has only {rows} rows; "
            "the tokenizer files belong to another model."
        )
