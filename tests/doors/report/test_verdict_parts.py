"""The verdict on a study without a ladder compares pruners, or the parts of a block that are pruned."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doors.report.records import cell, judged, said


def part(only: str, perplexity: float, pruner: str = "wanda") -> Any:
    return cell(pruner, "LR", only=only, name=f"{pruner}-{only}", perplexity={"test.txt": perplexity})


ALONE = cell("wanda", "LR")
PARTS = "By the part of each block that is pruned, wanda with LR has a perplexity on test.txt of"


@pytest.mark.parametrize(
    "others", [[cell("sparsegpt", "LR")], [cell("wanda", "auto")], [cell("magnitude", "LR"), part("mlp", 40.0)]]
)
def test_several_results_without_a_ladder_are_compared(others: list[Any]) -> None:
    verdict = judged(ALONE, *others)
    assert (verdict.tone, verdict.badge) == ("plain", "No ladder")
    assert verdict.headline.startswith("The best of 2 results is ")
    assert said(verdict).count("The best of") == 1
    assert "nothing to compare" not in said(verdict)
    assert (PARTS in said(verdict)) is (len(others) > 1)


def test_the_parts_of_a_block_are_compared() -> None:
    verdict = judged(ALONE, part("attention", 30.0), part("mlp", 40.0), part("mlp", 50.0, pruner="magnitude"))
    assert (verdict.tone, verdict.badge) == ("plain", "Parts compared")
    headline = (
        f"{PARTS} 30.00 (attention only), 40.00 (feed-forward only) and {ALONE['perplexity']['test.txt']:.2f} (all)."
    )
    assert verdict.headline == headline
    assert said(verdict).count("By the part") == 1
    verdict = judged(part("attention", 30.0), part("mlp", 25.0))
    assert verdict.headline == f"{PARTS} 25.00 (feed-forward only) and 30.00 (attention only)."


def test_parts_are_compared_by_the_held_out_error_where_there_is_no_perplexity() -> None:
    said_of = {"perplexity": {}, "relative_calibration_error": 0.5}
    cells = [
        {**part(only, 0.0), **said_of, "relative_heldout_error": error}
        for only, error in (("attention", 0.1), ("mlp", 0.2))
    ]
    told = "wanda with LR has a held-out error of 10.0 % (attention only) and 20.0 % (feed-forward only)."
    assert told in said(judged(*cells))


def test_parts_are_compared_by_the_seeds_that_they_have_in_common() -> None:
    another = {**part("mlp", 10.0), "seed": 1}
    told = f"{PARTS} 30.00 (attention only) and 40.00 (feed-forward only)."
    assert told in said(judged(part("attention", 30.0), part("mlp", 40.0), another))


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([ALONE], "Each pruner has only one rung: there is nothing to compare."),
        ([part("mlp", 40.0)], "No cell that prunes whole blocks is finished."),
    ],
)
def test_one_result_is_compared_with_nothing(cells: list[Any], words: str) -> None:
    assert judged(*cells).headline == words


@pytest.mark.parametrize("whole", [True, False])
def test_windows_of_parts_are_counted_too(whole: bool) -> None:
    cells = [cell("wanda", "BR", only=only, name=only) for only in (["all"] if whole else []) + ["attention", "mlp"]]
    windows = sum(len(one["windows"]) for one in cells)
    assert f"of the {windows} trained windows of all cells overfitted" in said(judged(*cells))
