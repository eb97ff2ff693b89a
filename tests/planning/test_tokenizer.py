"""A tokenizer that cannot be loaded is refused, with the remedy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from reprune.errors import InputError
from reprune.planning.tokenizer import load_tokenizer, tokenizer_files
from tests import tiny

_PIECES = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"


@pytest.mark.parametrize(
    ("content", "lacking", "message"),
    [
        (_PIECES, ["sentencepiece"], r"\(tokenizer\.model\) .*: pip install sentencepiece$"),
        (_PIECES, ["sentencepiece", "google.protobuf"], r": pip install sentencepiece protobuf$"),
        (b"IQ== 0\n", ["sentencepiece"], r"cannot be loaded \(.*copy the model's tokenizer files"),
    ],
    ids=["sentencepiece", "and protobuf", "tiktoken"],
)
def test_it_is_said_what_lacks(
    content: bytes, lacking: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers needs both packages to read a SentencePiece model; without protobuf it takes it for tiktoken's."""
    for module in lacking:
        monkeypatch.setitem(sys.modules, module, None)
    tiny.CONFIGS["llama"]().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


def test_a_lack_of_memory_is_no_fault_of_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("pieces", [False, True])
def test_the_flag_is_named_that_lets_a_tokenizers_own_code_run(
    pieces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even beside a SentencePiece model that cannot be read: the tokenizer's code may not need it."""
    if pieces:
        monkeypatch.setitem(sys.modules, "sentencepiece", None)
    folder = tiny.save("llama", tmp_path / "model")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}))
    (folder / "own.py").write_text("from transformers import PreTrainedTokenizerFast as Own\n")
    if pieces:
        (folder / "tokenizer.model").write_bytes(_PIECES)
    with pytest.raises(
        InputError,
        match=r"^model: loading it runs Python code that comes with it; .*, give --trust-remote-code "
        r"\(.*trust_remote_code=True\)\.$",
    ):
        load_tokenizer(folder)


def test_a_configuration_that_cannot_be_used_is_not_taken_for_a_tokenizer(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 0}))
    with pytest.raises(InputError, match=r"^model: its config\.json cannot be used: "):
        load_tokenizer(folder)


def test_the_files_of_a_tokenizer_are_those_that_its_class_names(tmp_path: Path) -> None:
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[X_SEP]", "[MASK]", "one", "two"]
    (tmp_path / "prophetnet.tokenizer").write_text("\n".join(words))
    assert tokenizer_files(tmp_path) == set(), "it is not known whose it is"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ProphetNetTokenizer"}))
    tiny.JOINED["prophetnet"]().save_pretrained(tmp_path)
    (tmp_path / "words.vocab").touch()
    assert tokenizer_files(tmp_path) == {"prophetnet.tokenizer"}
