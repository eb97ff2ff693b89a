"""reprune: prune decoder LLMs after training and reconstruct, block by block, what the pruning broke.

    prune           prune a model, reconstruct it window by window, and write the sparse model
    resume          go on with a run that was interrupted
    status          how far a run is
    plan            what `prune` would do and need, and why it would refuse
    verify          check a result against its record
    evaluate        a model's perplexity on a text
    errors_against  the error of every block against the dense model
    zero_shot       a model's accuracy on the paper's tasks
    study           prune and measure a model in every cell of a grid
    report          one HTML file on a run or a study

A `Watcher` receives the events of a run, a `StudyWatcher` those of a study. Every error raised on purpose is a
`RepruneError`: an `InputError` if an argument cannot be used, a `NumericalError` if a computation gave unusable
numbers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reprune.doors.api import prune, resume
    from reprune.doors.evaluation.against import errors_against
    from reprune.doors.evaluation.evaluate import evaluate
    from reprune.doors.planned import plan
    from reprune.doors.report.write import report
    from reprune.doors.status import status
    from reprune.doors.study.run import study
    from reprune.doors.study.watcher import StudyWatcher
    from reprune.doors.verify import verify
    from reprune.doors.zeroshot.accuracy import zero_shot
    from reprune.engine.watcher import Watcher
    from reprune.errors import InputError, NumericalError, RepruneError

__version__ = "0.1.0"

_DOORS = {
    "errors_against": "reprune.doors.evaluation.against",
    "evaluate": "reprune.doors.evaluation.evaluate",
    "plan": "reprune.doors.planned",
    "prune": "reprune.doors.api",
    "report": "reprune.doors.report.write",
    "resume": "reprune.doors.api",
    "status": "reprune.doors.status",
    "study": "reprune.doors.study.run",
    "verify": "reprune.doors.verify",
    "zero_shot": "reprune.doors.zeroshot.accuracy",
    "StudyWatcher": "reprune.doors.study.watcher",
    "Watcher": "reprune.engine.watcher",
    "RepruneError": "reprune.errors",
    "InputError": "reprune.errors",
    "NumericalError": "reprune.errors",
}

__all__ = [
    "InputError",
    "NumericalError",
    "RepruneError",
    "StudyWatcher",
    "Watcher",
    "errors_against",
    "evaluate",
    "plan",
    "prune",
    "report",
    "resume",
    "status",
    "study",
    "verify",
    "zero_shot",
]


def __dir__() -> list[str]:
    """The doors too, before they are imported."""
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker would take any name to be there

    def __getattr__(name: str) -> Any:
        """Import a door when it is first used: `import reprune` alone stays quick."""
        if name in _DOORS:
            if _DOORS[name] != "reprune.errors":  # to be caught by
                import_module("reprune.errors").check_system()
            return getattr(import_module(_DOORS[name]), name)
        raise AttributeError(f"module 'reprune' has no attribute {name!r}")
