"""An `einsum` is seen as a product of inputs and matrices, or not at all; experts are found by their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.model.linears import Linear, Stack, find_linears
from reprune.model.products import as_products, find_stacks, watched_products
from reprune.model.without_weights import without_weights

SIZES = {"b": 2, "t": 3, "h": 4, "n": 5, "d": 6, "e": 7}


def _sizes(letters: str) -> list[int]:
    return [SIZES[one] for one in letters]


@pytest.mark.parametrize(
    "equation",
    [
        "bth,hd->btd",
        "bth,dh->btd",
        "hd,bth->btd",
        "tbh,hnd->tbnd",  # a head's outputs are rows too
        "tbnd,hnd->tbh",  # several letters are columns
        "ebh,ehd->ebd",  # one matrix for each expert
        "ebh,edh->bed",
        "b t h, h d -> b t d",
    ],
)
def test_the_product_that_is_seen_gives_what_einsum_gives(equation: str) -> None:
    left, right = equation.replace(" ", "").split("->")[0].split(",")
    tensors = [torch.randn(_sizes(left)), torch.randn(_sizes(right))]
    weight = tensors[0] if left == "hd" else tensors[1]
    seen = as_products((equation, *tensors), lambda one: one is weight)
    assert len(seen) == 2
    inputs, matrices = seen
    assert matrices.data_ptr() == weight.data_ptr()
    assert matrices.numel() == weight.numel()
    expected, found = torch.einsum(equation, *tensors), inputs @ matrices
    assert torch.allclose(found.flatten().sort().values, expected.flatten().sort().values, atol=1e-5)
    assert len(as_products((equation, tensors), lambda one: one is weight)) == 2  # operands in a list


@pytest.mark.parametrize(
    "equation",
    [
        "bth,hd",  # without a result
        "bth,bth->bt",  # no rows
        "bth,t->bth",  # nothing is summed over
        "...h,hd->...d",
        "bth,dnh->bth",  # rows that are summed over
        "btt,td->bd",
    ],
)
def test_what_is_no_such_product_is_not_seen(equation: str) -> None:
    left, right = equation.split("->")[0].split(",")
    tensors = [torch.randn(_sizes(left.replace("...", "bt"))), torch.randn(_sizes(right))]
    assert as_products((equation, *tensors), lambda one: one is tensors[1]) == ()


def test_what_is_not_ours_or_more_than_two_is_not_seen() -> None:
    one, other = torch.randn(2, 3, 4), torch.randn(4, 6)
    assert as_products(("bth,hd->btd", one, other), lambda _: False) == ()
    assert as_products(("bth,hd,dn->btn", one, other, torch.randn(6, 5)), lambda tensor: tensor is other) == ()


class _Einsum(nn.Module):
    """A block that multiplies by parameters of its own, in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.randn(8, 2, 4))
        self.k = nn.Parameter(torch.randn(8, 2, 4))
        self.o = nn.Parameter(torch.randn(8, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (torch.einsum("bth,hnd->btnd", x, weight) for weight in (self.q, self.k))
        return x + torch.einsum("btnd,hnd->bth", torch.tanh(q) * k, self.o)


def test_matrices_that_a_block_multiplies_by_in_einsum_are_found() -> None:
    block, x = _Einsum(), torch.randn(2, 3, 8)
    stacks = find_stacks(block, lambda: block(x), 6)
    assert [(one.parameter, one.count, one.shape) for one in stacks] == [
        ("q", 1, (8, 8)),
        ("k", 1, (8, 8)),
        ("o", 1, (8, 8)),
    ]
    assert [one.shares for one in stacks] == ["q", "q", "o"]
    linears = find_linears(block, stacks)
    reached: dict[str, Tensor] = {}

    def saw(linear: Linear, inputs: Tensor) -> None:
        reached[linear.name] = inputs

    with torch.no_grad(), watched_products(linears, saw):
        before = block(x)
    assert torch.equal(reached["q"], x.reshape(6, 8))
    q = reached["q"] @ linears[0].matrix().T
    assert torch.allclose(q.view(2, 3, 2, 4), torch.einsum("bth,hnd->btnd", x, block.q), atol=1e-5)
    linears[2].set_(torch.zeros(8, 8))
    assert torch.equal(block(x), x)
    assert not torch.equal(before, x)
    assert all(isinstance(linear.stack, Stack) for linear in linears)


class _Experts(nn.Module):
    """A block with a parameter of three matrices (rows, columns) or, if turned, (columns, rows)."""

    def __init__(self, way: Callable[[Tensor, Tensor], None], turned: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 6) if turned else torch.randn(3, 6, 4))
        self._way, self._turned = way, turned

    def forward(self, x: Tensor) -> None:
        self._way(x, self.weight.mT if self._turned else self.weight)


_ALL = torch.zeros(3, 5, 6)
_WAYS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "linear": lambda x, w: [F.linear(one, own) for one, own in zip(x, w, strict=True)],
    "linear by name": lambda x, w: [F.linear(input=one, weight=own) for one, own in zip(x, w, strict=True)],
    "@": lambda x, w: [one @ own.T for one, own in zip(x, w, strict=True)],
    "@ from the left": lambda x, w: [own @ one.T for one, own in zip(x, w, strict=True)],
    "rmatmul": lambda x, w: [own.T.__rmatmul__(one) for one, own in zip(x, w, strict=True)],
    "mm": lambda x, w: [torch.mm(one, own.T) for one, own in zip(x, w, strict=True)],
    "addmm": lambda x, w: [torch.addmm(_ALL[0], one, own.T) for one, own in zip(x, w, strict=True)],
    "matmul": lambda x, w: torch.matmul(x, w.mT),
    "bmm": lambda x, w: torch.bmm(x, w.mT),
    "bmm from the left": lambda x, w: torch.bmm(w, x.mT),
    "baddbmm": lambda x, w: torch.baddbmm(_ALL, x, w.mT),
    "einsum": lambda x, w: torch.einsum("etc,erc->etr", x, w),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("way", _WAYS.values(), ids=_WAYS.keys())
def test_experts_are_found_however_they_are_multiplied_by(way: Callable[[Tensor, Tensor], None], turned: bool) -> None:
    block, x = _Experts(way, turned), torch.randn(3, 5, 4)
    x[..., 1] = 0.0  # a routed token may have some zeros
    x[0, 1:], x[1, :3], x[2] = 0.0, 0.0, 0.0  # one of five tokens is routed to the first expert, two to the second
    (stack,) = find_stacks(block, lambda: block(x), 5)
    strides = (1, 6) if turned else (4, 1)
    assert stack == Stack("weight", 3, (6, 4), strides, "weight", per_token=3 / 5)
    linears = find_linears(block, [stack])
    reached: dict[str, Tensor] = {}

    def saw(linear: Linear, inputs: Tensor) -> None:
        reached[linear.name] = inputs

    with torch.no_grad(), watched_products(linears, saw):
        block(x)
    for number, (linear, routed) in enumerate(zip(linears, (x[0, :1], x[1, 3:], x[2, :0]), strict=True)):
        assert torch.equal(linear.matrix(), block.weight[number].T if turned else block.weight[number])
        assert torch.equal(reached[linear.name], routed)


def test_a_parameter_that_is_multiplied_by_in_parts_of_several_kinds_is_no_stack() -> None:
    x = torch.randn(3, 5, 4)
    for way in (
        lambda x, w: [x[0] @ w[0].T, x[1] @ w[1, :5].T],  # of another shape
        lambda x, w: [x[0] @ w[0].T, x[1] @ w[1, :4]],
        lambda x, w: [x[0] @ w[0, 1:].T, x[1] @ w[1, 1:].T],  # not one directly after the other
        lambda x, w: [x[0, :, :2] @ w[0, :, :2].T],
        lambda x, w: [x[0] @ w.flatten(0, 1)[1:3].T],  # like one of nine, except for its offset
        lambda x, w: [x[0] @ w.flatten(0, 1)[:5].T],
        lambda x, w: [x[0, :, :2] @ w.view(-1, 2)[:2].T, x[1, :, :2] @ w.view(-1, 2)[2:4]],  # one of them transposed
    ):
        block = _Experts(way, False)
        assert find_stacks(block, lambda block=block: block(x), 5) == []


class _Mixed(nn.Module):
    """A block with two stacks of experts that all tokens pass, a single matrix, and two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = nn.Parameter(torch.randn(1, 6, 4))
        self.up = nn.Parameter(torch.zeros(3, 6, 4))
        self.down = nn.Parameter(torch.randn(3, 4, 6))
        self.out = nn.Linear(4, 4)
        self.free = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        F.linear(x, self.alone[0])
        for up, down in zip(self.up, self.down, strict=True):
            F.linear(x, up)
            x = x + F.linear(F.linear(x, up), down)
        return self.out(x @ self.free.weight.T)


def test_a_linear_whose_module_runs_is_no_stack_and_what_zeros_reach_has_the_tokens_of_what_they_come_from() -> None:
    block, x = _Mixed(), torch.randn(5, 4)
    found = {one.parameter: one for one in find_stacks(block, lambda: block(x), 5)}
    assert found.keys() == {"alone", "up", "down", "free.weight"}
    assert [(one.count, one.per_token, one.routed) for one in found.values()] == [
        (1, 1.0, False),
        (3, 3.0, False),  # even though each token passes each of them twice
        (3, 3.0, False),
        (1, 1.0, False),
    ]


class _Grouped(nn.Linear):
    """As in DeepSeek V4: each half of the outputs comes of a half of the inputs (tokens, 2, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.transpose(0, 1), self.weight.view(2, 3, 4).mT).transpose(0, 1)


def test_a_linear_that_multiplies_parts_of_its_inputs_by_parts_of_its_weight_is_the_stack_of_these() -> None:
    block, x = nn.ModuleDict({"out": _Grouped(4, 6, bias=False)}), torch.randn(5, 2, 4)
    stacks = find_stacks(block, lambda: block["out"](x), 5)
    assert stacks == [Stack("out.weight", 2, (3, 4), (4, 1), "out.weight", per_token=2.0)]
    linears = find_linears(block, stacks)
    reached: dict[str, Tensor] = {}

    def saw(linear: Linear, inputs: Tensor) -> None:
        reached[linear.name] = inputs

    with torch.no_grad(), watched_products(linears, saw):
        outputs = block["out"](x)
    assert reached.keys() == {"out.0", "out.1"}
    for number, linear in enumerate(linears):
        assert torch.equal(reached[linear.name], x[:, number])
        torch.testing.assert_close(reached[linear.name] @ linear.matrix().T, outputs[:, number])


def test_a_linear_that_multiplies_by_a_part_of_its_weight_alone_is_no_stack() -> None:
    class _Half(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight[:3])

    block, x = nn.ModuleDict({"out": _Half(4, 6)}), torch.randn(5, 4)
    assert find_stacks(block, lambda: block["out"](x), 5) == []


def test_experts_that_read_the_outputs_of_a_linear_have_the_tokens_that_are_sent_to_them() -> None:
    """As in Nemotron 3, whose experts are of a latent size; without weights they get only zeros."""

    class _Latent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(4, 4, bias=False)
            self.up = nn.Parameter(torch.zeros(3, 6, 4))
            self.down = nn.Parameter(torch.zeros(3, 4, 6))

        def forward(self, x: Tensor) -> None:
            x = self.enter(x)
            for number, routed in ((0, x[:1]), (2, x[1:])):
                F.linear(F.linear(routed, self.up[number]), self.down[number])

    block, x = without_weights(_Latent()), torch.randn(5, 4)
    stacks = find_stacks(block, lambda: block(x), 5)
    assert [(one.parameter, one.per_token, one.routed) for one in stacks] == [("up", 1.0, True), ("down", 1.0, True)]


def test_one_matrix_and_experts_that_read_the_same_do_not_share() -> None:
    class _Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.randn(1, 6, 4))
            self.three = nn.Parameter(torch.randn(3, 6, 4))
            self.more = nn.Parameter(torch.randn(3, 5, 4))

        def forward(self, x: Tensor) -> None:
            for weight in (*self.one, *self.three, *self.more):
                F.linear(x, weight)

    block, x = _Same(), torch.randn(5, 4)
    stacks = find_stacks(block, lambda: block(x), 5)
    assert [(one.parameter, one.shares) for one in stacks] == [("one", "one"), ("three", "three"), ("more", "three")]
