"""reprune: prune decoder LLMs after training and reconstruct, block by block, what the pruning broke."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reprune.doors.api import plan, prune, resume, status
    from reprune.doors.evaluate import evaluate
    from reprune.engine.watcher import Watcher
    from reprune.errors import InputError, RepruneError

__version__ = "0.1.0"

_DOORS = {
    "evaluate": "reprune.doors.evaluate",
    "plan": "reprune.doors.api",
    "prune": "reprune.doors.api",
    "resume": "reprune.doors.api",
    "status": "reprune.doors.api",
    "Watcher": "reprune.engine.watcher",
    "RepruneError": "reprune.errors",
    "InputError": "reprune.errors",
}

__all__ = ["InputError", "RepruneError", "Watcher", "evaluate", "plan", "prune", "resume", "status"]


def __getattr__(name: str) -> Any:
    """Import a door when it is first used: `import reprune` alone stays quick."""
    if name in _DOORS:
        return getattr(import_module(_DOORS[name]), name)
    raise AttributeError(f"module 'reprune' has no attribute {name!r}")
