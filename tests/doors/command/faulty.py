"""The command line with a fault in one of its processes.

    python faulty.py FAULT RANK WINDOW ARGUMENTS...

When process RANK is about to finish WINDOW, it is killed ("kill"), stops responding ("stop"), finds its disk full
("full"), runs out of memory ("memory"), or the model's configuration is rewritten ("change"). "none" has no fault.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any

import torch

from reprune.doors.command.cli import main
from reprune.engine.books import Books


def fail(fault: str) -> None:
    match fault:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a stream")
        case "memory":
            torch.empty(2**60, dtype=torch.uint8)
        case "change":
            os.utime("llama/config.json", ns=(0, 0))


def run(fault: str, rank: str, window: str, *arguments: str) -> None:
    commit = Books.commit

    def committing(self: Books, at: Any, *rest: Any) -> None:
        if os.environ["RANK"] == rank and at.index == int(window):
            fail(fault)
        commit(self, at, *rest)

    Books.commit = committing  # type: ignore[method-assign]  # that is the fault
    main(arguments)


if __name__ == "__main__":
    run(*sys.argv[1:])
