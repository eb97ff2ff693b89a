"""Shows how far a run is. Loads as little as possible, as it is called again and again while a run goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from reprune.doors.formats import console, nats, percent, sparsities
from reprune.doors.status import Status, damaged


def show_status(status: Status, out: Path) -> None:
    """Show how far a run is; raises `InputError` if its record is not whole."""
    output = console()
    try:
        lines = list(_status(status))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise damaged(out, error, status.finished) from None
    output.print(f"{out}: {lines[0]}")
    for line in lines[1:]:
        output.print(line)
    way_on = "running" if status.running else f"unfinished; go on with: reprune resume {shlex.quote(str(out))}"
    output.print("finished" if status.finished else way_on)


def _status(status: Status) -> Iterator[str]:
    recipe = status.recipe
    yield f"{recipe['model']}, {recipe['pruner']['name']} {sparsities(recipe)}, {recipe['reconstruct']}"
    yield f"{status.windows_done} of {status.windows} windows finished"
    if status.last is not None and status.last.get("distilled"):
        change = status.last["heldout_divergence"]
        yield (
            f"last: blocks {status.last['blocks']}, distilled: held-out divergence {nats(change['before'])} > "
            f"{nats(change['after'])}"
        )
    elif status.last is not None:
        measure = "standardized" if status.last["loss"] == "standardized" else "relative"
        yield (
            f"last: blocks {status.last['blocks']}, {measure} error calibration "
            f"{percent(status.last['relative_calibration_error']['after'])}, held-out "
            f"{percent(status.last['relative_heldout_error']['after'])}"
        )
