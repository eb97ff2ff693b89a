"""Fixtures for the planning tests: small tokenizers that do or do not put a BOS token before a text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def make_tokenizer(*, bos: bool, eos: bool = False) -> PreTrainedTokenizerBase:
    """A byte-level BPE trained on a few of Python's help topics; with `bos` it puts <s> before a text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([topics[key] for key in sorted(topics)[:5]], trainer)
    if bos or eos:
        template = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # its constructor has no types
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", model_max_length=32
    )


@pytest.fixture(scope="session")
def with_bos() -> PreTrainedTokenizerBase:
    return make_tokenizer(bos=True)


@pytest.fixture(scope="session")
def without_bos() -> PreTrainedTokenizerBase:
    return make_tokenizer(bos=False)


@pytest.fixture(scope="session", params=[True, False], ids=["bos", "no-bos"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return make_tokenizer(bos=request.param)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep the cache of `datasets` out of the home directory, and the Hub out of reach."""
    import datasets.config
    import huggingface_hub.constants

    cache = tmp_path_factory.mktemp("datasets-cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    yield cache


@pytest.fixture
def cache_rows(_own_cache: Path, tmp_path: Path) -> Callable[..., None]:
    """Put texts into the cache of `datasets` as if of the Hub's org/name at a commit; each call's are newer."""
    from datasets.packaged_modules.json.json import Json

    ages = iter(range(1000, 0, -1))

    def cache(commit: str, *texts: str) -> None:
        file = tmp_path / f"{commit}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        builder = Json(
            cache_dir=str(_own_cache),
            dataset_name="name",
            config_name="default",
            hash=commit,
            data_files={"train": [str(file)]},
        )
        builder.download_and_prepare()
        folder = _own_cache / "org___name" / "default" / "0.0.0" / commit
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(builder.cache_dir, folder)
        seconds = folder.stat().st_mtime - next(ages)
        os.utime(folder, (seconds, seconds))

    return cache


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows, each a dict or a text, to a file of JSON Lines."""

    def write(*rows: object, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        dicts = [{"text": row} if isinstance(row, str) else row for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in dicts), encoding="utf-8")
        return path

    return write
