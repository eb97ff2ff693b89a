"""Log-likelihoods are those of the harness's own model class, with less work."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from reprune.doors.zeroshot.tasks import quiet_harness
from reprune.errors import InputError, NumericalError
from reprune.model.block import Precision
from reprune.model.linears import find_linears
from reprune.model.whole import load_model
from tests import tiny

with quiet_harness():
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from reprune.doors.zeroshot import likelihoods as door
    from reprune.doors.zeroshot.likelihoods import Likelihoods

FLOAT32, BFLOAT16 = Precision(torch.float32), Precision(torch.bfloat16)
TEXT = tiny.text(6_000).replace("\n", " ")

_SMALL: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": tiny.POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ODD = {
    "bloom": lambda: tf.BloomConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "granite": lambda: tf.GraniteConfig(**_SMALL, logits_scaling=3.0),
    "cohere": lambda: tf.CohereConfig(**_SMALL, logit_scale=0.3),
    "mixtral": lambda: tf.MixtralConfig(**_SMALL, num_local_experts=4),
    "mamba": lambda: tf.MambaConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8),
    "modernbert-decoder": lambda: tf.ModernBertDecoderConfig(**_SMALL),
}
"""Positions without a table, logits changed after the head, experts, no attention, a head named decoder."""


def build(name: str) -> Any:
    if name not in ODD:
        return tiny.build(name)
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(ODD[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def ask(pairs: list[tuple[str, str]]) -> list[Any]:
    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def pairs() -> list[tuple[str, str]]:
    """All cases: many continuations of one context, of one token or more, with common beginnings or not, repeated."""
    found = [("", "the"), ("", "<s>x"), ("a  ", "b"), (TEXT[:700], " far too long"), (TEXT[:700], " far")]
    for number in range(7):
        context = TEXT[200 * number : 200 * number + 30 + 9 * number]
        found += [(context, each) for each in (" yes", " no and yes", " no and no one", " no", "x", " no and yes")]
        found += [(f"{context} {each}", " then the end.") for each in ("Ann", "the surgeon")]
    return [pair for start in range(3) for pair in found[start::3]]


REQUESTS = ask(pairs())


def plain(model: Any, requests: list[Any] = REQUESTS, **options: Any) -> list[tuple[float, bool]]:
    """The twin: the harness's own class, which runs every request in full, batch by batch."""
    with quiet_harness():
        options = {"batch_size": 5, **options}
        twin = HFLM(model, tokenizer=tiny.tokenizer(), backend="causal", logits_cache=False, **options)
        return list(twin.loglikelihood(requests, disable_tqdm=True))


def ours(model: Any, requests: list[Any] = REQUESTS, precision: Precision = FLOAT32, **options: Any) -> Any:
    class_ = made(model, precision, **options)
    return class_, answered(class_, requests)


def made(model: Any, precision: Precision = FLOAT32, **options: Any) -> Any:
    with quiet_harness():
        return Likelihoods(model, tiny.tokenizer(), precision, **options)


def answered(class_: Any, requests: list[Any]) -> Any:
    with quiet_harness():
        return class_.loglikelihood(requests, disable_tqdm=True)


def same(some: list[tuple[float, bool]], others: list[tuple[float, bool]], tolerance: float = 2e-5) -> None:
    assert [value for value, _ in some] == pytest.approx([value for value, _ in others], abs=tolerance)
    assert [likeliest for _, likeliest in some] == [likeliest for _, likeliest in others]


