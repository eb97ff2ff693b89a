"""Linux's control groups that this process is in, in which a container or a job has its limits. Knows none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MOUNTED = "sys/fs/cgroup"


def groups(controller: str, system: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """Folders of the group that this process is in and of all above it, each with the version of the system's groups.

    In a container the path is often the host's. The container's own group is then what is mounted, and the only one.

    Args:
        controller: what limits are asked for, as the first version calls it.
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
