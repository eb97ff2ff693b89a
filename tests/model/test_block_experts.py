"""The linears of experts form groups with stages, whether they are modules in a list or matrices of a stack."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.model.block import Block, Call, Precision
from reprune.model.linears import Stack

_CALL = Call((None,), {}, 0)
Told = tuple[tuple[str, ...], bool, str | None]


class _Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class _Listed(nn.Module):
    """Experts are modules in a list; no token is routed to the middle one."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(4, 4))  # its name has a number in it too
        self.experts = nn.ModuleList(_Expert() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attention(x)
        return x + self.experts[2](mixed[:, :1]).sum() + self.experts[0](mixed[:, 1:]).sum()


class _Stacked(nn.Module):
    """Experts are parts of three parameters, the last of which reads the outputs of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(4, 4)
        self.gate, self.up, self.down = (nn.Parameter(torch.randn(2, 4, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attention(x)
        for number in (1, 0):
            inner = F.linear(mixed, self.gate[number]) * F.linear(mixed, self.up[number])
            x = x + F.linear(inner, self.down[number])
        return x


def _told(block: Block) -> list[Told]:
    return [(one.names, one.expert, one.stage) for one in block.groups(torch.randn(2, 3, 4), _CALL)]


class _Latent(nn.Module):
    """As in Nemotron 3, experts are of a latent size: one linear reads their outputs, and another runs after both."""

    def __init__(self) -> None:
        super().__init__()
        self.beside, self.leave, self.enter = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.experts = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        latent = self.enter(x)
        mixed = torch.cat([F.linear(latent[:, :1], self.experts[0]), F.linear(latent[:, 1:], self.experts[1])], dim=1)
        left: Tensor = self.leave(mixed)
        return left + self.beside(x * 2)


def test_groups_are_in_the_order_in_which_they_run_whether_or_not_they_are_of_a_stack() -> None:
    module = _Latent()
    stack = Stack("experts", 2, (4, 4), (4, 1), "experts", per_token=1.0)
    assert _told(Block(0, module, torch.device("cpu"), Precision(), [stack])) == [
        (("enter",), False, None),
        (("experts.0",), True, "experts"),
        (("experts.1",), True, "experts"),
        (("leave",), False, None),
        (("beside",), False, None),
    ]


class _Sequences(nn.Module):
    """Experts are sequences, in which the linears are numbered too."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.experts[0](x[:, :1]).sum() + self.experts[1](x[:, 1:]).sum()


def test_a_linear_of_a_sequence_is_not_of_the_stage_of_the_one_before_it() -> None:
    block = Block(0, _Sequences(), torch.device("cpu"), Precision())
    assert _told(block) == [
        ((f"experts.{expert}.{place}",), True, f"experts.*.{place}") for expert in range(2) for place in (0, 2)
    ]


def test_listed_experts_are_of_the_stage_of_their_like_and_come_last_where_no_token_reaches_them() -> None:
    block = Block(0, _Listed(), torch.device("cpu"), Precision())
    assert block.routed
    up, down = "experts.*.up", "experts.*.down"
    assert _told(block) == [
        (("attention.0",), False, None),
        (("experts.2.up",), True, up),
        (("experts.2.down",), True, down),
        (("experts.0.up",), True, up),
        (("experts.0.down",), True, down),
        (("experts.1.up",), True, up),
        (("experts.1.down",), True, down),
    ]


class _Gated(nn.Module):
    """Two linears of each expert read the same inputs; of four experts the first and the last get no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_Expert() for _ in range(4))
        for expert in self.experts:
            expert.add_module("gate", nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for expert in list(self.experts)[1:3]:
            up, down, gate = expert.children()
            x = x + down(gate(mixed := x * 2) * up(mixed))
        return x


def test_what_reads_the_same_in_experts_that_run_is_one_group_of_those_that_do_not() -> None:
    block = Block(0, _Gated(), torch.device("cpu"), Precision())
    assert _told(block) == [
        (("experts.1.gate", "experts.1.up"), True, "experts.*.gate"),
        (("experts.1.down",), True, "experts.*.down"),
        (("experts.2.gate", "experts.2.up"), True, "experts.*.gate"),
        (("experts.2.down",), True, "experts.*.down"),
        (("experts.0.up", "experts.0.gate"), True, "experts.*.gate"),
        (("experts.0.down",), True, "experts.*.down"),
        (("experts.3.up", "experts.3.gate"), True, "experts.*.gate"),
        (("experts.3.down",), True, "experts.*.down"),
    ]


class _Unlike(nn.Module):
    """Of two experts the first gets some tokens and the second all."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_Expert() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x[:, 1:]).sum() + self.experts[1](x * 2)


def test_an_expert_that_all_tokens_pass_is_one_beside_another_that_some_do() -> None:
    assert all(expert for _, expert, _ in _told(Block(0, _Unlike(), torch.device("cpu"), Precision())))


class _Deep(nn.Module):
    """Experts are lists of layers; the first gets some tokens, the second the rest, the third none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layers, part in zip(self.experts, (x[:, :1], x[:, 1:]), strict=False):
            for layer in layers.children():
                part = layer(part)
            x = x + part.sum()
        return x


def test_the_layers_of_an_expert_are_no_experts_though_they_are_in_a_list_of_their_own() -> None:
    assert _told(Block(0, _Deep(), torch.device("cpu"), Precision())) == [
        ((f"experts.{expert}.{layer}",), True, f"experts.*.{layer}") for expert in range(3) for layer in range(2)
    ]


class _HalvesOfExperts(nn.Module):
    """All tokens pass a linear in each of two halves, and there each token passes one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.ModuleList(nn.ModuleDict({"mix": nn.Linear(4, 4)}) for _ in range(2))
        for half in self.halves:
            half.add_module("experts", nn.ModuleList(nn.Linear(4, 4) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        for half in self.halves:
            mix, experts = half.children()
            x = mix(x) + sum(expert(part).sum() for expert, part in zip(experts, (x[:, :1], x[:, 1:]), strict=True))
        return x


def test_halves_that_all_tokens_pass_are_no_experts_though_they_have_some() -> None:
    told = _told(Block(0, _HalvesOfExperts(), torch.device("cpu"), Precision()))
    assert [(stage, expert) for _, expert, stage in told] == [
        one for half in range(2) for one in ((None, False), *[(f"halves.{half}.experts.*", True)] * 2)
    ]


class _Widened(nn.Module):
    """All tokens pass the first part in two calls; in the second, one linear reads them twice, and they pass a list."""

    def __init__(self) -> None:
        super().__init__()
        widened = nn.ModuleDict({"wide": nn.Linear(4, 4), "layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(2))})
        self.parts = nn.ModuleList([nn.ModuleDict({"mix": nn.Linear(4, 4)}), widened])

    def forward(self, x: Tensor) -> Tensor:
        (mix,), (wide, layers) = (part.children() for part in self.parts)
        x = x + mix(x[:, :1]).sum() + mix(x[:, 1:]).sum() + wide(torch.cat([x, x])).sum()
        for layer in layers.children():
            x = layer(x)
        return x


def test_modules_that_all_tokens_pass_in_parts_or_more_than_once_are_no_experts() -> None:
    assert _told(Block(0, _Widened(), torch.device("cpu"), Precision())) == [
        ((f"parts.{name}",), False, None) for name in ("0.mix", "1.wide", "1.layers.0", "1.layers.1")
    ]


class _Unused(nn.Module):
    """All tokens pass the first linear of a list; the second one, with a stack beside it, never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.halves[1].register_parameter("up", nn.Parameter(torch.randn(2, 4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.halves[0](x) + F.linear(x[:, 1:], self.halves[1].get_parameter("up")[0]).sum()


def test_a_linear_that_never_runs_beside_a_stack_that_does_is_of_no_expert() -> None:
    stack = Stack("halves.1.up", 2, (4, 4), (4, 1), "halves.1.up", 1.0)
    told = _told(Block(0, _Unused(), torch.device("cpu"), Precision(), [stack]))
    assert [names for names, *_ in told] == [("halves.0",), ("halves.1.up.0",), ("halves.1.up.1",)]
    assert told[0] == (("halves.0",), False, None)


class _Halves(nn.Module):
    """All tokens pass both linears of a list, and some a stack beside each."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        for half in self.halves:
            half.register_parameter("up", nn.Parameter(torch.randn(2, 4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        for half in self.halves:
            x = half(x) + F.linear(x[:, 1:], half.get_parameter("up")[0]).sum()
        return x


def test_linears_in_a_list_that_all_tokens_pass_are_of_no_expert_where_they_have_stacks_beside_them() -> None:
    stacks = [Stack(f"halves.{half}.up", 2, (4, 4), (4, 1), f"halves.{half}.up", 1.0) for half in range(2)]
    told = _told(Block(0, _Halves(), torch.device("cpu"), Precision(), stacks))
    plain = [((f"halves.{half}",), False, None) for half in range(2)]
    assert [one for one in told if one[2] is None] == plain
    assert all(expert for _, expert, stage in told if stage is not None)


class _Between(nn.Module):
    """A stack that all tokens pass lies between two linears, the first of which runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.heads = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.first(x))
        return self.last(F.linear(x, self.heads[0]) + F.linear(x, self.heads[1]))


def test_groups_come_in_the_order_in_which_they_first_run() -> None:
    """So that each is fitted after those that its inputs come from."""
    stack = Stack("heads", 2, (4, 4), (4, 1), "heads", 2.0)
    told = _told(Block(0, _Between(), torch.device("cpu"), Precision(), [stack]))
    assert [names for names, *_ in told] == [("first",), ("heads.0",), ("heads.1",), ("last",)]


def test_stacked_experts_are_matrix_by_matrix_those_that_read_the_same_and_stack_after_stack() -> None:
    stacks = [
        Stack(name, 2, (4, 4), (4, 1), shares, 1.0)
        for name, shares in (("gate", "gate"), ("up", "gate"), ("down", "down"))
    ]
    block = Block(0, _Stacked(), torch.device("cpu"), Precision(), stacks)
    assert block.routed
    assert _told(block) == [
        (("attention",), False, None),
        (("gate.0", "up.0"), True, "gate"),
        (("gate.1", "up.1"), True, "gate"),
        (("down.0",), True, "down"),
        (("down.1",), True, "down"),
    ]


def test_a_stack_that_each_token_passes_whole_is_no_experts() -> None:
    stacks = [Stack(name, 2, (4, 4), (4, 1), name, 2.0) for name in ("gate", "up", "down")]
    block = Block(0, _Stacked(), torch.device("cpu"), Precision(), stacks)
    assert not block.routed
    assert not any(expert for _, expert, _ in _told(block))
    assert [stage for *_, stage in _told(block)] == [None, "gate", "gate", "up", "up", "down", "down"]
