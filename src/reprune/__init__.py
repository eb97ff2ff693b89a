"""reprune: prune decoder LLMs after training and reconstruct, block by block, what the pruning broke."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reprune.doors.api import evaluate as evaluate
    from reprune.doors.api import plan as plan
    from reprune.doors.api import prune as prune
    from reprune.doors.api import resume as resume
    from reprune.doors.api import status as status

__version__ = "0.1.0"
