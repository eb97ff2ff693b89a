"""A model's states, and the slots beside them, are laid out in a stream by samples and tokens, and come back equal."""

from __future__ import annotations

from collections import UserDict, defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reprune.model.block import Call
from reprune.model.forms import Beside, Form, Slot, axes, is_shared

_SIZES = st.integers(1, 4)


@st.composite
def _slots(draw: st.DrawFn) -> tuple[Slot, ...]:
    """Some of floats, then some of whole numbers, which all have one width."""
    found, shapes = [], st.lists(_SIZES, max_size=2).map(tuple)
    floats, alike = draw(st.integers(0, 3)), draw(shapes)
    for number in range(draw(st.integers(floats, 3))):
        whole = number >= floats
        shape = alike if whole else draw(shapes)
        place = draw(st.sampled_from([number + 1, ("side", f"key {number}", None), ("side", f"key {number}", 0)]))
        dtype = draw(st.sampled_from([torch.int32, torch.int64])) if whole else torch.float32
        found.append(Slot(place, shape, draw(st.integers(1, len(shape) + 1)), dtype))
    return tuple(found)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Form, Tensor]:
    """A form, and states in a model's layout."""
    rest = tuple(draw(st.lists(_SIZES, min_size=1, max_size=2)))
    samples, tokens = draw(st.permutations(range(len(rest) + 2)))[:2]
    main = torch.randn(draw(_SIZES), draw(_SIZES), *rest)
    slots = draw(_slots())
    every = frozenset(range(len(slots)))
    return Form(samples, tokens, rest, slots, every, every), main.movedim((0, 1), (samples, tokens))


def _of(form: Form, states: Tensor) -> Tensor:
    return form.of(states, next((slot.width for slot in form.slots if slot.whole), 0))


@given(_cases())
def test_states_come_back_as_they_were_with_nothing_beside_them(case: tuple[Form, Tensor]) -> None:
    form, states = case
    stream = _of(form, states)
    assert stream.shape[:2] == (states.shape[form.samples], states.shape[form.tokens])
    assert torch.equal(form.entering(stream), states)
    assert stream.numel() == states.numel() + stream[..., 0].numel() * sum(slot.width for slot in form.slots) or (
        not form.slots
    )


@given(_cases())
def test_what_a_block_writes_is_what_the_next_one_reads(case: tuple[Form, Tensor]) -> None:
    form, states = case
    stream = _of(form, states)
    written = {
        slot.place: slot.value(torch.randint(-5, 2**24, (*stream.shape[:2], slot.width)).float()) for slot in form.slots
    }
    returned = [states, *(written.get(place) for place in range(1, 4))]
    side: dict[str, Any] = {}
    for place, value in written.items():
        if not isinstance(place, int):
            side[place[1]] = value if place[2] is None else (value,)
    out = form.leaving(tuple(returned), {"side": side}, stream)
    args, kwargs = form.hand((None, *(Beside(place) for place in range(1, 4))), {"side": {}}, out)
    assert torch.equal(form.entering(out), states)
    for place, value in written.items():
        if isinstance(place, int):
            read = args[place]
        else:
            read = kwargs["side"][place[1]]
            read = read if place[2] is None else read[0]
        assert torch.equal(read, value)
        assert read.dtype == value.dtype


@given(st.integers(1, 2), st.integers(1, 5), st.booleans())
def test_the_width_of_whole_numbers_is_that_of_the_stream(number: int, width: int, heads: bool) -> None:
    """It need not be the one that they were found with."""
    shape = (2, 3) if heads else (3,)
    slots = (Slot(1, (2,), 1), *(Slot(2 + at, shape, len(shape), torch.int32) for at in range(number)))
    every = frozenset(range(len(slots)))
    form = Form(rest=(4,), slots=slots, reads=every, writes=every)
    states, floats = torch.randn(3, 7, 4), torch.randn(3, 7, 2)
    size = (3, 2, 7, width) if heads else (3, 7, width)
    chosen = [torch.randint(0, 7, size, dtype=torch.int32) for _ in range(number)]
    stream = form.leaving((states, floats, *chosen), {}, form.of(states, 2 * width if heads else width))
    args, _ = form.hand((None, *(Beside(place) for place in range(1, 2 + number))), {}, stream)
    assert torch.equal(args[1], floats)
    assert all(torch.equal(one, other) for one, other in zip(args[2:], chosen, strict=True))


def test_whole_numbers_are_neither_measured_nor_mixed() -> None:
    slots = (Slot(1, (2,), 1), Slot(2, (3,), 1, torch.int32))
    form = Form(rest=(4,), slots=slots, writes=frozenset({0, 1}))
    one, other = torch.randn(2, 3, 9), torch.randn(2, 3, 9)
    assert torch.equal(form.measured(one), one[..., :6])
    assert torch.equal(form.put_out(one), one[..., :6])
    assert torch.equal(replace(form, writes=frozenset({1})).put_out(one), one[..., :4])
    assert [*form.beside(one)] == [1]
    mixed = form.mixed(one, other, 0.25)
    torch.testing.assert_close(mixed[..., :6], 0.75 * one[..., :6] + 0.25 * other[..., :6])
    assert torch.equal(mixed[..., 6:], one[..., 6:])
    assert torch.equal(Form().mixed(one, other, 0.25), one.lerp(other, 0.25))


