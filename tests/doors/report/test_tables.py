"""The tables of a study's report have each number in its own column, and highlight the best of each pruner."""

from __future__ import annotations

from typing import Any

from reprune.doors.records.study import Study
from reprune.doors.report.page import Table
from reprune.doors.report.rows import Rows, bring_together
from reprune.doors.report.tables import parts, results, results_normalized, zero_shot
from tests.doors.report.records import cell, study_record


def together(*cells: Any) -> Rows:
    return bring_together(Study.model_validate(study_record(cells, zero_shot=True)))


def by_heading(table: Table, row: int) -> dict[str, str]:
    said = [text.replace("\N{NO-BREAK SPACE}", " ") for text in table.rows[row]]
    return dict(zip(table.columns, said, strict=True))


def best(table: Table) -> dict[str, int]:
    """By heading, the highlighted row."""
    return {table.columns[column]: row for row, column in table.best}


def test_the_lowest_error_and_the_highest_accuracy_stand_out_among_the_seeds_in_common() -> None:
    low = cell("wanda", "LR", zero_shot=True, zero_shot_mean=0.6, perplexity={"test.txt": 50.0})
    high = cell("wanda", "BR", zero_shot=True, zero_shot_mean=0.5, perplexity={"test.txt": 40.0})
    other = cell("wanda", "LR", seed=1, zero_shot=True, zero_shot_mean=0.1, perplexity={"test.txt": 10.0})
    table = results(together(low, high, other))
    found = best(table)
    assert [table.rows[place][1] for place in (found["mean zero-shot accuracy"], found["perplexity on test.txt"])] == [
        *("LR", "BR"),
    ]
    assert not {"time", "peak memory"} & set(found)
    assert not results(together(low)).best, "nothing to stand out from"


def test_memory_is_the_devices_where_one_was_used_and_normalized_errors_are_their_own() -> None:
    changes = {
        "calibration_error": 1.5,
        "heldout_error": 2.5,
        "peak_memory_bytes": {"host": 10**9, "device": 2 * 10**9},
    }
    rows = together(cell("wanda", "LR", test_error={"test.txt": {"normalized": 3.5, "relative": 0.1}}, **changes))
    assert by_heading(results(rows), 1)["peak memory"] == "2.00 GB"
    normalized = by_heading(results_normalized(rows), 0)
    assert [normalized[f"{name} error"] for name in ("calibration", "held-out")] == ["1.500", "2.500"]
    assert normalized["test error on test.txt"] == "3.500"


def test_memory_of_several_seeds_is_the_largest_and_time_the_mean() -> None:
    peaks = [
        {"peak_memory_bytes": {"host": host, "device": 0}, "seconds": host / 1e6} for host in (400_000_000, 500_000_000)
    ]
    cells = [cell("wanda", "LR", seed=seed, **peak) for seed, peak in enumerate(peaks)]
    found = by_heading(results(together(*cells)), -1)
    assert (found["peak memory"], found["time"]) == ("500 MB", "7:30 (6:40 to 8:20)")


def test_accuracies_of_one_seed_have_their_error_and_those_of_several_their_range() -> None:
    def scored(rung: str, accuracy: float, seed: int = 0) -> Any:
        score = {"accuracy": accuracy, "standard_error": 0.02, "examples": 500}
        return cell("wanda", rung, seed=seed, zero_shot=True) | {"zero_shot": {"boolq": score, "piqa": score}}

    table = zero_shot(together(scored("LR", 0.5), scored("BR", 0.4), scored("BR", 0.6, seed=1)))
    assert [by_heading(table, row)["boolq"] for row in range(3)] == [
        *("55.0 % ± 2.00 %", "50.0 % ± 2.00 %", "50.0 % (40.0 % to 60.0 %)"),
    ]


def test_the_whole_has_a_column_beside_its_parts() -> None:
    values = {"all": 60.0, "mlp": 40.0}
    cells = [cell("wanda", "LR", only=one, name=one, perplexity={"test.txt": values[one]}) for one in values]
    (table,) = parts(together(*cells))
    assert table.caption == "Perplexity on test.txt"
    assert (list(table.columns[2:]), list(table.rows[0][2:])) == (["feed-forward only", "all"], ["40.00", "60.00"])


def test_the_name_of_a_text_keeps_its_capitals() -> None:
    cells = [cell("wanda", "LR", only=one, name=one, perplexity={"Alice.TXT": 60.0}) for one in ("all", "mlp")]
    assert [table.caption for table in parts(together(*cells))] == ["Perplexity on Alice.TXT"]
