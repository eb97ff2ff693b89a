"""`reprune demo`: the main job on a real model, with nothing but the package index.

Gemma 3 270M is pruned at 50 % by SparseGPT, once as it is (LR) and once with block-wise reconstruction against the
dense model (BR+GP). Calibration and evaluation use disjoint topics of the Python manual, which every CPython holds.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from reprune.doors.api import prune
from reprune.doors.demo.model import demo_model
from reprune.doors.evaluation.evaluate import evaluate
from reprune.doors.evaluation.perplexity import Perplexity
from reprune.doors.evaluation.protocols import describe
from reprune.doors.formats import clock, console, percent, size
from reprune.doors.progress import counting, watching
from reprune.engine.ledger import Ledger
from reprune.engine.result import RECORD
from reprune.errors import InputError

SAMPLES, SEQLEN, EPOCHS = 32, 256, 3
PROTOCOL = "short"
_RUNGS = ("LR", "BR+GP")


def demo(out: Path) -> dict[str, Any]:
    """Run the demo; the sparse models go to `out`/LR and `out`/BR+GP, replacing those of a demo before.

    Returns:
        For "dense", "LR" and "BR+GP": the perplexity; for the last two also the run's record.
    """
    output = console()
    began = time.monotonic()
    _check_out(out)
    model = demo_model(notify=output.print)
    output.print(
        f"calibration: {SAMPLES} samples of {SEQLEN} tokens from the even topics of the Python manual\n"
        f"evaluation:  its odd topics, perplexity by the protocol {PROTOCOL}"
    )
    dense = _measure(model)
    windows = describe(dense.protocol, dense.windows, dense.seqlen, dense.bos)
    output.print(f"{windows}\nproducts in {dense.precision}; text sha256 {dense.text_sha256[:12]}")
    output.print(f"dense        perplexity {dense.perplexity:.2f}")
    rows: dict[str, Any] = {"dense": dense.perplexity}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "sparsity", "calibration error", "held-out error", "perplexity", "time"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("dense", "0 %", "", "", f"{dense.perplexity:.2f}", "")
    for rung in _RUNGS:
        output.print(f"\nSparseGPT at 50 %, {rung}", style="bold")
        if (out / rung).exists():
            shutil.rmtree(out / rung)
        with watching(quiet=False, verbose=False) as watcher:
            record = prune(
                model,
                out / rung,
                pruner="sparsegpt",
                sparsity=0.5,
                reconstruct=rung,
                calibration=["manual"],
                samples=SAMPLES,
                seqlen=SEQLEN,
                epochs=EPOCHS,
                watcher=watcher,
            )
        sparse = _measure(out / rung)
        last = record["blocks"][-1]
        table.add_row(
            rung,
            percent(record["sparsity"]),
            percent(last["relative_calibration_error"]),
            percent(last["relative_heldout_error"]),
            f"{sparse.perplexity:.2f}",
            clock(record["seconds"]),
        )
        rows[rung] = {"perplexity": sparse.perplexity, "record": record}
    output.print()
    output.print(table)
    peak = record["peak_memory_bytes"]["host"]
    output.print(
        "\nErrors are those of the last block, relative to its output in the dense model.\n"
        f"sparse models  {out / 'LR'} and {out / 'BR+GP'}, ordinary model folders\n"
        f"total time     {clock(time.monotonic() - began)}; peak memory of BR+GP {size(peak)}"
    )
    return rows


def _measure(model: Path) -> Perplexity:
    with counting("perplexity", quiet=False) as progress:
        return evaluate(model, "manual", protocol=PROTOCOL, progress=progress)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder.")
    for path in out.iterdir() if out.is_dir() else ():
        ours = path.name in _RUNGS and path.is_dir() and (not any(path.iterdir()) or _is_run(path))
        if not ours:
            raise InputError(f"--out {out}: holds {path.name}, which is not of a demo; give another folder.")


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).exists() or Ledger(folder).exists
