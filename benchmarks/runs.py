"""Shared by several benchmarks: a run of reprune in a process of its own, and models and texts to run it on."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PLACES = {"memory": "1GB", "files": "0B"}
"""By the place that holds all streams: the setting `streams.memory` for it."""
TEXTBOOK = Path(__file__).with_name("textbook.py")


def textbook(model: Path, out: Path, rung: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Run the textbook procedure in a separate process; returns its record."""
    command = [sys.executable, str(TEXTBOOK), str(model), "--out", str(out), "--rung", rung, *words(flags)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record: dict[str, Any] = json.loads((out / "textbook.json").read_text(encoding="utf-8"))
    return record


def prune(model: Path, out: Path, flags: Mapping[str, Any], settings: Sequence[str] = ()) -> dict[str, Any]:
    """Run `reprune prune` into a folder, which is removed before; returns its record."""
    shutil.rmtree(out, ignore_errors=True)
    command = pruning(model, {"out": out, **flags})
    subprocess.run(command + [word for setting in settings for word in ("--set", setting)], check=True)
    record: dict[str, Any] = json.loads((out / "reprune.json").read_text(encoding="utf-8"))
    return record


def pruning(model: Path | str, flags: Mapping[str, Any]) -> list[str]:
    """The command of a quiet run of reprune."""
    return [sys.executable, "-m", "reprune", "prune", str(model), "--quiet", *words(flags)]


def words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def watched(command: Sequence[str], counter: str, output: IO[str] | None = None) -> dict[str, float]:
    """Run a command to its end; returns its seconds, and the peak of a counter of Linux for its memory in bytes.

    The peak is read while the command runs: that of an ended process includes this process's, from which it was forked.
    `output` is the file for all that it says; None: this process's own outputs.
    """
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=output, stderr=output)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        if counted := re.search(rf"{counter}:\s+(\d+) kB", status):
            peak = max(peak, int(counted[1]) * 1024)
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    return {"seconds": time.perf_counter() - began, "peak": peak}


def planned(model: Path, flags: Mapping[str, Any], settings: Sequence[str] = ()) -> dict[str, float]:
    """The forecast of `reprune plan`, made in a separate process, as the memory of its process counts."""
    code = (
        "import json, sys, reprune\n"
        "model, flags, settings = json.loads(sys.argv[1])\n"
        "found = reprune.plan(model, settings=settings, **flags).forecast\n"
        "print(json.dumps(vars(found)))\n"
    )
    given = json.dumps([str(model), dict(flags), list(settings)])
    said = subprocess.run([sys.executable, "-c", code, given], check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def peaks(record: Mapping[str, Any], forecast: Mapping[str, float]) -> tuple[float, float]:
    """The peak memory of a run and what was forecast, in bytes: if it was on a GPU, of its allocations there."""
    if on_gpu := record["peak_memory_bytes"]["device"]:
        return on_gpu, forecast["device_bytes"]
    return record["peak_memory_bytes"]["host"], forecast["memory_bytes"]


def random_llama(folder: Path, **sizes: int) -> Path:
    """Write a model of random weights in bfloat16, with a token for each byte, unless it is there; returns it."""
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(**{"vocab_size": 1024, "max_position_embeddings": 2048, **sizes})
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        write_tokenizer(folder)
    return folder


def add_shape(parser: ArgumentParser) -> None:
    """Add options for the shape of a Llama's blocks, by default Llama-7B's, and the length of samples."""
    for name, value in (("hidden", 4096), ("intermediate", 11008), ("heads", 32), ("seqlen", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)


def llama_of_shape(folder: Path, options: Namespace, blocks: int) -> Path:
    """A Llama of so many blocks of that shape, as `random_llama` writes it."""
    return random_llama(
        folder,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=options.heads,
        max_position_embeddings=max(2048, options.seqlen),
    )


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with a token for each byte."""
    PreTrainedTokenizerFast(tokenizer_object=byte_level(["the quick brown fox"])).save_pretrained(folder)


def byte_level(texts: Sequence[str], **settings: Any) -> Tokenizer:
    """A byte-level BPE tokenizer trained on texts; `settings` are the trainer's."""
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(texts, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False, **settings))
    return raw


def random_text(file: Path, tokens: int) -> Path:
    """Write words of random letters, each letter one token, for more than so many tokens."""
    letters = random.Random(0)
    words = ("".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(tokens // 7 + 100))
    file.write_text(" ".join(words), encoding="utf-8")
    return file
