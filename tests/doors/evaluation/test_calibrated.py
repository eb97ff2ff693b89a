"""A note says if a text holds what a model was calibrated on, by the text's own tokens, but not for boilerplate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from reprune.doors.evaluation import calibrated
from reprune.doors.evaluation.calibrated import calibrated_on
from reprune.doors.evaluation.protocols import Cut, CutText, cut_text
from reprune.planning.documents import Documents
from reprune.planning.overlap import sketch
from reprune.planning.tokens import encode
from tests import tiny


def _cut(ids: torch.Tensor, beginning: int = 0) -> CutText:
    return CutText(ids, "a.txt", "ab" * 32, "custom", bos=False, begun=False, beginning=beginning)


def test_windows_go_on_where_the_ones_before_end_whatever_begins_each(tmp_path: Path) -> None:
    running = torch.randint(500, (400,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "reprune.json").write_text(json.dumps({"sketch": sketch(running.view(1, -1))}), encoding="utf-8")
    told: list[str] = []
    begun = torch.cat([torch.full((40, 2), 7), running.view(40, 10)], 1)  # two tokens that are not the text's
    assert calibrated_on(tmp_path, _cut(begun, beginning=2), told.append) == 1.0
    assert ["a.txt holds 100% of what this model was calibrated on" in one for one in told] == [True]


@pytest.mark.parametrize(("protocol", "begun"), [("wanda", []), ("published", [1])])
def test_a_texts_own_tokens_run_on_from_window_to_window(protocol: str, begun: list[int], llama: Path) -> None:
    """With one BOS before the whole text, a window's first token is the text's own."""
    documents = Documents("given", (tiny.LICENCE,))
    cut = cut_text(llama, documents, Cut.of(protocol, None, None))
    tokens = encode(tiny.tokenizer(), tiny.LICENCE).tolist()
    assert cut.running[0].tolist() == [*begun, *tokens][: cut.running.numel()]


@pytest.mark.parametrize(("share", "said"), [(0.0, False), (0.019, False), (0.02, True), (0.4, True)])
def test_a_share_is_said_from_two_hundredths_on(
    share: float, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reprune.json").write_text('{"sketch": {}}', encoding="utf-8")
    monkeypatch.setattr(calibrated, "overlap", lambda *_: share)
    told: list[str] = []
    assert calibrated_on(tmp_path, _cut(torch.zeros(1, 4)), told.append) == share
    assert bool(told) is said


@pytest.mark.parametrize(
    "record",
    [
        *(None, "[]", "{", '{"sketch": null}', '{"recipe": {}}'),
        '{"sketch": {"tokens": 4, "hashes": ["11112222333344445"]}}',  # more than 64 bits
        '{"sketch": {"tokens": Infinity, "hashes": ["1"]}}',
    ],
)
def test_of_a_model_of_which_nothing_is_known_nothing_is_said(record: str | None, tmp_path: Path) -> None:
    if record is not None:
        (tmp_path / "reprune.json").write_text(record, encoding="utf-8")
    told: list[str] = []
    assert calibrated_on(tmp_path, _cut(torch.zeros(1, 40, dtype=torch.long)), told.append) is None
    assert not told
