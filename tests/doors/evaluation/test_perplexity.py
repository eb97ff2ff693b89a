"""A perplexity equals that of plain Transformers over the same windows, and says what it was measured on."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers import AutoModelForCausalLM

import reprune
from reprune.doors.evaluation.perplexity import perplexity
from reprune.errors import InputError, NumericalError
from reprune.model.block import Precision
from tests import tiny
from tests.doors.conftest import QUICK, Cli

FLOAT32 = Precision(torch.float32)
WINDOWS = torch.randint(3, tiny.VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def plain(model: Any, windows: Tensor) -> float:
    """The slow twin: the model's own loss, window by window, with all logits at once."""
    return math.exp(sum(float(model(ids[None], labels=ids[None]).loss) for ids in windows) / len(windows))


def cut(text: str, seqlen: int, bos: bool) -> Tensor:
    """The slow twin of the windows: the text's tokens in order, BOS before each window's part, the rest dropped."""
    tokens = tiny.tokenizer(False)(text, add_special_tokens=False, verbose=False)["input_ids"]
    width = seqlen - bos
    parts = [tokens[first : first + width] for first in range(0, len(tokens) - width + 1, width)]
    return torch.tensor([[1, *part] if bos else part for part in parts])


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_it_is_that_of_plain_transformers(name: str) -> None:
    model = tiny.build(name)
    expected = plain(model, WINDOWS)
    done: list[int] = []
    assert perplexity(model, WINDOWS, FLOAT32, done.append) == pytest.approx(expected, rel=1e-5)
    assert done == [1, 2, 3]
    assert plain(model, WINDOWS) == pytest.approx(expected), "the model is left as it was"


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt2"])
def test_with_bfloat16_products_a_perplexity_is_near_the_exact_one(name: str) -> None:
    model = tiny.build(name)
    near = perplexity(model, WINDOWS, Precision(torch.bfloat16))
    exact = perplexity(model, WINDOWS, FLOAT32)
    assert near == pytest.approx(exact, rel=0.02)
    assert near != exact
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_window_does_not_see_another() -> None:
    model = tiny.build("llama")
    each = [math.log(perplexity(model, window[None], FLOAT32)) for window in WINDOWS]
    assert perplexity(model, WINDOWS, FLOAT32) == pytest.approx(math.exp(sum(each) / 3), rel=1e-6)


def test_a_loss_that_is_no_number_is_an_error() -> None:
    model = tiny.build("llama")
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(NumericalError, match="not finite"):
        perplexity(model, WINDOWS, FLOAT32)


def test_a_loss_of_no_finite_perplexity_is_an_error() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    with pytest.raises(NumericalError, match=r"loss on this text, \d.* per token, is too high for a finite perplexity"):
        perplexity(model, WINDOWS, FLOAT32)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("seqlen", [None, 33])
def test_the_windows_are_those_of_the_protocol(bos: bool, seqlen: int | None, here: Path) -> None:
    """If the tokenizer adds BOS, each window begins with it, and no token of the text is left out for it."""
    model = tiny.save("llama", here / "model", bos=bos)
    text = (here / "text.txt").read_text()
    windows = cut(text, seqlen or tiny.POSITIONS, bos)
    result = reprune.evaluate(model, "text.txt", seqlen=seqlen, device="cpu", precision="float32")
    assert result.perplexity == pytest.approx(plain(tiny.build("llama"), windows), rel=1e-5)
    assert result.bos is bos
    assert (result.windows, result.seqlen) == windows.shape
    assert result.tokens == len(windows) * (windows.shape[1] - 1)
    assert (result.model, result.text, result.precision) == ("model", "text.txt", "float32")
    assert result.text_sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_number_of_windows_measures_only_the_first_of_them(llama: Path, here: Path) -> None:
    text = (here / "text.txt").read_text()
    done: list[tuple[int, int]] = []
    result = reprune.evaluate(
        llama, "text.txt", seqlen=16, max_windows=4, device="cpu", precision="float32",
        progress=lambda number, of: done.append((number, of)),
    )  # fmt: skip
    assert result.perplexity == pytest.approx(plain(tiny.build("llama"), cut(text, 16, True)[:4]), rel=1e-5)
    assert (result.windows, result.tokens) == (4, 60)
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert reprune.evaluate(llama, "text.txt", seqlen=128, max_windows=999).windows < 999


def test_a_result_is_evaluated_as_plain_transformers_evaluates_it(here: Path, cli: Cli) -> None:
    assert cli("prune", "llama", "--out", "out", *QUICK, "--pruner", "magnitude", "--sparsity", "0.8").code == 0
    windows = cut((here / "text.txt").read_text(), 64, True)
    dense, sparse = (plain(AutoModelForCausalLM.from_pretrained(folder), windows) for folder in ("llama", "out"))
    assert dense != pytest.approx(sparse, rel=1e-3)
    for folder, expected in (("llama", dense), ("out", sparse)):
        result = reprune.evaluate(folder, "text.txt", seqlen=64, device="cpu", precision="float32")
        assert (result.model, result.windows) == (folder, len(windows))
        assert result.perplexity == pytest.approx(expected, rel=1e-5)


def test_the_split_of_a_text_with_splits_is_the_test_split(llama: Path, here: Path) -> None:
    from pydoc_data.topics import topics

    odd = "\n\n".join(topics[key] for key in sorted(topics)[1::2])
    result = reprune.evaluate(llama, "manual", seqlen=32, max_windows=3, device="cpu", precision="float32")
    assert result.perplexity == pytest.approx(plain(tiny.build("llama"), cut(odd[:9_000], 32, True)[:3]), rel=1e-5)


@pytest.fixture
def bloom(here: Path) -> Path:
    """A model without a longest sequence, with a tokenizer that adds no BOS."""
    torch.manual_seed(0)
    model = tf.BloomForCausalLM(tf.BloomConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, n_layer=2, n_head=4))
    model.save_pretrained(here / "bloom")
    tiny.tokenizer(bos=False).save_pretrained(here / "bloom")
    return here / "bloom"


def test_a_model_of_any_length_takes_windows_of_2048(bloom: Path, here: Path) -> None:
    result = reprune.evaluate(bloom, "text.txt", device="cpu", precision="float32")
    assert (result.seqlen, result.bos) == (2048, False)
    windows = cut((here / "text.txt").read_text(), 2048, False)
    assert result.perplexity == pytest.approx(plain(AutoModelForCausalLM.from_pretrained(bloom), windows), rel=1e-5)


@pytest.mark.parametrize(
    "seqlen",
    [-1, 0, 1],
)
def test_a_window_without_a_token_to_predict_is_refused(bloom: Path, seqlen: int) -> None:
    with pytest.raises(InputError, match="seqlen"):
        reprune.evaluate(bloom, "text.txt", seqlen=seqlen)


@pytest.mark.parametrize(("full", "fixed"), [("wanda", "paper"), ("published", "gptq")])
def test_a_model_of_any_length_has_no_full_length(full: str, fixed: str, bloom: Path) -> None:
    """The message suggests a protocol whose windows begin in the same way."""
    said = rf"^--protocol {full}: .*bloom names none; give --seqlen, or --protocol {fixed}\.$"
    with pytest.raises(InputError, match=said):
        reprune.evaluate(bloom, "text.txt", protocol=full)
    assert reprune.evaluate(bloom, "text.txt", protocol=fixed).protocol == fixed
