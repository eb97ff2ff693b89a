"""Recorders stand in for blocks, and modules outside the blocks get their weights just before they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.errors import UnsupportedModelError
from reprune.model.block import Call
from reprune.model.forms import Beside
from reprune.model.recorder import fill_with_nothing, filling, is_outside, looks_up, recorders

STATES, MASK = torch.full((1, 2, 4), 2.0), torch.ones(2, 2)


class _Block(nn.Module):
    kind = "sliding"

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, mask: Any = None, hidden_states: Any = None, x: Any = None) -> None:
        pytest.fail("a block is run")


def _recorded(*args: Any, said: Any = None, returned: int = 0, disturb: bool = False, **kwargs: Any) -> tuple[Any, Any]:
    """What a recorder reports of a call, and what it returns."""
    blocks, seen = nn.ModuleList([_Block()]), list[tuple[Tensor, Call]]()
    with recorders(blocks, lambda _, states, call: (seen.append((states, call)), said)[1], returned, disturb):
        assert isinstance(blocks[0], _Block) and blocks[0].kind == "sliding" and blocks[0].inner.in_features == 4
        outputs = blocks[0](*args, **kwargs)
    return seen[0], outputs


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((STATES, MASK, 7), {"flag": 1}, Call((None, MASK, 7), {"flag": 1}, 0)),
        ((None, 7), {"hidden_states": STATES}, Call((None, 7), {"hidden_states": None}, "hidden_states")),
        ((), {"mask": MASK, "hidden_states": STATES}, Call((), {"mask": MASK, "hidden_states": None}, "hidden_states")),
        ((), {"flag": 1, "x": STATES}, Call((), {"flag": 1, "x": None}, "x")),
    ],
)
def test_the_states_are_what_comes_first_or_by_name_and_all_else_is_kept(
    args: tuple[Any, ...], kwargs: dict[str, Any], expected: Call
) -> None:
    (states, call), outputs = _recorded(*args, **kwargs)
    assert states is STATES and outputs is STATES
    assert call == expected


def test_a_block_without_states_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="without hidden states"):
        _recorded(3, mask=None)


@pytest.mark.parametrize(
    ("returned", "beside"),
    [(1, ()), (2, (Beside(1),)), (3, (Beside(1), Beside(2))), (-2, (None,)), (-3, (None, None))],
)
def test_the_states_are_handed_on_with_as_much_beside_as_blocks_return(returned: int, beside: tuple[Any, ...]) -> None:
    _, outputs = _recorded(STATES, returned=returned)
    assert outputs[0] is STATES
    assert [(type(one), getattr(one, "place", None)) for one in outputs[1:]] == [
        (type(one), getattr(one, "place", None)) for one in beside
    ]


def test_what_sees_a_call_may_give_what_the_block_returns_and_states_may_be_disturbed() -> None:
    assert _recorded(STATES, said=MASK)[1] is MASK
    (seen, _), outputs = _recorded(STATES, disturb=True)
    assert seen is STATES and not torch.equal(outputs, STATES)


class _Model(nn.Module):
    """Embeds other tokens than it is given, and has a norm whose name begins like that of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.layers = nn.ModuleList([_Block()])
        self.layers_norm = nn.LayerNorm(4)
        self.rotary = nn.Module()
        self.rotary.register_buffer("angles", torch.ones(2))
        self.rotary.forward = lambda: None
        self.head = nn.Linear(4, 9)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: Tensor) -> None:
        self.layers_norm(self.embed(ids + 1))
        self.rotary()


@pytest.mark.parametrize("early", [False, True])
def test_weights_are_there_before_they_are_needed_and_those_of_the_embedding_for_its_own_ids(early: bool) -> None:
    model, filled = _Model(), list[tuple[str, Any]]()

    def fill(name: str, module: nn.Module, ids: Tensor | None) -> None:
        assert model.get_submodule(name) is module
        filled.append((name, None if ids is None else ids.tolist()))

    with filling(model, ("layers",), fill, torch.tensor([3]), early):
        before = list(filled)
        model(torch.tensor([3]))
    others = [("", None), ("embed", [3]), ("layers_norm", None), ("rotary", None)]
    assert before == (others if early else [("embed", [3])])
    assert filled[len(before) :] == [("embed", [4]), ("layers_norm", None), ("rotary", None)]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_ids_are_looked_up_in_tables_like_the_embedding_that_are_not_smaller() -> None:
    class _Scaled(nn.Embedding):
        pass

    embedding = nn.Embedding(9, 4)
    assert looks_up(embedding, embedding) and looks_up(nn.Embedding(8, 6), embedding)
    assert not looks_up(nn.Embedding(8, 4), embedding)  # which may be of positions
    assert not looks_up(_Scaled(9, 4), embedding) and looks_up(_Scaled(9, 4), _Scaled(9, 4))
    module = nn.Linear(9, 4)
    assert looks_up(module, module) and not looks_up(nn.Linear(9, 4), module)


def test_what_lies_in_a_list_of_blocks_is_not_outside_it() -> None:
    inside = ("model.layers", "vision.blocks")
    assert not any(map(lambda path: is_outside(path, inside), ("model.layers", "model.layers.0.up", "vision.blocks.1")))
    assert all(is_outside(path, inside) for path in ("", "model", "model.layers_norm", "vision", "lm_head"))


def test_parameters_that_have_no_values_are_zero_whatever_memory_held() -> None:
    """A model that decides by values what it runs, such as BLT, would else be another one in each process."""
    module = nn.Linear(30, 20, device="meta")
    known = module.known = nn.Parameter(torch.ones(3))
    used = [torch.full((20, 30), torch.nan) for _ in range(50)]
    del used
    fill_with_nothing("any", module, None)
    assert torch.equal(module.weight, torch.zeros(20, 30))
    assert torch.equal(module.bias, torch.zeros(20))
    assert module.known is known
