"""Errors say the same in every process that they are sent to."""

from __future__ import annotations

import pickle

import pytest

from reprune.errors import HalfPrecisionError, InputError, NumericalError, RepruneError, UnsupportedModelError


@pytest.mark.parametrize("kind", [HalfPrecisionError, InputError, NumericalError, UnsupportedModelError])
def test_an_error_that_is_sent_says_the_same(kind: type[RepruneError]) -> None:
    error = kind("this model cannot be run")
    sent = pickle.loads(pickle.dumps(error))
    assert type(sent) is kind
    assert (str(sent), vars(sent)) == (str(error), vars(error))
