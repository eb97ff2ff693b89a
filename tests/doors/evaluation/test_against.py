"""A sparse model's errors by block are those of two whole models side by side, in the memory of two blocks."""

from __future__ import annotations

import json
import signal
import tempfile
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import reprune
from reprune.doors.evaluation import against
from reprune.doors.evaluation.against import AgainstDense, errors_against
from reprune.doors.prepare import draw
from reprune.engine import compare as engine
from reprune.engine.compare import compare
from reprune.errors import InputError, NumericalError
from reprune.model.block import Block
from reprune.model.decoder import Decoder
from reprune.planning.layers import resolve_recipe
from reprune.planning.overlap import sketch
from reprune.planning.recipe import StreamsRecipe
from tests import tiny
from tests.doors.conftest import QUICK, Cli
from tests.engine import together

EXACT: dict[str, Any] = {"device": "cpu", "precision": "float32"}
BLOCKS = {"llama": "model.layers", "gemma3": "model.layers", "opt": "model.decoder.layers", "gpt2": "transformer.h"}
_ALL_EMBEDDINGS = ("embed_tokens", "wte")


def sparse_twin(name: str, folder: Path, embeddings: bool = False, **options: Any) -> Path:
    """The same tiny model with half of each block's matrices zero and all weights of its blocks slightly changed."""
    model = tiny.build(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if BLOCKS[name] in key or (embeddings and any(part in key for part in _ALL_EMBEDDINGS)):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
                if parameter.dim() == 2 and BLOCKS[name] in key:
                    parameter[:, ::2] = 0
    model.save_pretrained(folder, **options)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def outputs(folder: Path, path: str, ids: Tensor) -> list[Tensor]:
    """The slow twin: the output of each block of the whole model on all windows."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[Tensor] = []
    for block in model.get_submodule(path):
        block.register_forward_hook(lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    model(ids)
    return seen


def windows(text: str, seqlen: int, count: int) -> Tensor:
    tokens = tiny.tokenizer(False)(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([[1, *tokens[i * (seqlen - 1) : (i + 1) * (seqlen - 1)]] for i in range(count)])


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("embeddings", [False, True], ids=["embedded alike", "embedded by its own"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_they_are_those_of_two_whole_models(
    name: str, embeddings: bool, on_disk: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, sparse = tiny.save(name, here / "dense"), sparse_twin(name, here / "sparse", embeddings)
    if on_disk:
        monkeypatch.setattr(against, "StreamsRecipe", lambda: StreamsRecipe(memory=0))
    found = errors_against(sparse, dense, "text.txt", seqlen=24, max_windows=11, batch_size=4, **EXACT)
    ids = windows((here / "text.txt").read_text(), 24, 11)
    assert (found.embedding > 0) is embeddings
    pairs = list(zip(outputs(sparse, BLOCKS[name], ids), outputs(dense, BLOCKS[name], ids), strict=True))
    assert len(found.blocks) == len(pairs) == 3
    for index, (block, (one, other)) in enumerate(zip(found.blocks, pairs, strict=True)):
        difference = (one - other).double().square().sum().item()
        assert block.index == index
        assert block.normalized == pytest.approx(difference / one.numel(), rel=1e-4)
        assert block.relative == pytest.approx(difference / other.double().square().sum().item(), rel=1e-4)
        assert block.sparsity == pytest.approx(0.5)


def test_a_model_against_itself_has_no_error(llama: Path, here: Path) -> None:
    found = errors_against(llama, llama, "text.txt", seqlen=16, max_windows=5, batch_size=1, device="cpu")
    assert [(block.normalized, block.relative, block.sparsity) for block in found.blocks] == [(0.0, 0.0, 0.0)] * 3
    assert found.embedding == 0.0


def test_it_says_all_that_decides_it(llama: Path, here: Path) -> None:
    sparse = sparse_twin("llama", here / "sparse")
    told: list[tuple[int, int]] = []
    found = errors_against(
        sparse, llama, "text.txt", seqlen=16, max_windows=5, batch_size=2, **EXACT,
        progress=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    dense = reprune.evaluate(llama, "text.txt", seqlen=16, max_windows=5, **EXACT)
    assert isinstance(found, AgainstDense)
    assert (found.model, found.dense, found.text, found.precision) == ("sparse", "llama", "text.txt", "float32")
    assert (found.protocol, found.seqlen, found.windows, found.bos) == ("custom", 16, 5, True)
    assert (found.dense_fingerprint, found.text_sha256) == (dense.fingerprint, dense.text_sha256)
    assert found.fingerprint == reprune.evaluate(sparse, "text.txt", seqlen=16, max_windows=1).fingerprint
    assert told == [(done, 9) for done in range(1, 10)]
    record = json.loads(json.dumps(found.record()))
    assert record["blocks"][2] == {
        "index": 2,
        "normalized": found.blocks[2].normalized,
        "relative": found.blocks[2].relative,
        "sparsity": 0.5,
    }
    assert record["dense"] == "llama"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_the_samples_that_a_run_held_out_it_is_what_the_run_recorded(dtype: torch.dtype, here: Path) -> None:
    dense = tiny.save("gemma3", here / "dense", dtype)
    record = reprune.prune(
        dense, here / "out", calibration="text.txt", samples=8, seqlen=24, epochs=2, lr=1e-3, batch_size=4,
        reconstruct="BR+GP+CR", heldout=["manual=5"], device="cpu", settings=["precision=float32"],
    )  # fmt: skip
    recipe = resolve_recipe(
        str(dense), {}, {"calibration": ["text.txt"], "heldout": ["manual=5"], "samples": 8, "seqlen": 24}, ()
    )
    decoders = Decoder(here / "out"), Decoder(dense)
    samples = draw(recipe, decoders[1])
    assert samples.sha256 == record["data"]["sha256"]
    assert record["sketch"] == sketch(torch.cat([samples.calibration, samples.heldout]))
    for ids, kind in ((samples.heldout, "heldout"), (samples.calibration, "calibration")):
        found = compare(*decoders, ids, 4, 10**9, here)
        for block, recorded in zip(found.blocks, record["blocks"], strict=True):
            assert block.normalized == pytest.approx(recorded[f"{kind}_error"], rel=1e-6)
            assert block.relative == pytest.approx(recorded[f"relative_{kind}_error"], rel=1e-6)
            assert block.sparsity == recorded["sparsity"]


def test_two_blocks_are_in_memory_and_no_more(llama: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Block] = weakref.WeakSet()
    most: list[int] = []

    def load(decoder: Decoder, index: int, real: Any = Decoder.load) -> Block:
        block = real(decoder, index)
        alive.add(block)
        most.append(len(alive))
        return block

    monkeypatch.setattr(Decoder, "load", load)
    sparse = sparse_twin("llama", here / "sparse")
    errors_against(sparse, llama, "text.txt", seqlen=16, max_windows=5, **EXACT)
    assert most == [1, 2] * 3


def test_long_windows_pass_fewer_at_a_time(llama: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against, "_TOKENS", 70)
    sizes: list[int] = []
    monkeypatch.setattr(Block, "run", lambda block, states, call: sizes.append(len(states)) or states)
    errors_against(llama, llama, "text.txt", seqlen=16, max_windows=9, **EXACT)
    assert set(sizes) == {4, 1}
    sizes.clear()
    errors_against(llama, llama, "text.txt", seqlen=100, max_windows=2, **EXACT)
    assert set(sizes) == {1}


def test_what_is_not_finite_is_an_error(llama: Path, here: Path) -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = float("nan")
    model.save_pretrained(here / "broken")
    tiny.tokenizer().save_pretrained(here / "broken")
    with pytest.raises(NumericalError, match=r"block 1: .*broken"):
        errors_against(here / "broken", llama, "text.txt", seqlen=16, max_windows=2, **EXACT)


def changed(name: str, folder: Path, **config: Any) -> Path:
    """A tiny model with another configuration."""
    made = tiny.CONFIGS[name]()
    for key, value in config.items():
        setattr(made, key, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("qwen2", {}, r"other and llama differ in their architecture \(qwen2 and llama\)"),
        ("llama", {"num_hidden_layers": 2}, r"other and llama differ in their number of blocks \(2 and 3\)"),
        ("llama", {"hidden_size": 48}, r"other and llama differ in their hidden size \(48 and 32\)"),
        ("llama", {"vocab_size": 400}, r"other and llama differ in their vocabulary size \(400 and 320\)"),
        (
            "llama",
            {"intermediate_size": 48},
            r"other and llama differ in the shape of mlp.gate_proj.weight in block 0 \(\[48, 32\] and \[64, 32\]\)",
        ),
        (
            "llama",
            {"attention_bias": True},
            r"other and llama differ in the shape of self_attn.q_proj.bias in block 0 \(\[32\] and none\)",
        ),
    ],
)
def test_models_that_are_not_alike_are_refused(
    name: str, config: dict[str, Any], message: str, llama: Path, here: Path
) -> None:
    other = changed(name, here / "other", **config)
    with pytest.raises(InputError, match=f"^{message}; only a model pruned from the dense one"):
        errors_against(other, llama, "text.txt", seqlen=16, max_windows=2, **EXACT)


def test_models_that_read_a_text_in_different_tokens_are_refused(llama: Path, here: Path) -> None:
    sparse = sparse_twin("llama", here / "sparse")
    tiny.tokenizer(bos=False).save_pretrained(sparse)
    with pytest.raises(InputError, match=r"sparse and llama cut text\.txt into different tokens"):
        errors_against(sparse, llama, "text.txt", seqlen=16, max_windows=2, **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: expected at least 1"),
        ({"seqlen": 16, "protocol": "short"}, "leave out either --seqlen 16 or --protocol"),
        ({"max_windows": 0}, "--windows 0: expected at least 1"),
        ({"protocol": "paper"}, "llama takes at most 128"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str, llama: Path, here: Path) -> None:
    with pytest.raises(InputError, match=message):
        errors_against(llama, llama, "text.txt", **options, **EXACT)


def test_a_text_that_fits_neither_memory_nor_disk_is_refused(
    llama: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(against, "StreamsRecipe", lambda: StreamsRecipe(memory=0))
    monkeypatch.setattr(engine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(InputError, match=r"0\.0 GB are free; take fewer --windows, or set TMPDIR"):
        errors_against(llama, llama, "text.txt", seqlen=16, max_windows=2, **EXACT)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_no_file_is_left_however_it_ends(
    error: type[BaseException], llama: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "temporary"))
    monkeypatch.setattr(against, "StreamsRecipe", lambda: StreamsRecipe(memory=0))
    seen: list[int] = []

    def progress(done: int, of: int) -> None:
        seen.append(len(list((here / "temporary").rglob("*.stream"))))
        if done == 2:
            raise error

    with pytest.raises(error):
        errors_against(llama, llama, "text.txt", seqlen=16, max_windows=9, **EXACT, progress=progress)
    assert seen == [2, 2]
    assert list((here / "temporary").iterdir()) == []


def _stuck() -> None:
    """The command line, with streams on disk and a block that signals when it is run and takes a minute."""

    def run(*_: Any) -> None:
        Path("running").touch()
        time.sleep(60)

    tempfile.tempdir = "temporary"
    against.StreamsRecipe = lambda: StreamsRecipe(memory=0)  # type: ignore[misc, assignment]
    Block.run = run  # type: ignore[assignment, method-assign]
    flags = ["--text", "text.txt", "--seqlen", "8", "--windows", "9", "--against", "llama", "-q"]
    together.command("evaluate", "llama", *flags)


def test_a_process_that_is_interrupted_leaves_nothing(here: Path) -> None:
    (here / "temporary").mkdir()
    process = together.start_alone(_stuck)
    until = time.monotonic() + 60
    while not (here / "running").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert len(list((here / "temporary").rglob("*.stream"))) == 2
    process.send(signal.SIGINT)
    ended = process.wait(60)
    assert (ended.code, ended.err) == (1, "interrupted\n")
    assert list((here / "temporary").iterdir()) == []


def test_the_command_shows_a_table_in_80_columns(here: Path, cli: Cli) -> None:
    assert cli("prune", "llama", "--out", "out", *QUICK, "--pruner", "magnitude", "--reconstruct", "LR").code == 0
    flags = ["--text", "text.txt", "--seqlen", "24", "--against", "llama", "--device", "cpu", "--precision", "float32"]
    said = cli("evaluate", "out", *flags)
    assert (said.code, said.err) == (0, "")
    found = errors_against("out", "llama", "text.txt", seqlen=24, **EXACT)
    lines = said.out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert f"against    llama, fingerprint {found.dense_fingerprint[:12]}" in lines
    rows = [line.split() for line in lines if line[:5].strip().isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row[1] for row in rows] == ["50.0"] * 3
    assert [float(row[3]) for row in rows] == pytest.approx([block.normalized for block in found.blocks], rel=1e-3)
    assert lines[-1].startswith(f"last block 2: the error has {rows[2][4]} % of the power")
    assert "embedding" not in said.out
    quiet = cli("evaluate", "out", *flags, "-q").out.splitlines()
    assert float(quiet[1]) == pytest.approx(found.blocks[-1].relative, abs=1e-6)
    record = json.loads(cli("evaluate", "out", *flags, "--json").out)
    assert record["against"] == json.loads(json.dumps(found.record()))
    assert record["perplexity"]["windows"] == found.windows


def test_what_was_measured_before_something_failed_is_printed_too(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny.save("llama", tmp_path / "dense")
    (tmp_path / "text.txt").write_text(tiny.text(4000), encoding="utf-8")

    def failing(*_: Any, **__: Any) -> AgainstDense:
        raise NumericalError("a model's outputs are not finite")

    monkeypatch.setattr(against, "errors_against", failing)
    flags = ["--text", str(tmp_path / "text.txt"), "--seqlen", "32", "--windows", "2", "--against", str(dense)]
    said = cli("evaluate", str(dense), *flags, "--json")
    assert (said.code, said.err.splitlines()[-1]) == (1, "error: a model's outputs are not finite")
    assert list(json.loads(said.out)) == ["perplexity"]


def test_tokens_without_a_row_in_the_embedding_are_refused(here: Path) -> None:
    model, config = tiny.save("llama", here / "model"), tiny.CONFIGS["llama"]()
    config.vocab_size = 100
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    with pytest.raises(
        InputError, match=r"model: its tokenizer yields the id \d+, but its embedding has only 100 rows"
    ):
        errors_against("model", "model", "text.txt", seqlen=16, max_windows=3, **EXACT)


def test_what_the_sparse_model_was_calibrated_on_is_looked_for_in_the_text(here: Path) -> None:
    sparse, ids = sparse_twin("llama", here / "sparse"), windows((here / "text.txt").read_text(), 32, 5)
    (sparse / "reprune.json").write_text(json.dumps({"sketch": sketch(ids[:, 1:])}))
    for model, dense, share in ((sparse, "llama", 1.0), ("llama", sparse, None)):
        found = errors_against(model, dense, "text.txt", seqlen=32, max_windows=5, **EXACT)
        assert found.calibration_overlap == share
