"""A model in the Hub's cache, whose folder is named by a commit, is called by its Hub id, and changed in a copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprune.errors import InputError
from reprune.model.bare import build_bare
from reprune.model.checkpoint import Checkpoint
from reprune.model.decoder import Decoder
from reprune.model.locate import locate_model
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


def _beside_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    locate_model(str(folder))


def _in_two_files(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    shutil.copy(folder / "one.safetensors", folder / "two.safetensors")
    Checkpoint(folder)


def _under_two_names(folder: Path) -> None:
    tensors, name = load_file(folder / "model.safetensors"), "layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[f"model.{name}"].clone()}, folder / "model.safetensors", {"format": "pt"})
    Decoder(folder)


@pytest.mark.parametrize(
    ("use", "way"),
    [
        (_beside_an_adapter, "remove the files of the adapter"),
        (_in_two_files, "remove the file that does not belong to this model"),
        (_under_two_names, "remove the one that does not belong to this model from its files"),
    ],
)
def test_what_does_not_belong_to_a_hub_model_is_removed_in_a_copy(
    use: Callable[[Path], None], way: str, tmp_path: Path
) -> None:
    """A file that is removed from the cache is downloaded again."""
    folder = tiny.save("llama", tmp_path / "models--owner--tiny" / "snapshots" / SHA)
    with pytest.raises(InputError) as refused:
        use(folder)
    way = f"'hf download owner/tiny --revision {SHA} --local-dir FOLDER', {way} there, then give FOLDER."
    assert str(refused.value).endswith(way)
