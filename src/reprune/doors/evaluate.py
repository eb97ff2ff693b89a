"""`reprune evaluate`: what a model, dense or sparse, is worth on a text."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from reprune.doors.perplexity import Perplexity, load_model, perplexity
from reprune.doors.prepare import DTYPES, settle_device, settle_precision
from reprune.errors import InputError
from reprune.model.block import Precision
from reprune.model.locate import locate_model
from reprune.planning.documents import text_sha256
from reprune.planning.samples import evaluation_windows
from reprune.planning.sources import load_documents, parse_source
from reprune.planning.tokenizer import load_tokenizer

DEFAULT_SEQLEN = 2048  # the paper's, and the field's habit


def evaluate(
    model: str | os.PathLike[str],
    text: str,
    *,
    seqlen: int | None = None,
    max_windows: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
    notify: Callable[[str], None] = lambda text: None,
) -> Perplexity:
    """The perplexity of a model on a text.

    Args:
        model: a local folder (a result of `prune` is one), a Hub id, or a .gguf file.
        text: a SOURCE; of a data set, its test split.
        seqlen: tokens a window; by default 2048, or the model's longest sequence if that is shorter.
        max_windows: only so many windows from the start.
        device, precision: as in a recipe.
        progress: is told how many windows are done, of how many.

    Raises:
        InputError: the model or the text cannot be used.
    """
    if max_windows is not None and max_windows < 1:
        raise InputError(f"--windows {max_windows}: expected at least 1.")
    folder = locate_model(os.fspath(model), notify=notify)
    source = parse_source(text)
    if source.count is not None:
        raise InputError(f"--text {text}: takes no COUNT; use --windows to read only the start of a text.")
    documents = load_documents(source.name, "test")
    tokenizer = load_tokenizer(folder, trust_remote_code)
    where = settle_device(device)
    products = settle_precision(precision, where)
    loaded = load_model(folder, torch.device(where), trust_remote_code)
    limit = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
    if seqlen is None:
        seqlen = min(DEFAULT_SEQLEN, limit or DEFAULT_SEQLEN)
    elif limit is not None and seqlen > limit:
        raise InputError(f"--seqlen {seqlen}: {folder.name} takes at most {limit} tokens.")
    if seqlen < 2:
        raise InputError(f"--seqlen {seqlen}: expected at least 2, as the first token is not predicted.")
    windows = evaluation_windows(tokenizer, documents, seqlen, max_windows)
    value = perplexity(loaded, windows, Precision(DTYPES[products]), lambda done: progress(done, len(windows)))
    return Perplexity(
        perplexity=value,
        model=folder.name,
        text=documents.name,
        text_sha256=text_sha256(documents),
        seqlen=seqlen,
        windows=len(windows),
        tokens=len(windows) * (seqlen - 1),
        bos=bool((windows[:, 0] == tokenizer.bos_token_id).all()) if tokenizer.bos_token_id is not None else False,
        precision=products,
    )
