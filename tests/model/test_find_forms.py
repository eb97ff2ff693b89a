"""What blocks put out for later ones, and which of them read it, is found by running each on a few tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.block import Call
from reprune.model.forms import Beside, Form, Slot
from reprune.model.handing import find_forms, find_joined, find_whole_width

Puts = Callable[[Tensor, Any, Any], Any]
"""A block's outputs, from its states, a mapping that all may share, and what the previous one returned besides."""


class _Hands(nn.Module):
    def __init__(self, puts: Puts) -> None:
        super().__init__()
        self.puts = puts

    def forward(self, x: Tensor, side: Any = None, beside: Any = None) -> Any:
        return self.puts(x, side, beside)


def _forms(*blocks: tuple[Puts, dict[str, Any]], passed_over: int | None = None) -> list[Form]:
    """The forms of blocks, each with the keyword arguments that it is passed; one of them may be passed over."""
    calls = [Call((None,), kwargs, 0, Form(runs=index != passed_over)) for index, (_, kwargs) in enumerate(blocks)]
    modules = nn.ModuleList(_Hands(puts) for puts, _ in blocks).to("meta")
    return find_forms("Model", modules, calls, torch.zeros(1, 11, 4), Form(), lambda returned: set())


def _reads_and_writes(forms: list[Form]) -> list[tuple[list[int], list[int]]]:
    return [(sorted(form.reads), sorted(form.writes)) for form in forms]


def _returns(x: Tensor, side: Any, beside: Any) -> Any:
    return x, x[..., :2]


def _alone(x: Tensor, side: Any, beside: Any) -> Any:
    return x


def _reads(x: Tensor, side: Any, beside: Any) -> Any:
    return x + sum(part.sum() for value in side.values() for part in ([value] if isinstance(value, Tensor) else value))


def test_what_is_returned_is_for_the_next_block_alone() -> None:
    after = {"beside": Beside(1)}
    assert _reads_and_writes(_forms((_returns, {}), (_alone, after), (_alone, {}))) == [([], [0]), ([0], []), ([], [])]


def test_what_is_none_in_truth_is_not_handed_on() -> None:
    forms = _forms((lambda x, side, beside: (x, None), {}), (_alone, {"beside": Beside(1)}))
    assert _reads_and_writes(forms) == [([], []), ([], [])]


def _adds_if_given(x: Tensor, side: Any, beside: Any) -> Any:
    return (x if beside is None else x + beside.sum()), beside


def _cannot_be_run(x: Tensor, side: Any, beside: Any) -> Any:
    raise RuntimeError


def _passes_on(x: Tensor, side: Any, beside: Any) -> Any:
    return x, beside


def _chooses(x: Tensor, side: Any, beside: Any) -> Any:
    return x, torch.ones(len(x), x.shape[1], x.shape[1], dtype=torch.bool).tril()


def _reads_chosen_of_many(x: Tensor, side: Any, beside: Any) -> Any:
    return (x @ beside.to(x) if x.shape[1] > 16 else x), beside


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ((_returns, _passes_on, _passes_on, _adds_if_given), {1, 2, 3}),
        ((_chooses, _passes_on, _reads_chosen_of_many), {1, 2}),
        ((_chooses, _chooses, _chooses), set()),
        ((_returns, _adds_if_given, _adds_if_given, _passes_on), {1, 2}),
        ((_returns, _passes_on, _returns, _adds_if_given), {3}),
        ((lambda x, side, beside: (x, None), _passes_on, _adds_if_given), set()),
        ((_cannot_be_run, _passes_on, _adds_if_given), {1, 2}),
    ],
)
def test_what_blocks_pass_on_as_it_is_reaches_the_one_that_uses_it(blocks: Sequence[Puts], expected: set[int]) -> None:
    first = Call((None,), {}, 0)
    calls = [first, *[replace(first, kwargs={"beside": Beside(1)})] * (len(blocks) - 1)]
    modules = nn.ModuleList(map(_Hands, blocks)).to("meta")
    order, states = range(len(blocks)), torch.zeros(1, 11, 4)
    assert find_joined(modules, calls, order, states, lambda returned: set()) == expected


