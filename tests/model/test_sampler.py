"""Many texts written at a time are those written one by one, drawn from the model's whole distribution."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reprune.errors import InputError, NumericalError
from reprune.model import sampler as module
from reprune.model.block import Precision
from reprune.model.sampler import Choice, Sampler, draw
from tests import tiny

FLOAT32 = Precision(torch.float32)
_STATES: dict[str, Any] = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
OF_STATES = {
    "mamba": lambda: tf.MambaConfig(**_STATES, state_size=4),
    "qwen3_next": lambda: tf.Qwen3NextConfig(
        **_STATES,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
}
"""Models whose caches hold recurrent states instead of keys and values, in all blocks or in some."""
GIVEN = torch.randint(3, tiny.VOCABULARY, (5, 4), generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def plain_logits(model: Any, ids: list[int]) -> Tensor:
    """The slow twin: one text, no cache."""
    return model(torch.tensor([ids])).logits[0, -1].double()


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_greedy_words_are_the_likeliest_one_after_another(name: str) -> None:
    model = tiny.build(name)
    found = Sampler(model, FLOAT32).greedily(GIVEN, 12)  # beyond some models' sliding windows
    for given_, written in zip(GIVEN.tolist(), found.tolist(), strict=True):
        for end, token in enumerate(written):
            assert int(plain_logits(model, given_ + written[:end]).argmax()) == token


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_sampled_words_come_with_their_likelihood_and_end_where_the_text_ends(name: str) -> None:
    _check_sampled(tiny.build(name))


@pytest.mark.parametrize("name", OF_STATES)
def test_rows_that_end_leave_a_cache_of_states_too(name: str) -> None:
    torch.manual_seed(0)
    _check_sampled(tf.AutoModelForCausalLM.from_config(OF_STATES[name]()).float().eval())


@pytest.mark.parametrize("given_", [4, 11], ids=["grown to it", "given"])
def test_a_text_beyond_the_border_of_longrope_goes_on_with_keys_turned_for_long_texts(given_: int) -> None:
    """As plain Transformers computes the whole text; some rows have ended before."""
    config = tiny.CONFIGS["phi3"]()
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    config.rope_parameters = {**rope, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    config.rope_parameters["original_max_position_embeddings"] = config.original_max_position_embeddings = 10
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(20 if parameter.dim() > 1 else 1)
    sampler = Sampler(model, FLOAT32)
    given = torch.randint(3, tiny.VOCABULARY, (5, given_), generator=seeded())
    greedy = sampler.greedily(given, 14)
    for ids, written in zip(given.tolist(), greedy.tolist(), strict=True):
        for end, token in enumerate(written):
            assert int(plain_logits(model, ids + written[:end]).argmax()) == token
    _check_sampled(model)


def _check_sampled(model: Any) -> None:
    ends = set(range(3, 40))
    found = Sampler(model, FLOAT32).sample(GIVEN, 14, Choice(), ends, seeded())
    assert any(one.ended for one in found)
    for given_, one in zip(GIVEN.tolist(), found, strict=True):
        assert not ends & set(one.ids)
        assert one.ended == (len(one.ids) < 14)
        total = 0.0
        for end, token in enumerate(one.ids):
            total += float(plain_logits(model, given_ + list(one.ids[:end])).log_softmax(0)[token])
        assert one.log_probability == pytest.approx(total, rel=1e-4, abs=1e-3)


def test_rows_that_end_leave_the_others_as_they_would_be() -> None:
    """With top_k of 1 the drawn words are the greedy ones, whichever rows leave the batch on the way."""
    model = tiny.build("gemma3")
    sampler = Sampler(model, FLOAT32)
    greedy = sampler.greedily(GIVEN, 20).tolist()
    end = greedy[0][6]
    for row, one in zip(greedy, sampler.sample(GIVEN, 20, Choice(top_k=1), {end}, seeded()), strict=True):
        upto = row.index(end) if end in row else len(row)
        assert (list(one.ids), one.ended) == (row[:upto], end in row)


def test_the_same_seed_writes_the_same_and_another_does_not() -> None:
    sampler = Sampler(tiny.build("llama"), FLOAT32)
    one, again, other = (sampler.sample(GIVEN, 8, Choice(), {2}, seeded(seed)) for seed in (1, 1, 2))
    assert one == again != other


def naive(logits: Tensor, uniform: float) -> int:
    """Add up probabilities, word after word, until they exceed `uniform`."""
    total = 0.0
    for word, probability in enumerate(logits.double().softmax(0).tolist()):
        total += probability
        if total > uniform and probability > 0:
            return word
    raise AssertionError


@given(
    seed=st.integers(0, 2**31),
    words=st.integers(1, 1500),
    uniform=st.floats(0, 1, exclude_max=True),
    sharpness=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_a_draw_inverts_the_distribution(seed: int, words: int, uniform: float, sharpness: float) -> None:
    logits = sharpness * torch.randn(words, generator=seeded(seed))
    (found,), (logarithm,) = draw(logits[None], torch.tensor([uniform], dtype=torch.float64), Choice())
    probabilities = logits.double().softmax(0)
    upto = probabilities.cumsum(0)
    # Rounding may move the boundary between two words, but no further than that.
    low = float(upto[found - 1]) if found else 0.0
    assert low - 1e-5 <= uniform <= float(upto[found]) + 1e-5
    assert float(logarithm) == pytest.approx(float(probabilities[found].log()), abs=1e-5)


@given(uniform=st.sampled_from([0.0, 0.5, 1 - 2**-53]), words=st.sampled_from([1, 511, 512, 513, 2000]))
def test_a_word_without_probability_is_never_drawn(uniform: float, words: int) -> None:
    logits = torch.full((words,), -torch.inf)
    logits[words // 2] = 0.0
    (found,), (logarithm,) = draw(logits[None], torch.tensor([uniform], dtype=torch.float64), Choice())
    assert (int(found), float(logarithm)) == (words // 2, 0.0)


def test_words_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.randn(700, generator=seeded()) * 2
    uniform = torch.rand(40_000, generator=seeded(1), dtype=torch.float64)
    found, _ = draw(logits.expand(len(uniform), -1), uniform, Choice())
    expected = logits.double().softmax(0) * len(uniform)
    counts = torch.bincount(found, minlength=700)
    often = expected > 20
    deviation = (counts[often] - expected[often]) / expected[often].sqrt()
    assert float(deviation.square().mean()) == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize(
    ("choice", "allowed"),
    [
        (Choice(top_k=3), {0, 1, 2}),
        (Choice(top_p=0.6), {0, 1}),
        (Choice(temperature=0.01), {0}),
        (Choice(temperature=1e-320), {0}),
        (Choice(temperature=5.0, top_k=4), {0, 1, 2, 3}),
    ],
)
def test_only_what_a_choice_leaves_is_drawn(choice: Choice, allowed: set[int]) -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03]).log()
    uniform = torch.linspace(0, 1 - 1e-9, 500, dtype=torch.float64)
    found, logarithms = draw(logits.expand(500, -1), uniform, choice)
    assert set(found.tolist()) == allowed
    torch.testing.assert_close(logarithms, logits.double()[found]), "the likelihood is that of the whole distribution"


def test_few_rows_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(tiny.build("llama"), FLOAT32)
    whole = sampler.sample(GIVEN, 8, Choice(), {2}, seeded()), sampler.greedily(GIVEN, 3).tolist()
    monkeypatch.setattr(module, "_LOGITS", 2 * tiny.VOCABULARY)
    assert (sampler.sample(GIVEN, 8, Choice(), {2}, seeded()), sampler.greedily(GIVEN, 3).tolist()) == whole


def test_a_model_whose_configuration_says_to_keep_no_cache_writes_with_one() -> None:
    """As trainers that checkpoint gradients save it."""
    model = tiny.build("llama")
    expected = Sampler(model, FLOAT32).greedily(GIVEN, 3)
    model.config.use_cache = False
    assert torch.equal(Sampler(model, FLOAT32).greedily(GIVEN, 3), expected)


def test_a_model_without_a_cache_is_refused() -> None:
    model = tiny.build("llama")
    model.forward = lambda input_ids: None
    with pytest.raises(InputError, match="has no cache of keys and values"):
        Sampler(model, FLOAT32)


def test_a_fault_of_a_gpu_is_not_laid_to_the_cache() -> None:
    model = tiny.build("llama")
    model.model.forward = Mock(side_effect=RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        Sampler(model, FLOAT32)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("prophetnet", r"next tokens are \d\d% off"), ("cpmant", "RuntimeError: The size of tensor")],
)
def test_a_model_whose_cache_gives_other_words_or_none_is_refused(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"does not write the same with its cache.*\({reason}.*--endpoint"):
        Sampler(tiny.build(name), FLOAT32)


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        Sampler(model, FLOAT32).greedily(GIVEN, 2)
