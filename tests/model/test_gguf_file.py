"""What a GGUF file says of its model is read from it, and nothing else."""

from __future__ import annotations

from pathlib import Path

from reprune.model.gguf_file import read_gguf
from tests import tiny
from tests.doors.demo.test_model import write_gguf


def test_all_numbers_that_a_model_computes_with_are_counted(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", quantized=True, table=1.0)
    assert sum(read_gguf(file, file).tensors.values()) == sum(one.numel() for one in tiny.build("llama").parameters())


def test_blocks_that_predict_later_tokens_are_none_of_the_models(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", later=1)
    assert {name.split(".")[1] for name in read_gguf(file, file).tensors if name.startswith("blk.")} == {"0", "1"}
