"""Each token's loss is the cross entropy of the model's own logits, however few are computed at a time."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor
from transformers import AutoModelForCausalLM

from reprune.errors import HalfPrecisionError, InputError
from reprune.model import head
from reprune.model.block import Precision
from reprune.model.head import TokenLosses

from .. import tiny

FLOAT32, BFLOAT16 = Precision(torch.float32), Precision(torch.bfloat16)
IDS = torch.randint(3, tiny.VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def plain(model: Any) -> Tensor:
    """The slow twin: all logits at once."""
    return F.cross_entropy(model(IDS).logits[0, :-1].double(), IDS[0, 1:], reduction="none").float()


def few_at_a_time(monkeypatch: pytest.MonkeyPatch, tokens: int = 7, words: int = 50) -> None:
    monkeypatch.setattr(head, "_TOKENS", tokens)
    monkeypatch.setattr(head, "_LOGITS", {"cpu": tokens * words})


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize("sizes", [None, (7, 50), (24, 1), (1, 320), (5, 64)])
def test_losses_of_tokens_are_those_of_the_whole_logits(
    name: str, sizes: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build(name)
    expected = plain(model)
    if sizes is not None:
        few_at_a_time(monkeypatch, *sizes)
    losses = TokenLosses(model, FLOAT32)
    torch.testing.assert_close(losses(IDS), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses(IDS[:, :9]), expected[:8], rtol=1e-5, atol=1e-5)
    assert torch.equal(plain(model), expected), "the model is left as it was"


@pytest.mark.parametrize("name", [*tiny.MIXTURES, *tiny.JOINED, "modernbert-decoder"])
def test_losses_are_the_same_whatever_transformers_gives_for_the_decoder(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "modernbert-decoder":  # its attribute `decoder` is its head
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tf.ModernBertDecoderConfig(**_SMALL)).eval()
    else:
        model = tiny.build(name)
    expected = plain(model)
    few_at_a_time(monkeypatch)
    losses = TokenLosses(model, FLOAT32)
    torch.testing.assert_close(losses(IDS), expected, rtol=1e-5, atol=1e-5)
    assert (losses._decoder is None) == (name == "prophetnet"), "its forward reads more than the states"


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_no_more_logits_are_made_than_were_allowed(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    few_at_a_time(monkeypatch)
    monkeypatch.setattr(head, "_LOGITS_ELSEWHERE", 7 * 50)
    model = tiny.build("llama")
    losses = TokenLosses(model, precision)
    losses(IDS)  # the first call also tries slices on a few tokens
    made: list[tuple[int, ...]] = []
    monkeypatch.setattr(F, "linear", lambda *args, real=F.linear: _note(made, real(*args)))
    losses(IDS)
    made = [shape for shape in made if shape[-1] not in (32, 16, 64)]  # those of the head
    assert made == [(7, 50)] * 6 + [(7, 20)] + ([(7, 50)] * 6 + [(7, 20)]) * 2 + [(3, 116)] * 2 + [(3, 88)]


def _note(made: list[tuple[int, ...]], output: Tensor) -> Tensor:
    made.append(tuple(output.shape))
    return output


_SMALL: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("name", ["granite", "cohere", "mixtral", "phi", "gemma2"])
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_what_a_model_does_besides_its_head_is_done(
    name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are divided, scaled or capped after the head, the head has a bias, or the base model returns more."""
    config = {
        "granite": lambda: tf.GraniteConfig(**_SMALL, logits_scaling=3.0),
        "cohere": lambda: tf.CohereConfig(**_SMALL, logit_scale=0.3),
        "mixtral": lambda: tf.MixtralConfig(**_SMALL, num_local_experts=4, output_router_logits=True),
        "phi": lambda: tf.PhiConfig(**_SMALL),
        "gemma2": lambda: tf.Gemma2Config(**_SMALL, head_dim=8, final_logit_softcapping=2.0),
    }[name]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_()
    few_at_a_time(monkeypatch)
    losses = TokenLosses(model, precision)
    near = 1e-5 if precision is FLOAT32 else 0.05
    torch.testing.assert_close(losses(IDS), plain(model), rtol=near, atol=near)
    assert losses._sliceable, "none of this needs all words at once"


