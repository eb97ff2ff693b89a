"""A model that lacks a part, or has weights that cannot be used, is refused with one message, or pruned with a note."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.doors.command.refused import refused
from tests.doors.conftest import QUICK, Cli


def test_a_model_without_a_head_is_pruned_with_a_note_and_nothing_that_needs_the_head_is_done(
    here: Path, cli: Cli
) -> None:
    model = tiny.build("mistral").model  # saved like embedding models
    model.save_pretrained(here / "headless")
    tiny.tokenizer().save_pretrained(here / "headless")
    flags = ["headless", *QUICK, "--reconstruct", "LR"]
    refused(cli, here, ["prune", *flags, "--out", "out", "--set", "distill.blocks=1"], "the tensor lm_head.weight")
    refused(cli, here, ["plan", *flags, "--set", "distill.blocks=1"], "the tensor lm_head.weight")
    refused(cli, here, ["evaluate", "headless", "--text", "text.txt"], "its files lack lm_head.weight")
    said = cli("generate", "headless", "--out", "a.jsonl", "--samples", "1", "--length", "9")
    assert (said.code, "its files lack lm_head.weight" in said.err) == (2, True)
    for said in (cli("plan", *flags), cli("prune", *flags, "--out", "out")):
        assert said.code == 0
        assert "headless: its files lack lm_head.weight; its blocks can be pruned all the same" in " ".join(
            (said.out + said.err).split()
        )
    assert cli("verify", "out").code == 0


def test_a_model_without_an_embedding_is_refused(here: Path, cli: Cli) -> None:
    tiny.save("llama", here / "cut")
    weights = load_file(here / "cut" / "model.safetensors")
    del weights["model.embed_tokens.weight"]
    save_file(weights, here / "cut" / "model.safetensors", metadata={"format": "pt"})
    refused(cli, here, ["prune", "cut", "--out", "out", *QUICK], "the tensor model.embed_tokens.weight")
    refused(cli, here, ["plan", "cut", *QUICK], "the tensor model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("number", "flags"), [(float("nan"), []), (float("-inf"), []), (float("nan"), ["--self-generate", "2"])]
)
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
)
def test_a_model_with_a_weight_that_is_not_finite_is_refused(
    name: str, number: float, flags: list[str], here: Path, cli: Cli
) -> None:
    """Also one outside the blocks, which no window would notice."""
    tiny.save("llama", here / "spoilt", torch.float16)
    weights = load_file(here / "spoilt" / "model.safetensors")
    weights[name].view(-1)[5] = number
    save_file(weights, here / "spoilt" / "model.safetensors", metadata={"format": "pt"})
    expected = f"the tensor {name} holds NaN or infinite values"
    refused(cli, here, ["prune", "spoilt", "--out", "out", *QUICK, *flags], expected)


def test_a_model_whose_tokenizer_has_more_tokens_than_its_embedding_is_refused(here: Path, cli: Cli) -> None:
    tiny.save("llama", here / "small")
    weights = load_file(here / "small" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:100].clone()
    save_file(weights, here / "small" / "model.safetensors", metadata={"format": "pt"})
    config = here / "small" / "config.json"
    config.write_text(config.read_text().replace(f'"vocab_size": {tiny.VOCABULARY}', '"vocab_size": 100'))
    refused(cli, here, ["prune", "small", "--out", "out", *QUICK], "has only 100 rows")


def test_a_model_without_a_usable_tokenizer_is_refused(here: Path, cli: Cli) -> None:
    tiny.build("llama").save_pretrained(here / "bare")
    refused(cli, here, ["prune", "bare", "--out", "out", *QUICK], "bare: its tokenizer cannot be loaded")
    refused(cli, here, ["evaluate", "bare", "--text", "text.txt"], "bare: its tokenizer cannot be loaded")
    refused(cli, here, ["plan", "bare", *QUICK], "bare: its tokenizer cannot be loaded")
    (here / "bare" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>"}')
    refused(cli, here, ["prune", "bare", "--out", "out", *QUICK], "bare: its tokenizer is empty")
