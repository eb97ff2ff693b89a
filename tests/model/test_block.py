"""A block runs on hidden states as in its model, and shows which linears read the same inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.errors import HalfPrecisionError, UnsupportedModelError
from reprune.model.block import Block, Call, LinearGroup, Precision, many_passes
from reprune.model.linears import Stack

from ..casts import Casts

_CPU = torch.device("cpu")
_FIRST = Call((None,), {}, 0)


class _Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4, bias=False) for _ in range(4))
        self.idle = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.q(x) * self.k(x.clone()) + self.v(x)
        return x + self.twice(self.o(mixed)) + self.twice(mixed)


def _states() -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def _names(groups: list[LinearGroup]) -> list[tuple[str, ...]]:
    return [group.names for group in groups]


def _block(module: nn.Module, precision: Precision | None = None) -> Block:
    return Block(0, module, _CPU, precision or Precision())


@pytest.mark.parametrize(
    ("call", "args", "kwargs"),
    [
        (Call((None,), {"mask": 1}, 0), ("X",), {"mask": 1}),
        (Call((7, None, 8), {}, 1), (7, "X", 8), {}),
        (
            Call((7,), {"hidden_states": None, "mask": 1}, "hidden_states"),
            (7,),
            {"hidden_states": "X", "mask": 1},
        ),
    ],
)
def test_the_states_take_their_place_among_the_arguments(
    call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    states: Any = "X"
    assert call.bind(states) == (args, kwargs)
    assert call.bind(states) == (args, kwargs)  # the first call has changed nothing


class _Own(MutableMapping[str, float]):
    """A mapping that keeps its entries in a dict, which a plain copy shares."""

    def __init__(self) -> None:
        self.entries: dict[str, float] = {}

    def __getitem__(self, key: str) -> float:
        return self.entries.get(key, 0.0)

    def __setitem__(self, key: str, value: float) -> None:
        self.entries[key] = value

    def __delitem__(self, key: str) -> None:
        del self.entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@pytest.mark.parametrize(
    "call",
    [
        Call((None, defaultdict(float)), {}, 0),
        Call((None,), {"side": defaultdict(float)}, 0),
        Call((None,), {"side": _Own()}, 0),
    ],
)
def test_what_a_block_writes_to_an_empty_mapping_is_in_no_other_pass(call: Call) -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor, side: Any) -> Any:
            side["passes"] += 1.0
            return x + side["passes"]

    block, states = _block(Counting()), torch.zeros(1, 2, 3)
    assert [float(block.run(states, call).max()) for _ in range(3)] == [1.0] * 3


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: (x, None), lambda x: [x, 3]])
def test_the_states_are_what_comes_first_in_what_a_block_returns(wrap: Any) -> None:
    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap((2 * x).bfloat16())

    found = _block(Wrapped()).run(torch.ones(1, 2, 3), _FIRST)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.full((1, 2, 3), 2.0))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("recording", [True, False])
def test_a_block_that_writes_into_the_states_that_it_is_given_is_refused(device: str, recording: bool) -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return x

    with (
        torch.set_grad_enabled(recording),
        pytest.raises(UnsupportedModelError, match=r"InPlace: block 0 writes into .*'x = x \+ y'"),
    ):
        _block(InPlace()).run(_states().to(device), _FIRST)


def test_linears_are_grouped_by_the_tensor_they_read_in_the_order_in_which_they_run() -> None:
    # k reads a copy, which is another tensor; o and the second run of `twice` read `mixed`.
    groups = _block(_Module()).groups(_states(), _FIRST)
    assert _names(groups) == [("q", "v"), ("k",), ("o",), ("twice",)]
    assert [group.once for group in groups] == [True, True, True, False]


def test_views_of_the_same_data_are_one_input() -> None:
    class Viewed(_Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) + self.k(x.view(x.shape)) + self.v(x[:])

    assert _names(_block(Viewed()).groups(_states(), _FIRST)) == [("q", "k", "v")]


def test_memory_that_is_used_again_for_other_inputs_makes_no_group() -> None:
    class Long(_Module):
        def forward(self, x: Tensor) -> Tensor:
            for linear in (self.q, self.k, self.v, self.o):
                x = linear(torch.tanh(x))  # each input is freed once its linear has run
            return x

    assert _names(_block(Long()).groups(_states(), _FIRST)) == [("q",), ("k",), ("v",), ("o",)]


def test_a_list_of_modules_is_of_experts_where_one_of_them_runs() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.heads, self.unused = (
                nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3)) for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            heads = torch.stack([head.get_parameter("weight") for head in self.heads])
            return self.experts[1](x) + torch.einsum("btc,hrc->btr", x, heads)

    groups = _block(Listed()).groups(_states(), _FIRST)
    assert _names(groups) == [("experts.1",), ("experts.0",), ("experts.2",)]
    assert {(group.expert, group.stage) for group in groups} == {(True, "experts.*")}


def test_watching_shows_inputs_and_ends_with_its_context() -> None:
    block, seen = _block(_Module()), list[tuple[str, Tensor]]()
    with block.watch(lambda linear, inputs: seen.append((linear.name, inputs))):
        block.run(_states(), _FIRST)
    assert [name for name, _ in seen] == ["q", "k", "v", "o", "twice", "twice"]
    assert torch.equal(seen[0][1], _states())
    with (
        pytest.raises(ZeroDivisionError),
        block.watch(lambda linear, inputs: seen.append((linear.name, inputs))),
    ):
        raise ZeroDivisionError
    block.run(_states(), _FIRST)
    assert len(seen) == 6


def test_products_in_bfloat16_are_not_those_in_float32_but_near() -> None:
    module = _Module()
    exact = _block(module).run(_states(), _FIRST)
    low = _block(module, Precision(torch.bfloat16)).run(_states(), _FIRST)
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0.05)


def test_only_what_dtypes_are_to_blame_for_is_laid_to_half_precision() -> None:
    for said, kind in (("expected scalar type Float", HalfPrecisionError), ("no room", RuntimeError)):
        with (
            pytest.raises(RuntimeError if kind is RuntimeError else kind) as raised,
            Precision(torch.bfloat16).on(_CPU),
        ):
            raise RuntimeError(said)
        assert type(raised.value) is kind


def test_attention_is_plain_products_in_half_precision_on_a_cpu_alone() -> None:
    found = {
        (device, dtype): Block(0, _Module(), torch.device(device), Precision(dtype)).attends_by_products
        for device in ("cpu", "meta")
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert [where for where, products in found.items() if products] == [("cpu", torch.bfloat16)]


def test_a_block_carries_gradients_to_its_parameters() -> None:
    module = _Module()
    _block(module).run(_states(), _FIRST).square().sum().backward()
    assert all(getattr(module, name).weight.grad.any() for name in ("q", "k", "v", "o", "twice"))


def test_the_inputs_of_a_linear_are_had_without_running_what_comes_after() -> None:
    block, seen = _block(_Module()), dict[str, Tensor]()
    with block.watch(lambda linear, inputs: seen.setdefault(linear.name, inputs)):
        block.run(_states(), _FIRST)
    ran: list[str] = []
    with block.watch(lambda linear, inputs: ran.append(linear.name)):
        for linear in block.linears:
            if linear.name in seen:
                assert torch.equal(block.inputs_of(linear, _states(), _FIRST), seen[linear.name])
    assert ran == ["q", "q", "k", "q", "k", "v", "q", "k", "v", "o", "q", "k", "v", "o", "twice"]
    with pytest.raises(LookupError, match="idle never runs"):
        block.inputs_of(next(linear for linear in block.linears if linear.name == "idle"), _states(), _FIRST)


def test_what_a_linear_is_given_by_name_is_seen_and_what_a_block_raises_is_not_hidden() -> None:
    class Named(_Module):
        def forward(self, x: Tensor) -> Tensor:
            self.q(input=x)
            raise ZeroDivisionError

    block, seen = _block(Named()), list[Tensor]()
    with pytest.raises(ZeroDivisionError), block.watch(lambda _, inputs: seen.append(inputs)):
        block.show(_states(), _FIRST)
    assert torch.equal(seen[0], _states())


@pytest.mark.parametrize(("per_token", "routed"), [(1.0, True), (2.0, False)])
def test_a_block_is_routed_where_tokens_pass_through_some_of_a_stacks_matrices(per_token: float, routed: bool) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_weight = nn.Parameter(torch.randn(2, 4, 4))  # a matrix for each head, or for each expert

    stack = Stack("gate_weight", 2, (4, 4), (4, 1), "gate_weight", per_token)
    assert Block(0, Gated(), _CPU, Precision(), [stack]).routed is routed


def _passed(block: Block) -> tuple[list[Tensor], int]:
    """The outputs of three passes, and how many weights they cast."""
    with Casts(lambda one: one.shape == (4, 4)) as casts:
        return [block.run(_states() + number, _FIRST) for number in range(3)], casts.count


@pytest.mark.parametrize(("precision", "once"), [(Precision(torch.bfloat16), 5), (Precision(), 0)])
@torch.no_grad()
def test_weights_are_cast_once_in_many_passes_which_put_out_the_same(precision: Precision, once: int) -> None:
    block = _block(_Module(), precision)
    for parameter in block.module.parameters():
        parameter.requires_grad_(False)
    wanted, anew = _passed(block)
    with many_passes([block]):
        found, casts = _passed(block)
    assert (anew, casts) == (3 * (once + (once > 0)), once)  # one of the five linears runs twice in a pass
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert _passed(block)[1] == anew  # the casts are no longer kept


def test_after_many_passes_as_many_parameters_record_gradients_as_before() -> None:
    block = _block(_Module(), Precision(torch.bfloat16))
    for parameter in block.module.parameters():
        parameter.requires_grad_(False)
    block.module.get_parameter("q.weight").requires_grad_(True)
    with pytest.raises(KeyError), torch.no_grad(), many_passes([block]):
        raise KeyError("any")
    assert [name for name, one in block.module.named_parameters() if one.requires_grad] == ["q.weight"]


def test_parameters_that_are_no_floats_are_left_alone_in_many_passes() -> None:
    block = _block(_Module(), Precision(torch.bfloat16))
    block.module.numbers = nn.Parameter(torch.arange(3), requires_grad=False)
    with torch.no_grad(), many_passes([block]):
        assert not block.module.get_parameter("numbers").requires_grad