@pytest.mark.parametrize("sizes", [(7, 50), (24, 1)])  # in the second, each word is the first of its slice
def test_in_bfloat16_the_logits_that_count_most_are_exact(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_at_a_time(monkeypatch, *sizes)
    model = tiny.build("llama")
    ids = IDS[:, :2]
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        while ids.shape[1] < 24:  # a text that the model is sure of
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    losses = TokenLosses(model, BFLOAT16)(ids)
    with torch.no_grad(), BFLOAT16.on(torch.device("cpu")):
        states = model.model(ids).last_hidden_state[0, :-1]
    weight, targets = model.lm_head.weight.detach().bfloat16(), ids[0, 1:]
    exact = (states * weight.float()[targets]).sum(1)
    rounded = (states.bfloat16() @ weight.T).float()
    logits = rounded.scatter(1, targets[:, None], exact[:, None])
    torch.testing.assert_close(losses, logits.logsumexp(1) - exact, rtol=1e-4, atol=1e-5)
    assert (losses - F.cross_entropy(rounded, targets, reduction="none")).abs().max() > 1e-3
    assert (losses - (rounded.logsumexp(1) - exact)).abs().max() > 1e-3


class _Normalized(tf.LlamaForCausalLM):
    """Returns log-probabilities, so each of its logits depends on all words."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits.log_softmax(-1)
        return output


class _Forbidding(tf.LlamaForCausalLM):
    """Excludes one word, by its index."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits[..., tiny.VOCABULARY - 1] = -1e9
        return output


class _Narrow(tf.LlamaForCausalLM):
    """Drops the last words of its head, as a model with a padded vocabulary does."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits[..., : tiny.VOCABULARY - 1]
        return output


@pytest.mark.parametrize("kind", [_Normalized, _Forbidding, _Narrow])
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_a_model_that_needs_all_words_at_once_is_given_them(
    kind: type[Any], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_at_a_time(monkeypatch)
    monkeypatch.setattr(head, "_LOGITS_ELSEWHERE", 5 * tiny.VOCABULARY)
    torch.manual_seed(0)
    model = kind(tiny.CONFIGS["llama"]()).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    near = 1e-5 if precision is FLOAT32 else 0.1
    torch.testing.assert_close(TokenLosses(model, precision)(IDS), plain(model), rtol=near, atol=near)


def test_a_head_that_is_no_linear_is_run_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_LOGITS_ELSEWHERE", 5 * tiny.VOCABULARY)
    model = tiny.build("llama")
    expected = plain(model)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    torch.testing.assert_close(TokenLosses(model, FLOAT32)(IDS), expected, rtol=1e-5, atol=1e-5)


class _Tuple(tf.LlamaForCausalLM):
    """Returns a tuple instead of Transformers' output object."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (super().forward(*args, **kwargs).logits,)


class _LastAlone(tf.LlamaForCausalLM):
    """Returns the logits of the last token only."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs, logits_to_keep=1)


class _Short(tf.LlamaForCausalLM):
    """Accepts fewer tokens than its configuration says."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] > 8:
            raise IndexError("too many tokens")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (_Tuple, "AttributeError: 'tuple' object has no attribute 'logits'"),
        (_LastAlone, r"ValueError: its logits are of shape \[1, 1, 320\] for \[1, 24\] tokens"),
        (_Short, "IndexError: too many tokens"),
    ],
)
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_a_model_that_gives_no_logits_is_refused_with_what_it_raises(
    kind: type[Any], reason: str, precision: Precision
) -> None:
    losses = TokenLosses(kind(tiny.CONFIGS["llama"]()).eval(), precision)
    with pytest.raises(InputError, match=f"{kind.__name__}: it returns no logits for token ids alone .{reason}"):
        losses(IDS)


@pytest.mark.parametrize("said", ["CUDA error: an illegal memory access", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"])
def test_a_fault_of_a_gpu_is_not_laid_to_the_model(said: str) -> None:
    model = tiny.build("llama")
    losses = TokenLosses(model, FLOAT32)
    model.model.forward = Mock(side_effect=RuntimeError(said))
    with pytest.raises(RuntimeError, match=f"^{said}$"):
        losses(IDS)


def test_what_goes_in_float32_alone_is_said_to_do_so() -> None:
    model = tiny.build("llama")
    model.forward = Mock(side_effect=RuntimeError("mat1 and mat2 must have the same dtype"))
    with pytest.raises(HalfPrecisionError, match="products in bfloat16"):
        TokenLosses(model, BFLOAT16)(IDS)


def test_the_model_is_as_it_was_after_an_error() -> None:
    model = tiny.build("llama")
    losses = TokenLosses(model, FLOAT32)
    losses(IDS)
    model.forward = None  # what runs the head fails
    with pytest.raises(TypeError):
        losses(IDS)
    del model.forward
    assert "forward" not in vars(model.model)
    assert "forward" not in vars(model.lm_head)
