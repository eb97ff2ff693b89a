"""Finds the Linux control groups of this process, which hold the limits of its container or job. Knows no limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MOUNTED = "sys/fs/cgroup"


def groups(controller: str, system: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The folders of this process's group and all groups above it, each with its version of control groups (1 or 2).

    In a container the path is often the host's. What is mounted is then the container's own group, the only one there.

    Args:
        controller: the kind of limits, by its name in version 1 ("cpu", "memory").
        system: the root of the file system.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = system / _MOUNTED / controller if controllers else system / _MOUNTED
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(root):
                yield group, 1 if controllers else 2