@pytest.mark.parametrize(
    ("blocks", "used", "expected"),
    [
        ((_returns, _passes_on, _passes_on), {1}, {1, 2}),
        ((_returns, _passes_on, _passes_on), set(), set()),
        ((_returns, _passes_on, _returns), {1}, set()),
        ((_cannot_be_run, _passes_on, _passes_on), set(), {1, 2}),
    ],
)
def test_what_the_last_block_passes_on_is_followed_back_if_the_model_uses_it(
    blocks: Sequence[Puts], used: set[int], expected: set[int]
) -> None:
    first = Call((None,), {}, 0)
    calls = [first, *[replace(first, kwargs={"beside": Beside(1)})] * (len(blocks) - 1)]
    modules = nn.ModuleList(map(_Hands, blocks)).to("meta")

    def reads_after(returned: Mapping[int, Tensor]) -> set[int]:
        assert [*returned] == [1]
        assert returned[1].shape == (1, 11, 2)
        return used

    assert find_joined(modules, calls, range(len(blocks)), torch.zeros(1, 11, 4), reads_after) == expected


def test_what_is_returned_to_a_block_that_reads_a_mapping_is_handed_on_only_if_it_is_used() -> None:
    """As the tokens that an indexer of Mistral Large 4 has chosen, where later blocks read the keys of earlier ones."""

    def writes(x: Tensor, side: Any, beside: Any) -> Any:
        side["key"] = x[..., :2]
        return x, x.argmax(-1)

    def reads(x: Tensor, side: Any, beside: Any) -> Any:
        return x + side["key"].sum(), x.argmax(-1)

    def uses(x: Tensor, side: Any, beside: Any) -> Any:
        return reads(x + beside, side, beside)

    shared: dict[str, Tensor] = {}
    first = Call((None,), {"side": shared}, 0)
    after = replace(first, kwargs={"side": shared, "beside": Beside(1)})
    for blocks, expected in (((writes, reads, reads), set()), ((writes, reads, uses, reads), {2})):
        modules = nn.ModuleList(map(_Hands, blocks)).to("meta")
        calls = [first, *[after] * (len(blocks) - 1)]
        order, states = range(len(blocks)), torch.zeros(1, 11, 4)
        assert find_joined(modules, calls, order, states, lambda returned: set()) == expected
        assert shared == {}


@pytest.mark.parametrize("kind", [tuple, list])
def test_parts_of_an_entry_are_handed_one_by_one(kind: Callable[[list[Tensor]], Any]) -> None:
    def puts(x: Tensor, side: Any, beside: Any) -> Any:
        side["key"] = kind([x[..., :2], x[..., :3]])
        return x

    shared: dict[str, Any] = {}
    forms = _forms((puts, {"side": shared}), (_reads, {"side": shared}))
    assert [(slot.place, slot.width) for slot in forms[0].slots] == [(("side", "key", 0), 2), (("side", "key", 1), 3)]
    assert _reads_and_writes(forms) == [([], [0, 1]), ([0, 1], [])]


def test_a_block_that_is_passed_over_neither_runs_nor_reads() -> None:
    def fails(*_: Any) -> Any:
        raise AssertionError

    forms = _forms((_returns, {}), (fails, {}), (_alone, {"beside": Beside(1)}), passed_over=1)
    assert _reads_and_writes(forms) == [([], [0]), ([], []), ([0], [])]
    assert [form.runs for form in forms] == [True, False, True]


def _writes(width: int) -> Puts:
    def put(x: Tensor, side: Any, beside: Any) -> Any:
        side["key"] = x[..., :width]
        return x

    return put


def test_what_is_written_to_a_mapping_is_for_all_later_blocks_and_the_models_own_stays_empty() -> None:
    shared: dict[str, Tensor] = {}
    forms = _forms(*((puts, {"side": shared}) for puts in (_writes(2), _alone, _reads)))
    assert _reads_and_writes(forms) == [([], [0]), ([0], []), ([0], [])]
    assert forms[0].slots == (Slot(("side", "key", None), (2,), 1),)
    assert shared == {}


def test_what_is_written_to_a_mapping_and_read_by_no_later_block_is_not_carried_along() -> None:
    """As the last keys and values of a Gemma 4 that shares none."""

    def writes_more(x: Tensor, side: Any, beside: Any) -> Any:
        side["more"] = x[..., :3]
        return _reads(x, side, beside)

    def puts_out(x: Tensor, side: Any, beside: Any) -> Any:
        side["more"] = side["key"]
        return x

    def reads(key: str) -> Puts:
        return lambda x, side, beside: x + side[key].sum()

    for puts, expected in (
        ((_writes(2), _alone, writes_more), [([], [0]), ([0], []), ([0], [])]),
        ((_writes(2), _writes(2)), [([], []), ([], [])]),
        ((writes_more, _writes(2), reads("key")), [([], [0]), ([0], [1]), ([0, 1], [])]),
        ((writes_more, reads("more"), _writes(2)), [([], [0]), ([0], []), ([0], [])]),
        ((_writes(2), puts_out, reads("more")), [([], [0]), ([0], [1]), ([0, 1], [])]),
    ):
        shared: dict[str, Tensor] = {}
        assert _reads_and_writes(_forms(*((one, {"side": shared}) for one in puts))) == expected


