"""A model in the Hub's cache, whose folder is named by a commit, is called by its Hub id, and changed in a copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reprune.errors import InputError
from reprune.model.bare import build_bare
from reprune.model.snapshots import by_hand, called, hub_commit
from tests import tiny

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("folder", "commit", "name"),
    [
        (f"/cache/hub/models--owner--tiny/snapshots/{SHA}", SHA, "owner/tiny"),
        (f"hub/models--gpt2/snapshots/{SHA}", SHA, "gpt2"),
        (f"/mine/snapshots/{SHA}", SHA, SHA),
        (f"snapshots/{SHA}", SHA, SHA),
        ("/cache/models--owner--tiny/snapshots/last", None, "last"),
        (f"/mine/{SHA}", None, SHA),
        ("/mine/models--owner--tiny", None, "models--owner--tiny"),
    ],
)
def test_only_the_folder_of_a_commit_is_not_called_by_its_last_part(folder: str, commit: str | None, name: str) -> None:
    assert (hub_commit(Path(folder)), called(Path(folder))) == (commit, name)


@pytest.mark.parametrize("folder", ["/mine/model", f"/mine/snapshots/{SHA}"])
def test_a_local_model_is_changed_where_it_is(folder: str) -> None:
    assert by_hand(Path(folder), "cut it") == "cut it"


@pytest.mark.parametrize(
    ("wrong", "way"),
    [
        ({"attn_implementation": "some/kernel"}, "remove attn_implementation from config.json"),
        ({"quantization_config": {"quant_method": "nonesuch"}}, "remove quantization_config from config.json"),
        ({"hidden_act": "nonesuch"}, "correct config.json"),
    ],
)
def test_the_configuration_of_a_hub_model_is_changed_in_a_copy(wrong: dict[str, Any], way: str, tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "models--owner--tiny" / "snapshots" / SHA, torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | wrong))
    with pytest.raises(InputError) as refused:
        build_bare(folder, trust_remote_code=False)
    way = f"'hf download owner/tiny --revision {SHA} --local-dir FOLDER', {way} there, then give FOLDER."
    assert str(refused.value).endswith(way)
