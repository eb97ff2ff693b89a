"""Tensors are found and replaced in tuples, lists, mappings and objects that hold them; all else is unchanged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from reprune.model.nested import leaves, parts, plain_values, with_tensors


class _Named(NamedTuple):
    mask: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class _Frozen:
    mask: Tensor
    scale: float = 1.0


@dataclass
class _Output(ModelOutput):  # type: ignore[misc]  # Transformers' own
    mask: Tensor | None = None


@dataclass
class _More:
    scale: float

    def __post_init__(self) -> None:
        self.mask = _ONE


class _Plain:
    def __init__(self, mask: Any) -> None:
        self.mask = mask


class _Slotted:
    __slots__ = ("mask",)

    def __init__(self, mask: Any) -> None:
        self.mask = mask


class _AndMore(_Slotted):
    """Has slots and a dictionary."""

    def __init__(self, mask: Any, more: Any = None) -> None:
        super().__init__(mask)
        self.more = more


@dataclass
class _Unset:
    mask: Tensor
    later: Tensor = field(init=False)


_ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("value", "mask"),
    [
        ((1, _ONE), lambda made: made[1]),
        ([_ONE, "a"], lambda made: made[0]),
        ({"mask": _ONE}, lambda made: made["mask"]),
        (_Named(_ONE), lambda made: made.mask),
        (_Frozen(_ONE), lambda made: made.mask),
        (_Output(_ONE), lambda made: made.mask),
        (_More(1.0), lambda made: made.mask),
        (_Plain(_ONE), lambda made: made.mask),
        (_Plain([{"deep": _ONE}]), lambda made: made.mask[0]["deep"]),
        (_Plain([3, _ONE]), lambda made: made.mask[1]),
        (_Plain(_Plain((_Frozen(_ONE),))), lambda made: made.mask.mask[0].mask),
        (_Slotted(_ONE), lambda made: made.mask),
        (_AndMore(_Plain(_ONE)), lambda made: made.mask.mask),
        (_AndMore(3, _ONE), lambda made: made.more),
        ({"side": (_Frozen(_ONE),)}, lambda made: made["side"][0].mask),
    ],
)
def test_a_tensor_is_replaced_wherever_it_lies_and_the_value_stays_as_it_was(value: Any, mask: Any) -> None:
    made = with_tensors(value, lambda tensor: 2 * tensor)
    assert type(made) is type(value)
    assert torch.equal(mask(made), 2 * _ONE)
    assert mask(value) is _ONE


@pytest.mark.parametrize("value", [None, 3, "a", torch.float32, nn.Linear(2, 2), _Frozen, _Plain(_Plain(3)), object()])
def test_what_holds_no_tensor_is_one_thing(value: Any) -> None:
    assert parts(value) is None
    assert with_tensors(value, lambda _: pytest.fail("a tensor was found")) is value


def test_what_is_not_changed_stays_the_same_object_but_for_what_a_block_may_write_to() -> None:
    value, mapping = _Plain(_ONE), dict[str, Any]()
    value.other, value.mapping = object(), mapping  # type: ignore[attr-defined]  # as those of any class
    made = with_tensors(value, lambda tensor: 2 * tensor)
    assert made.other is value.other  # type: ignore[attr-defined]
    assert made.mapping == {} and made.mapping is not mapping
    assert with_tensors(_Frozen(_ONE).mask, lambda tensor: tensor) is _ONE
    frozen = _Frozen(_ONE)
    assert with_tensors((frozen, frozen), lambda tensor: tensor)[1] is frozen
    assert type(with_tensors((torch.Size([2, 3]),), lambda tensor: tensor)[0]) is torch.Size


def test_each_leaf_has_its_place_and_what_was_never_set_has_none() -> None:
    alike = [_ONE, [torch.zeros(2), 1]]
    assert [place for place, _ in leaves(alike, ("args",))] == [("args", 0), ("args", 1, 0), ("args", 1, 1)]
    assert [place for place, _ in leaves(_Unset(_ONE), ())] == [("mask",)]
    assert not hasattr(with_tensors(_Unset(_ONE), lambda tensor: 2 * tensor), "later")


def test_numbers_and_texts_are_found_in_objects_that_hold_no_tensor_too() -> None:
    value = _Plain([_Slotted("a"), {"scale": _Plain(2.0)}, nn.Linear(2, 2), torch.float32])
    value.around = value  # type: ignore[attr-defined]  # as those of any class
    assert plain_values(value) == {("mask", 0, "mask"): "a", ("mask", 1, "scale", "mask"): 2.0}
    assert plain_values(None) == {(): None}


def test_an_object_within_itself_is_gone_through_once_and_its_copy_lies_within_itself() -> None:
    value, inner = _Plain(_ONE), _Plain(None)
    value.inner, inner.around = inner, [value]  # type: ignore[attr-defined]  # as those of any class
    assert [place for place, _ in leaves(value, ())] == [("mask",), ("inner", "mask"), ("inner", "around", 0)]
    made = with_tensors(value, lambda tensor: 2 * tensor)
    assert torch.equal(made.mask, 2 * _ONE)
    assert made.inner is not inner
    assert made.inner.around[0] is made
    assert inner.around[0] is value  # type: ignore[attr-defined]
    inner.around, value.mask = [inner], None  # type: ignore[attr-defined]
    assert parts(inner) is None
