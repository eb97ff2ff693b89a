"""A result that is as it was written passes; whatever differs is named, with exit code 1."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import reprune
from reprune.doors import verify as module
from reprune.math.patterns import parse_pattern
from tests import tiny
from tests.doors.conftest import QUICK, Cli


def _pruned(cli: Cli, model: str | Path = "llama", *flags: str) -> None:
    assert cli("prune", model, "--out", "out", *QUICK, *flags, "-q").code == 0


@pytest.fixture(scope="module")
def finished(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished result; tests must not change it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    how: dict[str, Any] = {"pruner": "magnitude", "sparsity": "2:4", "reconstruct": "LR", "device": "cpu"}
    reprune.prune(llama, out, calibration="manual", samples=4, seqlen=24, settings=["precision=float32"], **how)
    return out


@pytest.fixture
def out(finished: Path, here: Path) -> Path:
    """A copy of the result, to change, as `out` in the working folder."""
    return copytree(finished, here / "out")


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "gpt2"])
@pytest.mark.parametrize("sparsity", ["0.5", "2:4"])
def test_verify_passes_a_result_as_it_was_written(name: str, sparsity: str, here: Path, cli: Cli) -> None:
    _pruned(cli, tiny.save(name, here / "model", dtype=torch.bfloat16), "--sparsity", sparsity)
    said = cli("verify", "out")
    assert said.code == 0, said.out
    assert [line.split()[:2] for line in said.out.splitlines()] == [
        ["ok", "files"],
        ["ok", "sparsity"],
        ["ok", "numbers"],
        ["ok", "forward"],
    ]
    assert f"pattern {sparsity}" in said.out
    assert said.err == ""


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_verify_passes_a_result_computed_in_half_precision(precision: str, cli: Cli) -> None:
    _pruned(cli, "llama", "--set", f"precision={precision}")
    assert cli("verify", "out").code == 0


def test_a_matrix_is_held_to_its_own_pattern(cli: Cli) -> None:
    _pruned(cli, "llama", "--sparsity", "2:4", "--set", 'sparsity_by_name={"down_proj": "0.5"}', "--reconstruct", "LR")
    assert reprune.verify("out").passed


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")])
def test_a_lack_of_memory_fails_no_result(
    error: Exception, out: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: object) -> None:
        raise error

    monkeypatch.setattr("reprune.doors.verify.uncached", lacks)
    said = cli("verify", "out")
    assert (said.code, [line.split()[0] for line in said.out.splitlines()]) == (1, ["ok"] * 3)
    assert said.err.startswith("error: out of memory")


def test_an_old_buffer_may_be_infinite(here: Path, cli: Cli) -> None:
    file = tiny.save("gpt_neox", here / "model", dtype=torch.float16) / "model.safetensors"
    old = {f"gpt_neox.layers.{index}.attention.masked_bias": torch.tensor(-1e9).half() for index in range(3)}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    _pruned(cli, here / "model")
    said = cli("verify", "out")
    assert said.code == 0, said.out


def test_positions_may_depend_on_how_long_a_text_is(here: Path, cli: Cli) -> None:
    """For texts longer than its original context, LongRoPE has other factors, from the first token on."""
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "original_max_position_embeddings": 48}
    config = tiny.CONFIGS["phi3"]()
    config.rope_parameters, config.original_max_position_embeddings = rope, 48
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * (0.6 if "self_attn" in name else 0.15))
    model.save_pretrained("long")
    tiny.tokenizer().save_pretrained("long")
    _pruned(cli, "long", "--seqlen", "96")
    said = cli("verify", "out")
    assert said.code == 0, said.out
    record = json.loads((here / "out" / "reprune.json").read_text())
    assert record["forward"]["tokens"] == 96
    record["forward"]["tokens"] = len(record["forward"]["ids"])
    (here / "out" / "reprune.json").write_text(json.dumps(record))
    assert "more than the 5%" in cli("verify", "out").out, "as short a text as is on record shows nothing here"


@pytest.mark.parametrize(
    ("name", "others", "passes"), [("mixtral", 4, True), ("mixtral", 5, False), ("llama", 1, False)]
)
def test_a_few_tokens_of_a_mixture_may_be_sent_elsewhere(
    name: str, others: int, passes: bool, here: Path, cli: Cli
) -> None:
    _pruned(cli, str(tiny.save(name, here / "model")), "--seqlen", "32")
    record = json.loads((here / "out" / "reprune.json").read_text())
    for place in range(others):
        record["forward"]["rms"][5 * place + 1] *= 2.0
    (here / "out" / "reprune.json").write_text(json.dumps(record))
    said = cli("verify", "out")
    assert said.code == (0 if passes else 1)
    assert ("states of 28 of 32 tokens 0." in said.out) == passes
    assert max(map(len, said.out.splitlines())) <= 80


def test_pickled_weights_beside_others_are_not_read(out: Path, cli: Cli) -> None:
    tensors = dict[str, Tensor]()
    for path in [*out.glob("*.safetensors"), out / "model.safetensors.index.json"]:
        tensors |= load_file(path) if path.suffix == ".safetensors" else {}
        path.unlink()
    save_file(tensors, out / "other.safetensors", metadata={"format": "pt"})
    torch.save(tensors, out / "pytorch_model.bin")
    record = json.loads((out / "reprune.json").read_text())
    names = [name for name in record["files"] if (out / name).exists()] + ["other.safetensors", "pytorch_model.bin"]
    record["files"] = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
    (out / "reprune.json").write_text(json.dumps(record))
    said = cli("verify", "out")
    assert said.code == 1
    assert [line.split()[0] for line in said.out.splitlines()[:4]] == ["ok", "ok", "ok", "FAILED"]
    assert "model.safetensors" in said.out


def test_an_adapter_beside_a_result_is_refused(out: Path, cli: Cli) -> None:
    (out / "adapter_config.json").write_text("{}")
    said = cli("verify", "out")
    assert (said.code, "out: holds a PEFT adapter beside its weights" in said.err) == (2, True)


def test_every_file_is_looked_at(out: Path, cli: Cli) -> None:
    for path in sorted(out.iterdir()):
        if path.name == "reprune.json":
            continue
        content = path.read_bytes()
        path.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
        said = cli("verify", "out")
        assert said.code == 1
        assert said.out.splitlines()[0].startswith("FAILED  files")
        assert f"{path.name}: has changed since it was written" in said.out
        path.unlink()
        assert f"{path.name}: is missing" in cli("verify", "out").out
        path.write_bytes(content)
    assert cli("verify", "out").code == 0
    (out / "more.safetensors").write_bytes(b"")
    assert "more.safetensors: is not one of the result's" in cli("verify", "out").out


def test_what_was_found_is_true_only_if_it_passed(out: Path) -> None:
    assert reprune.verify("out")
    (out / "config.json").write_text("{}", encoding="utf-8")
    found = reprune.verify("out")
    assert not found
    assert json.loads(json.dumps(found.record())) == {
        "passed": False,
        "checks": [
            {
                "name": "files",
                "found": found.checks[0].found,
                "problems": ["config.json: has changed since it was written"],
                "passed": False,
            }
        ],
    }


def _rewritten(out: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change tensors of the first shard, and the record accordingly, so that the files are those on record."""
    shard = min(out.glob("model-*.safetensors"))
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})
    record = json.loads((out / "reprune.json").read_text())
    record["files"][shard.name] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (out / "reprune.json").write_text(json.dumps(record))


