"""A local folder is accepted or refused; so is a name that is no Hub id either: a path, a URL, a revision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from reprune.errors import InputError
from reprune.model.locate import locate_model
from tests import tiny


def test_an_ordinary_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    assert locate_model(str(folder)) == folder
    monkeypatch.chdir(folder)
    assert locate_model(".") == folder
    sharded = tiny.save("llama", tmp_path / "sharded", max_shard_size="40kB")
    assert locate_model(str(sharded)) == sharded


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        (None, [], "has no config.json"),
        (None, ["model.safetensors"], "has no config.json"),
        (None, ["adapter_config.json", "adapter_model.safetensors"], "merge_and_unload"),
        (None, ["b.gguf", "a.gguf"], r"give the path of the file: .*/a\.gguf"),
        (LLAMA, ["a.gguf"], r"give the path of the file: .*/a\.gguf"),
        (None, ["MMProj-f16.gguf", "imatrix.gguf", "tiny.gguf"], r"give the path of the file: .*/tiny\.gguf"),
        (None, ["mmproj.gguf", "tiny-00001-of-00002.gguf"], r"give the path of the file: .*/tiny-00001-of-00002\.gguf"),
        (LLAMA, ["pytorch_model.bin"], r"pickles \(pytorch_model.bin\).*save_pretrained"),
        (LLAMA, ["pytorch_model-00001-of-00002.bin"], "pickles"),
        (LLAMA, ["consolidated.00.pth"], "pickles"),
        (LLAMA, ["tf_model.h5"], r"no \*.safetensors"),
        (LLAMA, ["adapter_model.safetensors"], r"no \*.safetensors"),
        (LLAMA, ["adapter_config.json", "adapter_model.safetensors"], "is a PEFT adapter.*merge_and_unload"),
        (LLAMA, ["adapter_config.json", "model.safetensors"], "PEFT adapter beside its weights.*merge_and_unload"),
        (LLAMA, ["model.safetensors.index.json"], "none of its"),
        ("{", ["model.safetensors"], "config.json cannot be read"),
        ("[1]", ["model.safetensors"], "config.json cannot be read"),
        ({"architectures": 5}, ["model.safetensors"], "has architectures 5 and model_type None; expected a list"),
        ({"architectures": {"a": 1}}, ["model.safetensors"], r"has architectures \{'a': 1\} and"),
        ({"model_type": ["bert"]}, ["model.safetensors"], r"and model_type \['bert'\]; expected"),
        ({"model_type": "bert"}, ["model.safetensors"], "bert does not predict the next token"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, ["model.safetensors"], "BertModel does not"),
        ({"architectures": ["LlamaForTokenClassification"]}, ["model.safetensors"], "LlamaForTokenClass.* does not"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, config: Any, files: list[str], message: str) -> None:
    for file in files:
        (tmp_path / file).touch()
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(InputError, match=message):
        locate_model(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["./none", "/none/at/all", "~none/x", "a/b/c", "a/", "", " ", "here/none", "a\\b", "@main"]
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    with pytest.raises(InputError, match="no such folder; expected a model folder"):
        locate_model(name)


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/a-b/c.1/tree/main",
        "https://huggingface.co/a-b/c.1.git",
        "https://huggingface.co/a-b/c.1@main",
        "http://huggingface.co/a-b/c.1#d",
        "https://hf.co/a-b/c.1?x=y",
        "hf://a-b/c.1",
        "hf://models/a-b/c.1",
        "https://www.HuggingFace.co/a-b/c.1",
        "huggingface.co/a-b/c.1/",
        "https://mirror.example/a-b/c.1/blob/main/config.json",
    ],
)
def test_the_id_in_a_url_of_the_hub_or_of_what_is_asked_in_its_place_is_told(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://mirror.example")
    with pytest.raises(InputError, match=r"no such folder; .* give its id alone: a-b/c\.1$"):
        locate_model(url)


@pytest.mark.parametrize(
    "url", ["https://huggingface.co/gpt-2", "https://huggingface.co/gpt-2/tree/main", "hf.co/gpt-2", "hf.co/gpt-2@main"]
)
def test_the_id_in_a_url_may_have_no_owner(url: str) -> None:
    with pytest.raises(InputError, match=r"no such folder; .* give its id alone: gpt-2$"):
        locate_model(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/models?search=a",
        "https://huggingface.co/spaces/a/b",
        "hf://datasets/a/b",
        "http://localhost:8000/v1/models",
        "https://example.org/models/a/b",
    ],
)
def test_of_a_url_of_anything_else_no_id_is_told(url: str) -> None:
    with pytest.raises(InputError, match=r"no such folder; expected a model folder, a Hub id or a \.gguf file\.$"):
        locate_model(url)


@pytest.mark.parametrize("endpoint", ["", "mirror.example"])
def test_urls_and_paths_are_told_apart_whatever_is_asked_in_the_hubs_place(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    with pytest.raises(InputError, match=r"no such folder; .* give its id alone: a-b/c\.1$"):
        locate_model("https://huggingface.co/a-b/c.1")
    with pytest.raises(InputError, match=r"no such folder; expected a model folder, a Hub id or a \.gguf file\.$"):
        locate_model(f"{tmp_path}/none")


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"aaa: cannot be read .*expected a model folder"):
        locate_model(300 * "a")


def test_a_missing_gguf_file_and_a_revision_of_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        locate_model("owner/model.gguf")
    with pytest.raises(InputError, match=f"{tmp_path} is a local path, and only a Hub id"):
        locate_model(f"{tmp_path}@main")
    with pytest.raises(InputError, match="expected a branch, tag or commit after the @"):
        locate_model("owner/tiny@")


def test_a_local_folder_with_an_at_in_its_name_is_taken(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "tiny@main")
    assert locate_model(str(folder)) == folder