def test_what_a_block_writes_to_a_mapping_of_its_own_is_handed_to_nobody() -> None:
    def counts(x: Tensor, side: Any, beside: Any) -> Any:
        side["tokens"] = x.shape[1]
        return x

    assert _reads_and_writes(_forms((counts, {"side": {}}), (counts, {"side": {}}))) == [([], [])] * 2


@pytest.mark.parametrize("number", [2, 3])
def test_several_mappings_under_one_name_are_not_taken_for_one(number: int) -> None:
    sides: list[dict[str, Tensor]] = [{} for _ in range(number)]
    passed = [*sides, *sides[:2]]
    with pytest.raises(
        UnsupportedModelError, match=r"block 0 hands .*, and it does so in one of several mappings of the same name"
    ):
        _forms(*((_writes(2), {"side": side}) for side in passed))
    assert _reads_and_writes(_forms(*((_alone, {"side": side}) for side in passed))) == [([], [])] * len(passed)


def test_an_entry_that_is_written_once_more_is_of_one_shape() -> None:
    shared: dict[str, Tensor] = {}
    forms = _forms(*((puts, {"side": shared}) for puts in (_writes(2), _writes(2), _reads)))
    assert _reads_and_writes(forms) == [([], [0]), ([0], [0]), ([0], [])]
    with pytest.raises(
        UnsupportedModelError,
        match=r"block 1 hands more than .* to later blocks, and that has different shapes in different blocks",
    ):
        _forms(*((puts, {"side": shared}) for puts in (_writes(2), _writes(3))))


def _chooses(width: int, dtype: torch.dtype = torch.int32) -> Puts:
    def put(x: Tensor, side: Any, beside: Any) -> Any:
        return x, torch.zeros(len(x), x.shape[1], min(width, x.shape[1]), dtype=dtype, device=x.device)

    return put


def _hands_on(x: Tensor, side: Any, beside: Any) -> Any:
    return x + beside.sum(), beside


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("width", [4, 16])
def test_whole_numbers_come_after_what_is_measured(width: int, dtype: torch.dtype) -> None:
    def writes(x: Tensor, side: Any, beside: Any) -> Any:
        side["key"] = x[..., :2]
        return x, beside

    def reads(x: Tensor, side: Any, beside: Any) -> Any:
        return x + side["key"].sum() + beside.sum(), None

    shared: dict[str, Tensor] = {}
    after = {"side": shared, "beside": Beside(1)}
    forms = _forms((_chooses(width, dtype), {"side": shared}), (writes, after), (reads, after))
    assert forms[0].slots == (Slot(("side", "key", None), (2,), 1), Slot(1, (min(width, 11),), 1, dtype))
    assert _reads_and_writes(forms) == [([], [1]), ([1], [0, 1]), ([0, 1], [])]


def _whole_width(tokens: int, *puts: Puts) -> int:
    calls: list[dict[str, Any]] = [{"beside": Beside(1)} if one is _hands_on else {} for one in puts]
    forms = _forms(*zip(puts, calls, strict=True))
    given = [Call((None,), kwargs, 0, form) for kwargs, form in zip(calls, forms, strict=True)]
    modules = nn.ModuleList(map(_Hands, puts)).to("meta")
    return find_whole_width("Model", modules, given, torch.zeros(1, tokens, 4))


@pytest.mark.parametrize(("tokens", "expected"), [(3, 3), (11, 11), (16, 16), (40, 16)])
def test_how_many_whole_numbers_there_are_of_so_many_tokens_is_found_by_a_block_that_can_be_run(
    tokens: int, expected: int
) -> None:
    def looks(x: Tensor, side: Any, beside: Any) -> Any:
        return x * float(x.isfinite().all()), _chooses(16)(x, side, beside)[1]

    assert _whole_width(tokens, _chooses(16), _hands_on) == expected
    assert _whole_width(tokens, looks, _hands_on, _chooses(16), _hands_on) == expected
    assert _whole_width(tokens, looks, _hands_on) == expected


