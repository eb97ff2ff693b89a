"""`reprune evaluate`: the perplexity of a model, dense or sparse, on a text."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from reprune.doors.devices import DTYPES, in_precision, settle_device
from reprune.doors.evaluation.calibrated import calibrated_on
from reprune.doors.evaluation.perplexity import Perplexity, perplexity
from reprune.doors.evaluation.protocols import Cut, check_text, cut_text, open_text
from reprune.doors.found import find_model
from reprune.doors.prepare import check_ids
from reprune.model.block import Precision
from reprune.model.checkpoint import Checkpoint
from reprune.model.snapshots import called
from reprune.model.undisturbed import undisturbed
from reprune.model.whole import load_model, weights_dtype
from reprune.planning.paths import local_name


@undisturbed()
def evaluate(
    model: str | os.PathLike[str],
    text: str | os.PathLike[str],
    *,
    protocol: str | None = None,
    seqlen: int | None = None,
    max_windows: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
    notify: Callable[[str], None] = lambda text: None,
) -> Perplexity:
    """The perplexity of a model on a text.

    Args:
        model: a local folder (a result of `prune` is one), a Hub id, or a .gguf file.
        text: a SOURCE; for a data set, its test split is taken.
        protocol: "wanda" (the model's full length, at most 4096 tokens), "paper" (2048 tokens), "short" (the first 12
            windows of 512 tokens), "published" or "gptq" (as "wanda" and "paper", with one BOS before the whole text);
            in place of the next two.
        seqlen: tokens per window; by default 2048, or the model's longest sequence if that is shorter.
        max_windows: the number of windows from the start; by default all, for c4 the 256 that the field measures.
        device, precision: as in a recipe.
        progress: called with the number of windows that are done, and of all.
        notify: called with each reason for which the number may mean less than it seems to.

    Raises:
        InputError: the model or the text cannot be used.
    """
    cut = Cut.of(protocol, seqlen, max_windows)
    where = settle_device(device)
    check_text(text)
    folder = find_model(model, notify=notify)  # may download it, so what needs no model comes first
    windows = cut_text(folder, open_text(text), cut, trust_remote_code, notify)
    share = calibrated_on(folder, windows, notify)

    def measured(products: str) -> tuple[str, float]:
        dtype = Precision(DTYPES[products])
        loaded = load_model(folder, torch.device(where), trust_remote_code, dtype)
        check_ids(called(folder), windows.ids, len(loaded.get_input_embeddings().weight))
        return products, perplexity(loaded, windows.ids, dtype, lambda done: progress(done, len(windows.ids)))

    products, value = in_precision(precision, where, measured, notify)
    return Perplexity(
        perplexity=value,
        model=local_name(model, folder),
        fingerprint=Checkpoint(folder).fingerprint(),
        **windows.record(),
        tokens=windows.ids[:, 1:].numel(),
        precision=products,
        weights_dtype=weights_dtype(folder, trust_remote_code),
        calibration_overlap=share,
    )
