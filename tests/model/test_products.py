"""What is multiplied in an `einsum` is seen as a product of inputs and matrices, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reprune.model.linears import Linear, Stack, find_linears
from reprune.model.products import as_products, find_stacks, watched_products

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
        "tbnd,hnd->tbh",  # several letters of columns
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
    assert len(as_products((equation, tensors), lambda one: one is weight)) == 2  # as a list too


@pytest.mark.parametrize(
    "equation",
    [
        "bth,hd",  # the result is not said
        "bth,bth->bt",  # no rows: how much a token has of something
        "bth,t->bth",  # nothing is summed over
        "...h,hd->...d",
        "bth,dnh->bth",  # rows that no result has
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
