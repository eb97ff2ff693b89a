"""A model is told to use no cache if it can be told, and is run in any case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from reprune.model.block import Precision
from reprune.model.head import TokenLosses
from reprune.model.recorder import fill_with_nothing
from reprune.model.skeleton import Skeleton
from reprune.model.uncached import uncached

from .. import odd

IDS = torch.arange(6)[None]
_FORWARD = tf.LlamaForCausalLM.forward


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda input_ids, use_cache=True: (input_ids, use_cache), False),
        (lambda input_ids, **options: (input_ids, options["use_cache"]), False),
        (lambda input_ids, cached=True: (input_ids, cached), True),
    ],
)
def test_it_is_told_where_its_forward_takes_that(forward: Callable[..., Any], expected: bool) -> None:
    model = nn.Module()
    model.forward = forward
    ids, told = uncached(model, IDS)
    assert ids is IDS
    assert told is expected


def test_a_model_that_cannot_be_told_is_found_and_measured_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = odd.save("", tmp_path), odd.build()
    expected = TokenLosses(model, Precision())(IDS)
    forward = odd.OddModel.forward

    def untold(self: odd.OddModel, input_ids: Tensor) -> Any:
        return forward(self, input_ids)

    monkeypatch.setattr(odd.OddModel, "forward", untold)
    assert Skeleton(folder).running == (0, 1, 2)
    assert torch.equal(TokenLosses(model, Precision())(IDS), expected)


@pytest.mark.parametrize(
    "untold",
    [
        lambda self, input_ids: _FORWARD(self, input_ids),
        lambda self, input_ids, **options: _FORWARD(self, input_ids),
        lambda self, input_ids, use_cache=None: _FORWARD(self, input_ids),
    ],
    ids=["cannot be told", "of any options", "told alone"],
)
def test_parts_of_a_model_that_are_not_told_make_no_cache(
    untold: Callable[..., Any], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [call.kwargs for call in Skeleton(llama).record(IDS, fill_with_nothing)[1]]
    monkeypatch.setattr(tf.LlamaForCausalLM, "forward", untold)
    skeleton = Skeleton(llama)
    calls = skeleton.record(IDS, fill_with_nothing)[1]
    assert [call.kwargs.keys() for call in calls] == [kwargs.keys() for kwargs in expected]
    assert skeleton.config.use_cache, "as it was"


def test_each_part_goes_by_its_own_configuration_and_has_it_back_after_an_error() -> None:
    class Part(nn.Module):
        def __init__(self, **settings: Any) -> None:
            super().__init__()
            self.config = SimpleNamespace(**settings)

    class Around(Part):
        def forward(self, first: Any = None, input_ids: Tensor = IDS) -> Any:
            assert first is None
            seen.append([one.config.use_cache for one in (self, self.inner, self.inner.unkept)])
            raise ZeroDivisionError

    seen: list[list[bool]] = []
    model = Around(use_cache=True)
    model.inner = Part(use_cache=True)
    model.inner.unkept, model.bare = Part(use_cache=False), Part()
    with pytest.raises(ZeroDivisionError):
        uncached(model, IDS)
    assert seen == [[False, False, False]]
    assert [one.config for one in model.modules()] == [
        SimpleNamespace(use_cache=True),
        SimpleNamespace(use_cache=True),
        SimpleNamespace(use_cache=False),
        SimpleNamespace(),
    ]


def test_a_configuration_that_cannot_be_changed_stays_as_it_is() -> None:
    class Frozen(NamedTuple):
        use_cache: bool = True

    model = nn.Module()
    model.forward = lambda input_ids, use_cache=True: use_cache
    model.config = Frozen()  # type: ignore[assignment]  # as a model's own code may
    assert uncached(model, IDS) is False
    assert model.config.use_cache
