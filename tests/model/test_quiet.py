"""Transformers is quiet within `quiet_transformers`, in one thread at a time, and as before after it."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from transformers.utils import logging

from reprune.model.quiet import quiet_transformers


def _settings() -> tuple[int, bool, int]:
    return logging.get_verbosity(), logging.is_progress_bar_enabled(), len(warnings.filters)


@pytest.mark.parametrize("step", ["set_verbosity_error", "disable_progress_bar"])
def test_an_interrupt_at_any_step_puts_back_what_was(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _settings()
    plain = getattr(logging, step)

    def interrupted() -> None:
        plain()
        raise KeyboardInterrupt

    monkeypatch.setattr(logging, step, interrupted)
    with pytest.raises(KeyboardInterrupt), quiet_transformers():
        raise AssertionError("it was interrupted before")
    assert _settings() == before


def test_threads_enter_it_one_after_the_other() -> None:
    before, entered = _settings(), Event()

    def other() -> None:
        with quiet_transformers():
            entered.set()

    with ThreadPoolExecutor(1) as threads:
        with quiet_transformers(), quiet_transformers():
            waiting = threads.submit(other)
            assert not entered.wait(0.1)
        waiting.result(timeout=10)
    assert _settings() == before