def _fill(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"][0] = 1.0


def _swap(tensors: dict[str, Tensor]) -> None:
    weight = tensors["model.layers.0.mlp.up_proj.weight"]
    weight.copy_(weight.flatten()[torch.randperm(weight.numel())].reshape(weight.shape))


def _spoil(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.input_layernorm.weight"][0] = float("nan")


def _overflow(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.input_layernorm.weight"][0] = float("inf")


def _scale(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"] *= 100.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_fill, "block 0, mlp.up_proj: has "),
        (_swap, "block 0, mlp.up_proj: does not have the pattern 2:4"),
        (_spoil, "model.layers.0.input_layernorm.weight: holds NaN or infinite values"),
        (_overflow, "model.layers.0.input_layernorm.weight: holds NaN or infinite values"),
        (_scale, "more than the 5% that rounding explains"),
    ],
)
def test_what_the_files_hold_is_looked_at(
    change: Callable[[dict[str, Tensor]], None], expected: str, out: Path, cli: Cli
) -> None:
    _rewritten(out, change)
    said = cli("verify", "out")
    assert said.code == 1
    assert said.out.startswith("ok      files")
    assert expected in said.out
    assert not reprune.verify("out").passed


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"zeros": 3}, "block 0, up: has 4 zeros, on record 3"),
        ({"zeros": 5}, "block 0, up: has 4 zeros, on record 5"),
        ({"rows": 4, "columns": 2}, "block 0, up: is (2, 4), on record 4 x 2"),
        ({"rows": 1}, "block 0, up: is (2, 4), on record 1 x 4"),
    ],
)
def test_a_matrix_is_as_large_and_has_as_many_zeros_as_on_record(changes: dict[str, int], problem: str | None) -> None:
    matrix = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    entry = module._Matrix(**({"name": "up", "rows": 2, "columns": 4, "zeros": 4} | changes))
    found = module._matrix("block 0, up", matrix, entry, parse_pattern("2:4"))
    assert list(found) == ([] if problem is None else [problem])


