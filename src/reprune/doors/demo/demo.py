"""`reprune demo`: the main job on a real model, with nothing but the package index.

Gemma 3 270M is pruned at 50 % by SparseGPT, as it is (LR) and with block-wise reconstruction against the dense model
(BR+GP). Calibration and evaluation use disjoint topics of the Python manual, which every CPython contains. BR+GP is
then repeated with no data at all, on texts that the model writes itself.
"""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from reprune.doors.api import prune
from reprune.doors.demo.model import demo_model
from reprune.doors.evaluation.evaluate import evaluate
from reprune.doors.evaluation.perplexity import Perplexity
from reprune.doors.evaluation.protocols import describe
from reprune.doors.formats import clock, console, percent, size, table
from reprune.doors.prepare import check_out
from reprune.doors.progress import counting, watching
from reprune.doors.report.write import NAME
from reprune.engine.ledger import Ledger
from reprune.engine.names import FOLDER, INDEX, RECIPE, RECORD
from reprune.errors import InputError
from reprune.files.readable import check_readable, is_there
from reprune.files.wellformed import read_json
from reprune.model.checkpoint import Checkpoint
from reprune.planning.paths import local_name

SAMPLES, SEQLEN, EPOCHS = 32, 256, 3
PROTOCOL = "short"
OWN = "BR+GP-own"
_RUNS = ("LR", "BR+GP", OWN)
"""The names of the runs, which are those of their rows and folders."""
_SHARD = re.compile(r"\.?model-\d{5}-of-\d{5}\.safetensors(\.(tmp|parts))?")


def demo(out: Path) -> dict[str, Any]:
    """Run the demo; the sparse models go to `out`/LR, `out`/BR+GP and `out`/BR+GP-own, in place of earlier ones.

    Returns:
        For "dense", "LR", "BR+GP" and "BR+GP-own": the perplexity; for the last three also the run's record.
    """
    output = console()
    began = time.monotonic()
    _check_out(out)
    model = demo_model(notify=output.print)
    _check_runs(out, model)
    output.print(
        f"calibration: {SAMPLES} samples of {SEQLEN} tokens from the even topics of the Python manual\n"
        f"evaluation:  its odd topics, perplexity by the protocol {PROTOCOL}"
    )
    dense = _measure(model)
    output.print(f"{describe(dense.record())}\nproducts in {dense.precision}; text sha256 {dense.text_sha256[:12]}")
    output.print(f"dense        perplexity {dense.perplexity:.2f}")
    rows: dict[str, Any] = {"dense": dense.perplexity}
    results = table(("",), ("sparsity", "calibration error", "held-out error", "perplexity", "time"))
    results.add_row("dense", "0 %", "", "", f"{dense.perplexity:.2f}", "")
    for name in _RUNS:
        said = ", on texts that the model writes itself" if name == OWN else ""
        output.print(f"\nSparseGPT at 50 %, {name.removesuffix('-own')}{said}", style="bold")
        if name == OWN:
            output.print("writing the texts takes some minutes the first time; then they are cached")
        record, sparse = _prune(model, out / name, name)
        last = record["blocks"][-1]
        results.add_row(
            name,
            percent(record["sparsity"]),
            percent(last["relative_calibration_error"]),
            percent(last["relative_heldout_error"]),
            f"{sparse.perplexity:.2f}",
            clock(record["seconds"]),
        )
        rows[name] = {"perplexity": sparse.perplexity, "record": record}
    output.print()
    output.print(results)
    peak = rows["BR+GP"]["record"]["peak_memory_bytes"]["host"]
    output.print(
        "\nErrors are those of the last block, relative to its output in the dense model;\n"
        "for BR+GP-own they are measured on its own texts, as it saw none of the manual.\n"
        f"sparse models  {', '.join(str(out / name) for name in _RUNS)}\n"
        "               ordinary model folders\n"
        f"total time     {clock(time.monotonic() - began)}; peak memory of BR+GP {size(peak)}"
    )
    return rows


def _prune(model: Path, folder: Path, name: str) -> tuple[dict[str, Any], Perplexity]:
    """One run: its record, and the perplexity of what it made."""
    _check_idle(folder)
    if folder.exists():
        shutil.rmtree(folder)
    samples: dict[str, Any] = {"calibration": ["manual"], "samples": SAMPLES}
    if name == OWN:
        samples = {"self_generate": SAMPLES, "settings": [f"self_generate.length={SEQLEN}"]}
    with watching(quiet=False, verbose=False) as watcher:
        record = prune(
            model,
            folder,
            pruner="sparsegpt",
            sparsity=0.5,
            reconstruct=name.removesuffix("-own"),
            seqlen=SEQLEN,
            epochs=EPOCHS,
            watcher=watcher,
            **samples,
        )
    return record, _measure(folder)


def _measure(model: Path) -> Perplexity:
    with counting("perplexity", quiet=False) as progress:
        return evaluate(model, "manual", protocol=PROTOCOL, progress=progress)


def _check_out(out: Path) -> None:
    if is_there(out, str(out)) and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder.")
    check_readable(out, *(out / name for name in _RUNS))
    for path in out.iterdir() if out.is_dir() else ():
        ours = path.name in _RUNS and path.is_dir() and (not any(path.iterdir()) or _is_run(path))
        if not ours:
            raise InputError(f"--out {out}: holds {path.name}, which no demo wrote; give another folder.")
    for folder in (out / name for name in _RUNS):
        if not is_there(folder, str(out)):
            check_out(folder)


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).exists() or Ledger(folder).exists


def _check_runs(out: Path, model: Path) -> None:
    """Refuse to replace a run of another model, or files that somebody has put beside those of a run."""
    fingerprint = Checkpoint(model).fingerprint()
    for folder in (out / name for name in _RUNS if (out / name).is_dir() and any((out / name).iterdir())):
        _check_idle(folder)
        run = _begun_with(folder)
        if run.get("fingerprint") != fingerprint and run.get("name") != model.name:
            raise InputError(f"--out {out}: {folder.name} was not made from the demo's model; give another folder.")
        ours = {path.name for path in model.iterdir()} | {RECORD, RECIPE, INDEX, FOLDER, NAME}
        for path in sorted(folder.iterdir()):
            if path.name not in ours and not _SHARD.fullmatch(path.name):
                raise InputError(
                    f"--out {out}: {folder.name} holds {path.name}, which no demo wrote; give another folder."
                )


def _check_idle(folder: Path) -> None:
    """Refuse to replace a run that another process is working on."""
    if (ledger := Ledger(folder)).running:
        raise InputError(f"--out {folder.parent}: {folder.name} {ledger.way_on}, or give another folder.")


def _begun_with(folder: Path) -> dict[str, Any]:
    """The name and fingerprint of a run's model; empty if they are unknown."""
    with suppress(InputError, OSError, ValueError, KeyError, TypeError):
        if (ledger := Ledger(folder)).exists:
            job = ledger.job()
            return {"name": local_name(job["recipe"]["model"], Path(job["folder"])), "fingerprint": job["fingerprint"]}
        return dict(read_json((folder / RECORD).read_text(encoding="utf-8"))["model"])
    return {}