def test_a_block_that_runs_on_few_tokens_alone_is_no_help() -> None:
    def chooses(x: Tensor, side: Any, beside: Any) -> Any:
        if x.shape[1] != 11:
            raise ValueError("too many")
        return _chooses(16)(x, side, beside)

    assert _whole_width(11, chooses, _hands_on) == 11
    assert _whole_width(12, chooses, _hands_on, _chooses(16), _hands_on) == 12
    with pytest.raises(
        UnsupportedModelError, match=r"Model: no block .* by itself for samples of 12 tokens \(ValueError: too many\)"
    ):
        _whole_width(12, chooses, _hands_on)


def test_memory_that_runs_out_where_samples_are_long_is_no_fault_of_the_model() -> None:
    def chooses(x: Tensor, side: Any, beside: Any) -> Any:
        if x.shape[1] != 11:
            raise MemoryError
        return _chooses(16)(x, side, beside)

    with pytest.raises(MemoryError):
        _whole_width(12, chooses, _hands_on)


def test_whole_numbers_of_other_sizes_than_with_few_tokens_are_refused() -> None:
    """With few tokens each chooses all of them."""

    def chooses_pairs(x: Tensor, side: Any, beside: Any) -> Any:
        return x, _chooses(22)(x, side, beside)[1].unsqueeze(-1).expand(-1, -1, -1, 2)

    assert _whole_width(14, _chooses(16), _hands_on, _chooses(32), _hands_on) == 14
    with pytest.raises(UnsupportedModelError, match=r"Model: with samples of 40 .* hand 16 whole .* others 32;"):
        _whole_width(40, _chooses(16), _hands_on, _chooses(32), _hands_on)
    assert _whole_width(11, chooses_pairs, _hands_on) == 22
    with pytest.raises(UnsupportedModelError, match=r"Model: a block .* shape \[22, 2\] .*, but \[11, 2\] with fewer"):
        _whole_width(40, chooses_pairs, _hands_on)


def test_whole_numbers_are_of_one_size_and_used_by_blocks_alone() -> None:
    def twice(x: Tensor, side: Any, beside: Any) -> Any:
        side["key"] = x[..., :3].argsort(-1)
        return _chooses(4)(x, side, beside)

    shared: dict[str, Tensor] = {}
    passed = {"side": shared}
    with pytest.raises(UnsupportedModelError, match=r"block 0 .* several sets of whole numbers of different sizes"):
        _forms((twice, passed), (_reads, {**passed, "beside": Beside(1)}))
    for given, why in ((_chooses(4), "whole numbers which are used after the last block"), (_returns, "")):
        calls = [Call((None,), {}, 0), Call((None,), {"beside": Beside(1)}, 0)]
        modules = nn.ModuleList([_Hands(given), _Hands(_hands_on)]).to("meta")
        with pytest.raises(UnsupportedModelError, match=f"block 1 .* {why}") if why else nullcontext():
            find_forms("Model", modules, calls, torch.zeros(1, 11, 4), Form(), lambda returned: {*returned})


@pytest.mark.parametrize(("number", "fits"), [(2**24, True), (-(2**24), True), (2**24 + 1, False), (-(2**31), False)])
def test_whole_numbers_that_float32_does_not_hold_are_refused(number: int, fits: bool) -> None:
    """As the largest of its dtype, in place of tokens that there are not."""

    def returns(x: Tensor, side: Any, beside: Any) -> Any:
        return x, torch.full(x.shape[:2], number, dtype=torch.int32)

    with nullcontext() if fits else pytest.raises(UnsupportedModelError, match=r"whole numbers beyond 16,777,216"):
        _forms((returns, {}), (_alone, {"beside": Beside(1)}))

    def writes(x: Tensor, side: Any, beside: Any) -> Any:
        side["number"] = returns(x, side, beside)[1]
        return x

    shared: dict[str, Tensor] = {}
    assert _forms((writes, {"side": shared}), (_alone, {"side": shared}))[0].slots == ()


def test_complex_numbers_are_refused() -> None:
    def returns(x: Tensor, side: Any, beside: Any) -> Any:
        return x, torch.complex(x, x)

    with pytest.raises(UnsupportedModelError, match=r"block 0 hands .*, and that is a tensor of torch\.complex64"):
        _forms((returns, {}), (_alone, {"beside": Beside(1)}))


@pytest.mark.parametrize("shape", [(3, 11, 2), (1, 11, 11), (1, 7, 2), (11, 2), (11,)])
def test_numbers_are_of_the_tokens_of_one_sample(shape: tuple[int, ...]) -> None:
    def returns(x: Tensor, side: Any, beside: Any) -> Any:
        return x, torch.zeros(shape)

    with pytest.raises(UnsupportedModelError, match=rf"has the shape {re.escape(str([*shape]))} for one sample of 11"):
        _forms((returns, {}), (_alone, {"beside": Beside(1)}))
