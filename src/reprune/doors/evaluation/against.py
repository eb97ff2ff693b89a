"""`reprune evaluate --against`: the error of every block of a sparse model against its dense model, on any text."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from reprune.doors.devices import DTYPES, in_precision, settle_device
from reprune.doors.evaluation.calibrated import calibrated_on
from reprune.doors.evaluation.protocols import Cut, CutText, Measured, check_text, cut_text, open_text
from reprune.doors.found import find_model
from reprune.doors.prepare import check_ids
from reprune.engine.compare import BlockError, check_alike, compare
from reprune.errors import InputError
from reprune.model.block import Precision
from reprune.model.decoder import Decoder
from reprune.model.full_speed import full_speed
from reprune.model.snapshots import called
from reprune.model.undisturbed import undisturbed
from reprune.planning.paths import local_name
from reprune.planning.recipe import StreamsRecipe

_TOKENS = 8192  # a batch, at most: more would take more memory and no less time


@final
@dataclass(frozen=True, kw_only=True)
class AgainstDense(Measured):
    """A sparse model's errors against its dense model, with all that decides them."""

    dense: str
    dense_fingerprint: str
    embedding: float  # relative error of what enters block 0: zero unless the embeddings differ
    blocks: tuple[BlockError, ...]

    def record(self) -> dict[str, Any]:
        return super().record() | {"blocks": [asdict(block) for block in self.blocks]}


@undisturbed()
@full_speed()
def errors_against(
    sparse: str | os.PathLike[str],
    dense: str | os.PathLike[str],
    text: str | os.PathLike[str],
    *,
    protocol: str | None = None,
    seqlen: int | None = None,
    max_windows: int | None = None,
    batch_size: int = 8,
    device: str | torch.device = "auto",
    precision: str = "auto",
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
    notify: Callable[[str], None] = lambda text: None,
) -> AgainstDense:
    """The error of every block of a sparse model against its dense model, each on its own model's stream.

    Only one block of each model is in memory at a time. The hidden states of the text are kept in memory up to 8 GB,
    and beyond that in files in the system's temporary folder, which are removed at the end, also after an error.

    Args:
        sparse, dense: local folders, Hub ids, or .gguf files, of one architecture and shape.
        text, protocol, seqlen, max_windows: as for `evaluate`.
        batch_size: the most windows in a batch; fewer if more would be over 8192 tokens.
        device, precision: as in a recipe.
        progress: called with the number of batches that have passed through a block, and of all.
        notify: called with each reason for which the errors may mean less than they seem to.

    Raises:
        InputError: a model or the text cannot be used, or the models are not alike; the message names the difference.
        NumericalError: a model's outputs are not finite.
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: expected at least 1.")
    cut = Cut.of(protocol, seqlen, max_windows)
    where = settle_device(device)
    check_text(text)
    folders = [find_model(model, notify=notify) for model in (sparse, dense)]

    def against(products: str) -> AgainstDense:
        student, teacher = _pair(folders, where, products, trust_remote_code)
        windows = _windows(folders, text, cut, trust_remote_code, notify)
        check_ids(called(folders[0]), windows.ids, student.vocabulary)
        share = calibrated_on(folders[0], windows, notify)
        memory = int(StreamsRecipe().memory)
        with tempfile.TemporaryDirectory(prefix="reprune-") as folder:
            batch = max(min(batch_size, _TOKENS // windows.ids.shape[1]), 1)
            found = compare(student, teacher, windows.ids, batch, memory, Path(folder), progress)
        return AgainstDense(
            model=local_name(sparse, folders[0]),
            fingerprint=student.checkpoint.fingerprint(),
            dense=local_name(dense, folders[1]),
            dense_fingerprint=teacher.checkpoint.fingerprint(),
            **windows.record(),
            precision=products,
            embedding=found.embedding.relative,
            blocks=found.blocks,
            calibration_overlap=share,
        )

    return in_precision(precision, where, against, notify)


def check_against(
    models: Sequence[str | os.PathLike[str]],
    text: str | os.PathLike[str],
    cut: Cut,
    trust_remote_code: bool,
    notify: Callable[[str], None],
) -> None:
    """Raise the `InputError` that `errors_against` would raise for the sparse and the dense model and the text."""
    check_text(text)
    folders = [find_model(model, notify=notify) for model in models]
    _pair(folders, "cpu", "float32", trust_remote_code)
    _windows(folders, text, cut, trust_remote_code)


def _pair(folders: list[Path], where: str, products: str, trust_remote_code: bool) -> tuple[Decoder, Decoder]:
    """The sparse and the dense model; raises `InputError` unless they are alike."""
    student, teacher = (
        Decoder(
            folder,
            device=torch.device(where),
            precision=Precision(DTYPES[products]),
            trust_remote_code=trust_remote_code,
        )
        for folder in folders
    )
    check_alike(student, teacher)
    return student, teacher


def _windows(
    folders: list[Path],
    text: str | os.PathLike[str],
    cut: Cut,
    trust_remote_code: bool,
    notify: Callable[[str], None] = lambda text: None,
) -> CutText:
    """The windows of the text; raises `InputError` unless both models' tokenizers give the same."""
    documents = open_text(text)
    one = cut_text(folders[0], documents, cut, trust_remote_code, notify)
    other = cut_text(folders[1], documents, cut, trust_remote_code)
    if not torch.equal(one.ids, other.ids):
        raise InputError(
            f"{called(folders[0])} and {called(folders[1])} cut {one.text} into different tokens; only a model with "
            "the dense model's tokenizer can be compared with it."
        )
    return other
