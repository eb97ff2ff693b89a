"""What a GGUF file says about its model is read from it; other files are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import gguf
import numpy as np
import pytest

from reprune.errors import InputError, UnsupportedModelError
from reprune.model.gguf_file import GgufFile, read_gguf
from reprune.model.locate import locate_model
from tests import tiny
from tests.doors.demo.test_model import write_gguf


def test_all_numbers_that_a_model_computes_with_are_counted(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", quantized=True, table=1.0)
    assert sum(read_gguf(file, file).tensors.values()) == sum(one.numel() for one in tiny.build("llama").parameters())


def test_blocks_that_predict_later_tokens_are_none_of_the_models(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", later=1)
    assert {name.split(".")[1] for name in read_gguf(file, file).tensors if name.startswith("blk.")} == {"0", "1"}


_NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.parametrize("place", ["gguf.GGUFReader", "transformers.AutoModelForCausalLM.from_pretrained"])
def test_a_lack_of_memory_is_no_fault_of_the_file(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(place, Mock(side_effect=_NO_MEMORY))
    with pytest.raises(RuntimeError) as raised:
        locate_model(str(file))
    assert raised.value is _NO_MEMORY


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads a file that has these fields and tensors."""

    def read(fields: dict[str, Any], tensors: dict[str, list[float]] | None = None, name: str = "m.gguf") -> GgufFile:
        reader = SimpleNamespace(
            fields={
                key: SimpleNamespace(contents=lambda value=value: value)
                for key, value in ({"general.architecture": "llama", "llama.block_count": 2} | fields).items()
            },
            tensors=[
                SimpleNamespace(name=key, n_elements=np.uint64(len(data)), data=np.array(data))
                for key, data in (tensors or {}).items()
            ],
        )
        monkeypatch.setattr(gguf, "GGUFReader", lambda _: reader)
        return read_gguf(Path(name), Path(name))

    return read


def test_settings_are_those_of_the_files_architecture_and_tensors_those_of_its_blocks(said: Any) -> None:
    fields = {"llama.nextn_predict_layers": 1, "general.name": "any", "clip.block_count": 9}
    tensors = {"blk.0.up": [0.0] * 6, "blk.1.up": [0.0] * 7, "v.blk.5.up": [0.0] * 5, "rope_freqs.weight": [1.0]}
    found = said(fields, tensors)
    assert (found.architecture, found.settings) == ("llama", {"block_count": 2, "nextn_predict_layers": 1})
    assert found.tensors == {"blk.0.up": 6, "v.blk.5.up": 5}


@pytest.mark.parametrize(
    ("factor", "table", "scaled"),
    [
        (None, None, False),
        (0.0, [1.0, 1.0], False),
        (1.0, None, False),
        (8.0, None, True),
        (None, [1.0, 8.0], True),  # such as Llama 3.1's, where the fastest frequencies stay
    ],
)
def test_frequencies_are_scaled_by_a_factor_or_any_of_a_table(
    factor: float | None, table: list[float] | None, scaled: bool, said: Any
) -> None:
    fields = {} if factor is None else {"llama.rope.scaling.factor": factor}
    assert said(fields, {} if table is None else {"rope_freqs.weight": table}).rope_is_scaled is scaled


@pytest.mark.parametrize(
    ("split", "own", "implied"),
    [
        *((split, None, True) for split in ("llama3", "llama-v3", "llama-bpe", "pixtral", "tekken")),
        *((split, None, True) for split in ("falcon3", "falcon-h1", "midm-2.0", "lfm2")),
        ("llama-bpe", False, False),
        ("llama-bpe", True, False),
        ("gpt-2", None, False),
        (None, None, False),
    ],
)
def test_texts_begin_with_bos_by_how_they_are_split_unless_the_file_says(
    split: str | None, own: bool | None, implied: bool, said: Any
) -> None:
    fields = {"tokenizer.ggml.pre": split, "tokenizer.ggml.add_bos_token": own}
    assert said({key: value for key, value in fields.items() if value is not None}).implies_bos is implied


@pytest.mark.parametrize(
    "key",
    [
        *("block_count", "nextn_predict_layers", "attention.sliding_window"),
        *("rope.scaling.factor", "rope.freq_base", "rope.dimension_count"),
    ],
)
@pytest.mark.parametrize("value", ["2", [2], float("nan"), float("inf")])
def test_a_setting_that_is_computed_with_is_a_number(key: str, value: Any, said: Any) -> None:
    with pytest.raises(InputError, match=r"m\.gguf: is damaged"):
        said({f"llama.{key}": value})


def test_one_of_several_parts_is_refused_and_one_of_one_is_whole(said: Any) -> None:
    assert said({}, name="m-00001-of-00001.gguf").architecture == "llama"
    for name in ("m-00001-of-00002.gguf", "M-00002-OF-00002.GGUF"):
        with pytest.raises(InputError, match="--merge"):
            said({}, name=name)


@pytest.mark.parametrize(
    ("kind", "arch", "message"),
    [
        ("adapter", "llama", r"is a LoRA adapter; merge it into its model first \(llama-export-lora\)"),
        ("mmproj", "clip", "is of type mmproj, so it is not a language model; give the .gguf file of the model itself"),
        ("imatrix", "", "is of type imatrix, so"),
        (None, "clip", r"has no clip\.block_count, so"),
    ],
)
def test_what_is_no_model_is_refused_as_what_it_is(kind: str | None, arch: str, message: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", arch)
    if kind is not None:
        writer.add_type(kind)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=rf"other\.gguf: {message}"):
        read_gguf(tmp_path / "other.gguf", tmp_path / "other.gguf")
