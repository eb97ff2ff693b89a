"""The status of a run is read from its folder; a finished run has all windows and the distillation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reprune.doors.status import status
from reprune.errors import InputError


def test_a_distillation_is_the_last_step_of_a_finished_run(tmp_path: Path) -> None:
    record = {"recipe": {"model": "m"}, "windows": [{"index": 0}, {"index": 1}], "distillation": None}
    for step, last in ((None, {"index": 1}), ({"index": 2, "distilled": [1]},) * 2):
        (tmp_path / "reprune.json").write_text(json.dumps({**record, "distillation": step}))
        found = status(tmp_path)
        assert (found.finished, found.running, found.recipe, found.last) == (True, False, {"model": "m"}, last)
        assert found.windows == found.windows_done == (2 if step is None else 3)


@pytest.mark.parametrize(
    ("content", "lacks"),
    [
        ("{}", r"it holds no 'windows'"),
        *((content, "its contents are not those of a run") for content in ("[]", "null", '{"windows": 3}')),
        ('{"recipe": {}, "windows": []}', "its contents are not those of a run"),
        ("", "Expecting value"),
    ],
)
def test_a_damaged_record_is_said_to_be_and_what_it_lacks_in_words(content: str, lacks: str, tmp_path: Path) -> None:
    (tmp_path / "reprune.json").write_text(content)
    with pytest.raises(
        InputError, match=rf"reprune\.json: damaged \({lacks}.*\); the model beside it may still load\."
    ):
        status(tmp_path)
