"""The environment tells whether a launcher started a process; of several processes, the first prints."""

from __future__ import annotations

import pytest

from reprune.math.launch import launched, speaks


@pytest.mark.parametrize(
    ("told", "several", "said"),
    [
        ({}, False, True),
        ({"RANK": "1"}, False, True),
        ({"WORLD_SIZE": "2"}, False, True),  # some job systems set only this one
        ({"RANK": "0", "WORLD_SIZE": "1"}, False, True),
        ({"RANK": "1", "WORLD_SIZE": ""}, False, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, True, False),
    ],
)
def test_it_is_one_of_several_where_it_has_a_number_of_more_than_one(
    told: dict[str, str], several: bool, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert (launched(), speaks()) == (several, said)