@pytest.mark.parametrize("name", [*tiny.CONFIGS, *ODD])
def test_they_are_those_of_the_harness(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_BATCH_TOKENS", 150)
    monkeypatch.setattr(door, "_LOGIT_ELEMENTS", 5 * tiny.VOCABULARY)
    model = build(name)
    class_, answers = ours(model)
    assert "forward" not in vars(model.get_decoder()), "the model is left as it was"
    same(answers, plain(model))
    assert (class_._kept_name is None) == (name == "mamba")
    assert class_.cut == 2


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt2"])
def test_they_are_those_of_the_harness_in_large_batches_too(name: str) -> None:
    model = tiny.build(name)
    same(ours(model)[1], plain(model))


@pytest.mark.parametrize("name", ["llama4", "mllama", "modernbert-decoder", "prophetnet"])
def test_a_decoder_is_found_where_transformers_gives_another_module_for_it(name: str) -> None:
    model = build(name)
    requests = [request for request in REQUESTS if len(request.args[0]) < 200]
    class_, answers = ours(model, requests)
    assert (class_._decoder is None) == (name == "prophetnet"), "its forward reads more than the states"
    same(answers, plain(model, requests, batch_size=1))


def test_where_what_follows_changes_a_token_s_state_nothing_follows() -> None:
    model = tiny.build("cpmant")  # zeros mean a mask
    requests = [request for request in REQUESTS if len(request.args[0]) < 100]
    same(ours(model, requests)[1], plain(model, requests, batch_size=1), 5e-5)


def test_the_requests_are_such_that_a_likeliest_token_is_among_them() -> None:
    model = tiny.build("llama")
    best = pairs()[:6]
    ids = [tiny.tokenizer().encode(context or "<s>", add_special_tokens=bool(context)) for context, _ in best]
    with torch.no_grad():
        following = [int(model(torch.tensor([each])).logits[0, -1].argmax()) for each in ids]
    words = [tiny.tokenizer().decode([token]) for token in following]
    requests = ask([(context, word) for (context, _), word in zip(best, words, strict=True)])
    answers = ours(model, requests)[1]
    same(answers, plain(model, requests))
    assert any(likeliest for _, likeliest in answers)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt2"])
def test_bfloat16_products_are_those_of_the_harness_s_mixed_precision(name: str) -> None:
    model = tiny.build(name)
    expected = plain(model, mixed_precision_dtype="bfloat16")
    exact = ours(model)[1]
    dtypes = set()
    model.get_output_embeddings().register_forward_hook(
        lambda _, args, output: dtypes.update((args[0].dtype, output.dtype))
    )
    answers = ours(model, precision=BFLOAT16)[1]
    assert dtypes == {torch.float32}, "the head's products are exact: of two short answers one is likelier"
    near = [value for value, _ in answers]
    assert near == pytest.approx([value for value, _ in expected], rel=0.05, abs=0.3)
    assert near == pytest.approx([value for value, _ in exact], rel=0.05, abs=0.3)
    assert near != pytest.approx([value for value, _ in exact], abs=1e-3)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt2", "modernbert-decoder"])
def test_weights_in_half_precision_give_the_same_bits(name: str, tmp_path: Path) -> None:
    build(name).to(torch.bfloat16).save_pretrained(tmp_path)
    wide, half = (load_model(tmp_path, torch.device("cpu"), precision=held) for held in (FLOAT32, BFLOAT16))
    (whole, expected), (kept, answers) = (ours(model, precision=BFLOAT16) for model in (wide, half))
    assert answers == expected
    assert (kept._pads, kept._kept_name) == (whole._pads, whole._kept_name)
    assert not kept.exact
    assert {linear.parameter.dtype for linear in find_linears(kept._decoder)} == {torch.bfloat16}


def watched(model: Any) -> tuple[list[tuple[int, ...]], list[int]]:
    """For each call, the shape of the decoder's tokens, or the number of positions that the head is applied to."""
    given: list[tuple[int, ...]] = []
    headed: list[int] = []
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings.register_forward_pre_hook(lambda _, args: given.append(tuple(args[0].shape)))
    head.register_forward_hook(lambda _, args, output: headed.append(output.shape[0] * output.shape[1]))
    return given, headed


def test_a_shared_context_is_run_once_and_the_head_is_applied_where_a_continuation_is_predicted() -> None:
    context = TEXT[:60]
    length = len(tiny.tokenizer().encode(context))
    requests = ask([(context, each) for each in (" yes", " no and yes", " no and no one", " no")])
    tails = [len(tiny.tokenizer().encode(context + request.args[1])) - length for request in requests]
    model = tiny.build("llama")
    expected = plain(model, requests)
    class_, _ = ours(model, requests[:2])
    given, headed = watched(model)
    with quiet_harness():
        answers = class_.loglikelihood(requests, disable_tqdm=True)
    same(answers, expected)
    assert given[:2] == [(1, length - 1), (3, max(tails))], "the context but its last token, then three of the four"
    assert len(given) == 2
    assert sum(headed) < sum(tails), "what several are predicted from is predicted once"


def test_continuations_of_one_token_take_one_pass_and_one_position() -> None:
    requests = ask([(TEXT[:60], each) for each in ("x", "y", "z")])
    model = tiny.build("llama")
    class_ = made(model)
    given, headed = watched(model)
    answers = answered(class_, requests)
    assert (given, headed) == ([(1, len(tiny.tokenizer().encode(TEXT[:60])))], [1])
    same(answers, plain(tiny.build("llama"), requests))


def test_contexts_of_like_length_are_run_together_and_padding_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_SMALL_BATCH", 1)
    words = tiny.LICENCE.split()  # how similar lengths are depends on the text
    contexts = [" ".join(words[number % 45 : number % 45 + 3 + number % 9]) for number in range(90)]
    lengths = {context: len(tiny.tokenizer().encode(context)) for context in contexts}
    assert len(lengths) == 45
    model = tiny.build("llama")
    class_ = made(model)
    given, _ = watched(model)
    answered(class_, ask([(context, " and") for context in contexts]))
    assert sum(rows for rows, _ in given) == len(lengths), "equal contexts are one"
    assert len(given) < len(lengths) / 3
    assert sum(lengths.values()) < sum(rows * columns for rows, columns in given) <= 1.1 * sum(lengths.values())


def test_no_batch_is_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_BATCH_TOKENS", 300)
    monkeypatch.setattr(door, "_LOGIT_ELEMENTS", 4 * tiny.VOCABULARY)
    model = tiny.build("llama")
    given, headed = watched(model)
    ours(model)
    assert max(rows * columns for rows, columns in given[3:]) <= 300  # the first is run whole and shared, as a trial
    assert max(headed) <= 4


def test_a_decoder_that_forgets_what_it_kept_is_found_out_and_run_whole() -> None:
    class Forgetful(tf.LlamaModel):
        def forward(self, input_ids: Any = None, cache: Any = None, use_cache: Any = None, **options: Any) -> Any:
            return super().forward(input_ids=input_ids, use_cache=False, **options)

    class Failing(tf.LlamaModel):
        def forward(self, input_ids: Any = None, past_key_values: Any = None, **options: Any) -> Any:
            if past_key_values is not None:
                raise TypeError("takes tuples")
            return super().forward(input_ids=input_ids, use_cache=False)

    for class_ in (Forgetful, Failing):
        model = tiny.build("llama")
        expected = plain(model)
        model.model.__class__ = class_
        found, answers = ours(model)
        same(answers, expected)
        assert found._kept_name is None


@pytest.mark.parametrize("lengths", [(62,), (200, 62), (140, 66, 60), (100, 62)])
def test_texts_beyond_the_border_of_longrope_share_nothing_with_shorter_ones(lengths: tuple[int, ...]) -> None:
    """Keys are turned by the longest text of a batch, those that were kept by the text that was run first."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    sizes = {"max_position_embeddings": 512, "original_max_position_embeddings": 64}
    torch.manual_seed(0)
    config = tf.Phi3Config(**_SMALL | sizes, rope_parameters=rope)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ids = tiny.tokenizer().encode(TEXT)
    contexts = [tiny.tokenizer().decode(ids[:length]) for length in lengths]
    requests = ask([(context, each) for context in contexts for each in (" yes", " no and no one", " no and yes")])
    found, answers = ours(model, requests)
    same(answers, plain(model, requests, batch_size=1))
    assert found._kept_name is not None


def test_answers_do_not_depend_on_the_order_of_requests_or_on_one_another() -> None:
    model = tiny.build("gemma2")
    whole = ours(model)[1]
    backwards = ours(model, REQUESTS[::-1])[1]
    same(backwards[::-1], whole)
    alone = [ours(model, [request])[1][0] for request in REQUESTS[:8]]
    same(alone, whole[:8])


def test_progress_counts_requests_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_BATCH_TOKENS", 200)
    done: list[tuple[int, int]] = []
    ours(tiny.build("llama"), progress=lambda *now: done.append(now))
    assert len(done) > 3
    assert [of for _, of in done] == [len(REQUESTS)] * len(done)
    counts = [count for count, _ in done]
    assert counts == sorted(set(counts))
    assert counts[-1] == len(REQUESTS)


def test_likelihoods_that_are_no_numbers_are_an_error() -> None:
    model = tiny.build("llama")
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(NumericalError, match="log-likelihoods are NaN"):
        ours(model)
    assert "forward" not in vars(model.model)


def test_a_continuation_that_no_model_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"the model takes 1 to {tiny.POSITIONS}"):
        ours(tiny.build("llama"), ask([("a", TEXT[:3000])]))


def test_what_is_cut_is_counted_where_the_harness_runs_the_model_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "find_decoder", lambda *_: None)
    model = tiny.build("llama")
    requests = ask([(TEXT[:700], "x"), (TEXT[:20], "x")])
    done: list[tuple[int, int]] = []
    class_, answers = ours(model, requests, progress=lambda *now: done.append(now))
    assert (class_.exact, class_.cut, done[-1]) == (True, 1, (2, 2))
    same(answers, plain(model, requests, batch_size=1))
    with pytest.raises(InputError, match=f"the model takes 1 to {tiny.POSITIONS}"):
        answered(class_, ask([("a", TEXT[:3000])]))


def test_the_longest_sequence_is_known_where_the_harness_does_not_know_it() -> None:
    config = tf.MptConfig(vocab_size=tiny.VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=32)
    class_, _ = ours(tf.AutoModelForCausalLM.from_config(config).eval(), ask([(TEXT[:200], "x")]))
    assert (class_.max_length, class_.cut) == (32, 1)
    roberta = tf.RobertaConfig(**_SMALL, is_decoder=True)  # its table begins with a row for padding
    assert made(tf.AutoModelForCausalLM.from_config(roberta).eval()).max_length == tiny.POSITIONS - 1
    assert made(tiny.build("xlnet")).max_length == 2048, "the harness's own default, as it has no limit"


def test_tokens_without_a_row_in_the_embedding_are_refused() -> None:
    config = tiny.CONFIGS["llama"]()
    config.vocab_size = 100
    model = tf.AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=r"its tokenizer yields the id \d+, but its embedding has only 100 rows"):
        ours(model, ask([("a", " the")]))


def test_a_tokenizer_that_names_neither_bos_nor_eos_begins_a_text_with_nothing() -> None:
    model = tiny.build("llama")
    nameless = tf.PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer(bos=False).backend_tokenizer)
    named = tf.PreTrainedTokenizerFast(tokenizer_object=nameless.backend_tokenizer, eos_token="</s>")
    requests = [request for request in REQUESTS if request.args[0]]
    with quiet_harness():
        answers, expected = (
            Likelihoods(model, tokenizer, FLOAT32).loglikelihood(requests, disable_tqdm=True)
            for tokenizer in (nameless, named)
        )
        assert answers == expected
        assert Likelihoods(model, named, FLOAT32).prefix_token_id == named.eos_token_id
        with pytest.raises(InputError, match=r"neither a bos_token nor an eos_token, .*; name one in tokenizer_config"):
            Likelihoods(model, nameless, FLOAT32).loglikelihood(ask([("", "the")]), disable_tqdm=True)


class _OfAnotherClass:
    """A tokenizer of neither of Transformers' two classes, like mistral-common's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(tiny.tokenizer(), name)


def test_a_tokenizer_may_be_of_any_class() -> None:
    model = tiny.build("llama")
    with quiet_harness():
        other = Likelihoods(model, _OfAnotherClass(), FLOAT32)
    assert answered(other, REQUESTS) == ours(model)[1]


@pytest.mark.parametrize("more", [0, 1])
def test_a_request_that_just_fits_is_not_cut(more: int) -> None:
    requests = ask([("x" * (tiny.POSITIONS - 1 + more), "x")])  # BOS is added, and the last token is not run
    model = tiny.build("llama")
    class_, answers = ours(model, requests)
    assert class_.cut == more
    same(answers, plain(model, requests))


def test_a_continuation_may_be_as_long_as_the_model_takes() -> None:
    requests = ask([("x", "x" * tiny.POSITIONS)])
    model = tiny.build("llama")
    class_, answers = ours(model, requests)
    assert class_.cut == 1, "of BOS and a token one has room"
    same(answers, plain(model, requests), 1e-4)


def test_no_likelihood_is_asked_of_nothing() -> None:
    assert ours(tiny.build("llama"), [])[1] == []
