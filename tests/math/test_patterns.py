"""A pattern keeps the best weights it allows, exactly as many as it says, and the same ones every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reprune.errors import InputError, NumericalError
from reprune.math import patterns
from reprune.math.patterns import NM, Pattern, Scope, Unstructured, parse_pattern

_FEW = settings(deadline=None, max_examples=60)
_SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 12))
_FRACTIONS = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
_SCOPES = st.sampled_from(["matrix", "row"])


@st.composite
def _scores(draw: st.DrawFn, shape: tuple[int, int] | None = None) -> Tensor:
    """Scores of a few distinct values, so that ties are common."""
    rows, columns = shape or draw(_SHAPES)
    values = st.lists(st.integers(0, 4), min_size=rows * columns, max_size=rows * columns)
    return torch.tensor(draw(values), dtype=torch.float32).reshape(rows, columns)


@st.composite
def _grouped(draw: st.DrawFn) -> tuple[NM, Tensor]:
    of = draw(st.integers(2, 8))
    kept = draw(st.integers(1, of - 1))
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    return NM(kept, of), draw(_scores((rows, groups * of)))


def _kept_by_sorting(scores: list[float], pruned: int) -> list[bool]:
    """The slow twin of unstructured pruning: sort by score, then by place, and drop the first ones."""
    order = sorted(range(len(scores)), key=lambda place: (scores[place], place))
    return [place not in order[:pruned] for place in range(len(scores))]


def _kept_of_a_group(scores: list[float], kept: int) -> list[bool]:
    """The slow twin of N:M pruning: sort from the highest score, then by place, and keep the first."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    return [place in order[:kept] for place in range(len(scores))]


@_FEW
@given(scores=_scores(), fraction=_FRACTIONS)
def test_within_a_matrix_the_lowest_scores_go_and_among_equals_the_first(scores: Tensor, fraction: float) -> None:
    expected = _kept_by_sorting(scores.flatten().tolist(), round(fraction * scores.numel()))
    assert Unstructured(fraction).keep(scores, "matrix").flatten().tolist() == expected


@_FEW
@given(scores=_scores(), fraction=_FRACTIONS)
def test_within_each_row_the_lowest_scores_go_and_among_equals_the_first(scores: Tensor, fraction: float) -> None:
    expected = [_kept_by_sorting(row, round(fraction * scores.shape[1])) for row in scores.tolist()]
    assert Unstructured(fraction).keep(scores, "row").tolist() == expected


@_FEW
@given(scores=_scores(), fraction=_FRACTIONS)
def test_the_share_pruned_is_the_one_asked_for_within_half_a_weight(scores: Tensor, fraction: float) -> None:
    pruned = ~Unstructured(fraction).keep(scores, "matrix")
    assert abs(int(pruned.sum()) - fraction * scores.numel()) <= 0.5
    of_rows = (~Unstructured(fraction).keep(scores, "row")).sum(dim=1)
    assert all(abs(count - fraction * scores.shape[1]) <= 0.5 for count in of_rows.tolist())
    assert len(set(of_rows.tolist())) == 1


@_FEW
@given(case=_grouped(), scope=_SCOPES)
def test_every_group_keeps_its_best_and_among_equals_the_first(case: tuple[NM, Tensor], scope: Scope) -> None:
    pattern, scores = case
    groups = scores.reshape(-1, pattern.of).tolist()
    keep = pattern.keep(scores, scope)
    assert keep.shape == scores.shape
    assert keep.reshape(-1, pattern.of).tolist() == [_kept_of_a_group(group, pattern.kept) for group in groups]


@_FEW
@given(case=_grouped())
def test_groups_are_ranked_at_once_as_they_are_member_by_member(case: tuple[NM, Tensor]) -> None:
    pattern, scores = case
    groups = scores.reshape(len(scores), -1, pattern.of)
    assert patterns._ranks_at_once(groups).tolist() == patterns._ranks(groups).tolist()


@_FEW
@given(case=_grouped())
def test_every_group_keeps_exactly_n_of_its_m(case: tuple[NM, Tensor]) -> None:
    pattern, scores = case
    assert (pattern.keep(scores, "row").reshape(-1, pattern.of).sum(dim=1) == pattern.kept).all()


