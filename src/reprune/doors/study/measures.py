"""What a study measures of its models, dense and sparse, and by which protocol. Knows no cells.

Perplexity and test errors are taken on the same windows of the same texts, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from reprune.doors.evaluation.against import errors_against
from reprune.doors.evaluation.evaluate import evaluate
from reprune.doors.evaluation.protocols import Cut, check_text, cut_text, open_text
from reprune.doors.zeroshot.accuracy import check_tasks, open_tasks, zero_shot
from reprune.errors import InputError
from reprune.model.whole import collect_models

Progress = Callable[[int, int], None]
Notify = Callable[[str], None]


@contextmanager
def _by_its_name_here() -> Iterator[None]:
    """Call --seqlen of `evaluate` by its name here in errors."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("--seqlen", "--text-seqlen")) from None


@final
@dataclass(frozen=True)
class Text:
    """A text that is measured on."""

    source: str  # as given
    name: str  # in the records
    sha256: str


@final
@dataclass(frozen=True)
class Measures:
    """What is measured of every model."""

    texts: tuple[str, ...]  # SOURCEs, as given
    protocol: str | None = None
    seqlen: int | None = None  # of a window; None: the protocol's
    windows: int | None = None
    zero_shot: tuple[str, ...] = ()  # names of tasks
    zero_shot_data: Path | None = None
    zero_shot_limit: int | None = None

    def check(self) -> None:
        """Raise `InputError` for what cannot be measured, as far as that can be told without a model or a network."""
        if not self.texts:
            raise InputError("--text: expected at least one text, such as wikitext2.")
        with _by_its_name_here():
            Cut.of(**self.cut)
            for text in self.texts:
                check_text(text)
        if self.zero_shot:
            check_tasks(**self.asked)

    @property
    def cut(self) -> dict[str, Any]:
        """The windows, as arguments of `evaluate`."""
        return {"protocol": self.protocol, "seqlen": self.seqlen, "max_windows": self.windows}

    @property
    def asked(self) -> dict[str, Any]:
        """The zero-shot tasks, as arguments of `zero_shot`."""
        return {"tasks": self.zero_shot, "data": self.zero_shot_data, "limit": self.zero_shot_limit}

    def record(self, texts: Sequence[Text], tasks: Mapping[str, str]) -> dict[str, Any]:
        """As in study.json: texts and tasks with their SHA-256, a folder of this machine by its last part."""
        return {
            "texts": {text.name: text.sha256 for text in texts},
            "protocol": self.protocol,
            "seqlen": self.seqlen,
            "windows": self.windows,
            "zero_shot": dict(tasks),
            "zero_shot_data": self.zero_shot_data.resolve().name if self.zero_shot_data else None,
            "zero_shot_limit": self.zero_shot_limit,
        }


@final
@dataclass(frozen=True)
class Bench:
    """Measures models of one architecture on one device."""

    measures: Measures
    device: str
    precision: str
    trust_remote_code: bool

    def tasks(self, notify: Notify) -> dict[str, str]:
        """The zero-shot tasks, each with the SHA-256 of what is asked; raises `InputError` if they cannot be run."""
        if not self.measures.zero_shot:
            return {}
        return {task.name: task.sha256 for task in open_tasks(**self.measures.asked, notify=notify)}

    def texts(self, folder: Path) -> list[Text]:
        """All texts, read and cut into windows to check that this is possible.

        Args:
            folder: the dense model's.

        Raises:
            InputError: a text cannot be used, or two have one name.
        """
        texts: dict[str, Text] = {}
        for given in self.measures.texts:
            with _by_its_name_here():
                windows = cut_text(folder, open_text(given), Cut.of(**self.measures.cut), self.trust_remote_code)
            if windows.text in texts:
                raise InputError(f"--text {given}: another text is called {windows.text} too; rename one of them.")
            texts[windows.text] = Text(given, windows.text, windows.text_sha256)
        return list(texts.values())

    def _common(self, progress: Progress, notify: Notify) -> dict[str, Any]:
        return {
            "device": self.device,
            "precision": self.precision,
            "trust_remote_code": self.trust_remote_code,
            "progress": progress,
            "notify": notify,
        }

    def perplexity(self, model: str | Path, text: Text, progress: Progress, notify: Notify) -> dict[str, Any]:
        """The record of `evaluate`: the perplexity and all that decides it."""
        found = evaluate(model, text.source, **self.measures.cut, **self._common(progress, notify)).record()
        collect_models()
        return found

    def errors(
        self, sparse: Path, dense: str, text: Text, progress: Progress, notify: Notify
    ) -> list[dict[str, float]]:
        """Each block's error against the dense model, on the windows that perplexity is measured on."""
        found = errors_against(sparse, dense, text.source, **self.measures.cut, **self._common(progress, notify))
        return [{"normalized": block.normalized, "relative": block.relative} for block in found.blocks]

    def zero_shot(self, model: str | Path, progress: Progress, notify: Notify) -> dict[str, Any]:
        """The record of `zero_shot`: accuracy by task."""
        found = zero_shot(model, **self.measures.asked, **self._common(progress, notify)).record()
        collect_models()
        return found