def test_a_model_that_does_not_load_is_said(out: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", fail)
    said = cli("verify", "out")
    assert said.code == 1
    assert "RuntimeError: no such layer" in said.out


def test_the_record_holds_no_text_of_the_calibration(here: Path, cli: Cli) -> None:
    _pruned(cli)
    record = json.loads((here / "out" / "reprune.json").read_text())
    (here / "text.txt").write_text(tiny.text(6_000)[::-1])
    assert cli("prune", "llama", "--out", "other", *QUICK, "-q").code == 0
    assert json.loads((here / "other" / "reprune.json").read_text())["forward"]["ids"] == record["forward"]["ids"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "holds no result of reprune"),
        ("{", "not a record to verify by"),
        *((content, "not a record to verify by (what it holds is no run's)") for content in ("[]", "null", "3")),
        ('{"recipe": {"sparsity": "0.5"}, "blocks": []}', "it holds no 'files'"),
        ('{"recipe": {"sparsity": "2:1"}, "blocks": [], "files": {}, "forward": {}}', "not a record to verify by"),
        ('{"recipe": {"sparsity": 0.5}, "blocks": [{}], "files": {}, "forward": {}}', "not a record to verify by"),
    ],
)
def test_what_is_no_result_is_refused(content: str | None, expected: str, here: Path, cli: Cli) -> None:
    (here / "out").mkdir()
    if content is not None:
        (here / "out" / "reprune.json").write_text(content)
    said = cli("verify", "out")
    assert said.code == 2
    assert expected in said.err
    assert said.err.count("error: ") == 1


def test_a_record_that_cannot_be_read_is_no_failed_check(here: Path, cli: Cli) -> None:
    (here / "out" / "reprune.json").mkdir(parents=True)
    said = cli("verify", "out")
    why = os.strerror(errno.EISDIR)
    assert (said.code, said.err) == (
        2,
        f"error: out/reprune.json: cannot be read ({why}); check its permissions.\n",
    )


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        *[(("blocks", 0, "index"), value, "blocks.0.index") for value in (-1, "x", None)],
        *[(("blocks", 0, "matrices", 0, key), "5", f"blocks.0.matrices.0.{key}") for key in ("rows", "zeros")],
        *[(("blocks", 0, "matrices", 0, key), None, f"blocks.0.matrices.0.{key}") for key in ("columns", "zeros")],
        (("blocks",), [], "blocks: "),
        (("recipe",), {}, "it holds no 'sparsity'"),
        (("files", "config.json"), 3, "files.config.json"),
        pytest.param(("blocks", 0, "matrices", 0, "zeros"), 10**400, "blocks.0.matrices.0.zeros", id="too large"),
        (("forward", "ids"), [2**64], "forward.ids.0"),
        (("forward", "ids"), [1] * 33, "forward.ids: "),  # no more than there are on record: a million took minutes
        (("forward", "tokens"), "1e3", "forward.tokens"),
    ],
)
def test_a_record_that_is_not_whole_is_refused_by_the_place(
    place: tuple[str | int, ...], value: object, expected: str, out: Path, cli: Cli
) -> None:
    _change(out, place, value)
    said = cli("verify", "out")
    assert said.code == 2
    assert said.err.startswith(f"error: out/reprune.json: not a record to verify by ({expected}")


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("blocks", 0, "index"), 999, ["block 0: is not on record", "block 999: is not in the model"]),
        (("files", "a" * 5000), "0", [f"{'a' * 200}: is missing"]),
        (("forward", "rms"), [1.0] * 3, ["states of 3 tokens", "more than the 5% that rounding explains"]),
    ],
)
def test_a_record_of_another_model_is_a_problem(
    place: tuple[str | int, ...], value: object, expected: list[str], out: Path, cli: Cli
) -> None:
    _change(out, place, value)
    said = cli("verify", "out")
    assert (said.code, said.err) == (1, "")
    assert [one for one in expected if one not in said.out] == []


def test_blocks_that_a_record_lacks_are_named(out: Path, cli: Cli) -> None:
    _change(out, ("blocks",), json.loads((out / "reprune.json").read_text())["blocks"][:1])
    said = cli("verify", "out")
    assert (said.code, said.err) == (1, "")
    assert "block 1: is not on record" in said.out and "block 2: is not on record" in said.out


def _change(out: Path, place: tuple[str | int, ...], value: object) -> None:
    """Set a value at some place of a record."""
    record = json.loads((out / "reprune.json").read_text())
    inner = record
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    (out / "reprune.json").write_text(json.dumps(record))


def test_files_outside_the_folder_are_not_opened(out: Path, cli: Cli) -> None:
    record = json.loads((out / "reprune.json").read_text())
    record["files"]["../text.txt"] = "0"
    (out / "reprune.json").write_text(json.dumps(record))
    assert "../text.txt: lies outside the folder" in cli("verify", "out").out


def test_an_unfinished_run_is_told_to_go_on(out: Path, cli: Cli) -> None:
    (out / ".reprune").mkdir()
    (out / ".reprune" / "run.json").write_text("{}")
    said = cli("verify", "out")
    assert said.code == 2
    assert "reprune resume out" in said.err
    assert [path.name for path in (out / ".reprune").iterdir()] == ["run.json"]