@given(_cases())
def test_what_is_not_written_stays_and_what_is_not_read_is_not_handed(case: tuple[Form, Tensor]) -> None:
    form, states = case
    stream = torch.randn(_of(form, states).shape)
    other = replace(form, reads=frozenset(), writes=frozenset())
    out = other.leaving(form.entering(stream), {"side": {}}, stream)
    torch.testing.assert_close(out, stream, rtol=0, atol=0)
    args, kwargs = other.hand((None, Beside(1)), {"side": {}}, stream)
    assert args == ((None, None) if form.slots else args)
    assert kwargs == {"side": {}}


def test_gradients_pass_through_what_is_carried_along() -> None:
    slot = Slot(1, (2,), 1)
    form = Form(0, 1, (3,), (slot,), frozenset({0}), frozenset({0}))
    stream = torch.randn(2, 4, 5, requires_grad=True)
    args, _ = form.hand((None, Beside(1)), {}, stream)
    form.leaving((form.entering(stream), 2 * args[1]), {}, stream).sum().backward()
    assert stream.grad is not None
    assert torch.equal(stream.grad, torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0]).expand(2, 4, 5))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1, 11, 64), (3, 6, 64), (0, 1)),
        ((11, 1, 64), (6, 3, 64), (1, 0)),
        ((4, 1, 11, 64), (4, 3, 6, 64), (1, 2)),
        ((1, 43, 64), (3, 38, 64), (0, 1)),  # with positions that the model adds
        ((1, 22, 64), (3, 12, 64), (0, 1)),
        ((11, 64), (18, 64), None),  # samples and tokens in one
        ((1, 64), (3, 64), None),  # no tokens
        ((1, 11, 11), (3, 6, 6), None),  # values of pairs of tokens
        ((1, 11, 64), (3, 6), None),
        ((1, 1, 64), (3, 3, 64), None),  # pairs of samples
        ((11, 22, 64), (6, 12, 64), None),  # two axes of tokens, none of samples
    ],
)
def test_axes_are_told_by_what_changes_with_samples_and_tokens(
    one: tuple[int, ...], other: tuple[int, ...], expected: tuple[int, int] | None
) -> None:
    assert axes((torch.Size(one), torch.Size(other)), (torch.Size((1, 11)), torch.Size((3, 6)))) == expected


@pytest.mark.parametrize("wrapped", [lambda one: one, lambda one: (one, None), lambda one: [one]])
def test_what_a_block_puts_out_in_half_precision_is_float32_in_a_stream(wrapped: Callable[[Tensor], Any]) -> None:
    states, left = torch.randn(2, 3, 4), torch.randn(2, 3, 4).bfloat16()
    found = Form().leaving(wrapped(left), {}, states)
    assert found.dtype == torch.float32
    assert torch.equal(found, left.float())


def test_of_what_stands_beside_the_states_a_block_returns_what_it_writes() -> None:
    slots = (Slot(1, (2,), 1), Slot(2, (3,), 1), Slot(("side", 0, None), (1,), 1))
    form = Form(rest=(4,), slots=slots, writes=frozenset({1, 2}))
    stream = torch.randn(2, 3, 10)
    found = form.beside(stream)
    assert found.keys() == {2}
    assert torch.equal(found[2], stream[..., 6:9])


def test_a_mapping_that_blocks_write_to_is_another_in_each_pass() -> None:
    form = Form(rest=(4,), slots=(Slot(("side", 0, None), (1,), 1),), reads=frozenset({0}))
    shared: defaultdict[object, list[Any]] = defaultdict(list)
    call = Call((None,), {"side": shared}, 0, form)
    first, second = (call.bind(torch.randn(2, 3, 5))[1]["side"] for _ in range(2))
    assert first is not second
    assert not shared
    assert [*first] == [0]
    assert first["more"] == [], "it has the same default"


def test_parts_of_one_entry_are_handed_as_the_tuple_that_they_were() -> None:
    """An example is an entry of keys and values."""
    form = Form(rest=(4,), slots=tuple(Slot(("side", "key", number), (2,), 1) for number in (0, 1)))
    stream = torch.randn(2, 3, 8)
    _, kwargs = replace(form, reads=frozenset({0, 1})).hand((None,), {"side": {}}, stream)
    keys, values = kwargs["side"]["key"]
    assert torch.equal(torch.cat([keys, values], dim=-1), stream[..., 4:])


def test_a_mapping_that_holds_something_is_none_that_blocks_share() -> None:
    assert is_shared({})
    assert is_shared(UserDict())
    assert not any(map(is_shared, ({"cos": 1}, (), [], None)))
