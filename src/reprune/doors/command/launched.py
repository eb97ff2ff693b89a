"""Commands that a launcher such as torchrun has started several times: which one prints, and how they end together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from reprune.doors.command.interrupts import heed_no_more
from reprune.doors.printable import complain
from reprune.errors import InputError, LostRankError, RepruneError, is_expected
from reprune.math.launch import launched
from reprune.math.ranks import ALONE, Ranks, Together

TIMEOUT = 600.0
"""The default, in seconds."""


@contextmanager
def ranks_of_launch(timeout: float) -> Iterator[Ranks]:
    """The processes that were launched together, or this one alone.

    An error that all of them meet is printed once, by the first; another error is printed with its process's number.
    A process that the others wait for longer than `timeout` seconds counts as lost.
    """
    if not launched():
        yield ALONE
        return
    together, lost, failed = Together(timeout), False, True
    try:
        yield together
        failed = False
    except KeyboardInterrupt:
        if together.first:
            raise
        heed_no_more()
        raise typer.Exit(1) from None
    except LostRankError:
        lost = True
        if together.is_first_to_lose():
            raise
        raise typer.Exit(1) from None
    except (RepruneError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if not is_expected(error):
            raise
        if not together.blame(str(error)):
            raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
        if not together.first:
            complain(f"process {together.number} of {together.count}: ", end="")
        raise
    finally:
        if not lost:  # otherwise it would wait for the lost ones
            together.close(failed)