@_FEW
@given(scores=_scores(), fraction=_FRACTIONS, scope=_SCOPES)
def test_a_mask_is_boolean_and_leaves_the_scores_alone(scores: Tensor, fraction: float, scope: Scope) -> None:
    before = scores.clone()
    keep = Unstructured(fraction).keep(scores, scope)
    assert keep.dtype == torch.bool
    assert keep.shape == scores.shape
    assert torch.equal(scores, before)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
@pytest.mark.parametrize("scope", ["matrix", "row"])
@pytest.mark.parametrize("value", [0.0, 1.0, float("inf"), 1e-45])
def test_where_all_scores_are_equal_half_of_them_still_go(pattern: Pattern, scope: Scope, value: float) -> None:
    keep = pattern.keep(torch.full((6, 8), value), scope)
    assert int(keep.sum()) == 24
    assert torch.equal(keep, pattern.keep(torch.full((6, 8), value), scope))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", [Unstructured(0.3), NM(1, 4)], ids=str)
def test_scores_of_any_float_dtype_are_ranked(dtype: torch.dtype, pattern: Pattern) -> None:
    scores = torch.randperm(64, generator=torch.Generator().manual_seed(0)).reshape(4, 16)
    assert torch.equal(pattern.keep(scores.to(dtype), "row"), pattern.keep(scores.double(), "row"))


def test_scores_that_are_no_contiguous_matrix_are_ranked_as_they_are_seen() -> None:
    scores = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).T
    for pattern in (Unstructured(0.4), NM(2, 4)):
        assert torch.equal(pattern.keep(scores, "matrix"), pattern.keep(scores.contiguous(), "matrix"))
        assert torch.equal(pattern.keep(scores, "row"), pattern.keep(scores.contiguous(), "row"))


def test_a_fraction_too_small_for_one_weight_prunes_none() -> None:
    assert Unstructured(0.01).keep(torch.ones(2, 4), "row").all()


def test_a_fraction_too_large_for_one_weight_prunes_all() -> None:
    assert not Unstructured(0.99).keep(torch.ones(2, 4), "row").any()


@pytest.mark.parametrize("scope", ["matrix", "row"])
@pytest.mark.parametrize("where", [(0, 0), (2, 5), slice(None)])
def test_scores_that_are_nan_are_refused_not_pruned_first(where: Any, scope: Scope) -> None:
    scores = torch.arange(24.0).reshape(4, 6)
    scores[where] = torch.nan
    with pytest.raises(NumericalError, match="some scores are NaN, so the weights cannot be ranked"):
        Unstructured(0.5).keep(scores, scope)


def test_scores_may_be_infinite_to_keep_or_prune_a_weight_in_any_case() -> None:
    scores = torch.tensor([[1.0, torch.inf, -torch.inf, 2.0], [torch.inf, torch.inf, -torch.inf, -torch.inf]])
    expected = torch.tensor([[False, True, False, True], [True, True, False, False]])
    assert torch.equal(Unstructured(0.5).keep(scores, "row"), expected)


def test_what_competes_is_the_matrix_or_the_row() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert Unstructured(0.5).keep(scores, "matrix").tolist() == [[False, False], [True, True]]
    assert Unstructured(0.5).keep(scores, "row").tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", Unstructured(0.5)),
        (" .25 ", Unstructured(0.25)),
        ("50%", Unstructured(0.5)),
        ("62.5 %", Unstructured(0.625)),
        ("5e-1", Unstructured(0.5)),
        ("2:4", NM(2, 4)),
        ("4:8", NM(4, 8)),
        (" 1 : 2 ", NM(1, 2)),
    ],
)
def test_a_pattern_is_read_from_text(text: str, expected: Pattern) -> None:
    assert parse_pattern(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "half", "0", "1", "-0.5", "1.5", "nan", "inf", "0%", "100%", "50", "%", "0,5"),
        *(":", "2:", ":4", "4:4", "4:2", "0:4", "-2:4", "2:4:8", "2.0:4", "a:b", "2/4"),
    ],
)
def test_any_other_text_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(InputError, match=r"sparsity: expected .* such as .*; got"):
        parse_pattern(text)


@_FEW
@given(thousandths=st.integers(1, 999))
def test_a_fraction_as_it_is_shown_reads_back_as_the_same_number(thousandths: int) -> None:
    pattern = Unstructured(thousandths / 1000)
    assert parse_pattern(str(pattern)) == pattern


@_FEW
@given(tenths=st.integers(1, 999))
@example(tenths=333)  # as floats, 33.3 / 100 is less than 0.333
def test_a_percentage_reads_as_the_same_number_as_its_fraction(tenths: int) -> None:
    assert parse_pattern(f"{tenths / 10}%") == parse_pattern(f"{tenths / 1000}")


@_FEW
@given(pair=st.tuples(st.integers(1, 64), st.integers(1, 64)).filter(lambda pair: pair[0] < pair[1]))
def test_an_n_m_pattern_as_it_is_shown_reads_back_the_same(pair: tuple[int, int]) -> None:
    pattern = NM(*pair)
    assert parse_pattern(str(pattern)) == pattern
    assert pattern.sparsity == pytest.approx(1 - pair[0] / pair[1])
    assert pattern.group == pair[1]


def test_a_pattern_allows_masks_that_keep_no_more_of_a_group_than_it_does() -> None:
    for kept, allowed in (("11000101", True), ("10000000", True), ("11100100", False), ("00010111", False)):
        mask = torch.tensor([[bit == "1" for bit in kept], [False] * 8])
        assert NM(2, 4).allows(mask) is allowed
        assert Unstructured(0.5).allows(mask)
        assert not NM(2, 3).allows(mask)  # 8 columns are not a multiple of 3


@pytest.mark.parametrize("arguments", [(0.0,), (1.0,), (-0.1,), (float("nan"),)])
def test_an_impossible_fraction_cannot_be_made(arguments: Any) -> None:
    with pytest.raises(InputError, match="above 0 and below 1"):
        Unstructured(*arguments)


def test_a_matrix_whose_columns_do_not_fall_into_groups_is_refused_by_name() -> None:
    with pytest.raises(
        InputError, match=r"mlp\.up_proj: the pattern 3:5 needs a multiple of 5 .*, but this matrix has 32"
    ) as raised:
        NM(3, 5).check(32, "mlp.up_proj")
    assert "exclude" in str(raised.value)
    NM(2, 4).check(32, "mlp.up_proj")
    Unstructured(0.5).check(7, "mlp.up_proj")


@_FEW
@given(
    scores=st.lists(st.integers(0, 40), min_size=8, max_size=60),
    fraction=_FRACTIONS,
    repeated=st.sampled_from([1, 5]),
)
def test_looking_at_a_sample_first_changes_nothing(scores: list[float], fraction: float, repeated: int) -> None:
    """The procedure for long rows, on short ones; a sample of four misses often enough to test what follows then.

    It is used on a GPU, and here with float64, as NumPy selects from float32.
    """
    row = torch.tensor([scores * repeated], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "_LONG", 8)
        patch.setattr(patterns, "_SAMPLE", 4)
        kept = Unstructured(fraction).keep(row, "matrix")
        of_rows = Unstructured(fraction).keep(torch.cat([row.flip(1), row]), "row")
    values, pruned = row[0].tolist(), round(fraction * row.numel())
    expected = [_kept_by_sorting(one, pruned) for one in (values[::-1], values)]
    assert kept.tolist() == expected[1:]
    assert of_rows.tolist() == expected, "of several rows each has its own"


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("order", ["random", "sorted", "few values"])
def test_the_mask_of_a_long_row_is_exact(fraction: float, order: str) -> None:
    scores = torch.rand(300, 400, generator=torch.Generator().manual_seed(0))
    if order == "sorted":
        scores = scores.flatten().sort().values.reshape(300, 400)
    if order == "few values":
        scores = (scores * 5).floor()
    flat, pruned = scores.flatten(), round(fraction * scores.numel())
    expected = torch.ones(scores.numel(), dtype=torch.bool)
    expected[flat.argsort(stable=True)[:pruned]] = False
    assert torch.equal(Unstructured(fraction).keep(scores, "matrix").flatten(), expected)
