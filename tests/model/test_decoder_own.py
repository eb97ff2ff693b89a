"""A user's own decoders, and unusual ones, are streamed, or refused if they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor

from reprune.errors import UnsupportedModelError
from reprune.model.decoder import Decoder
from reprune.model.whole import load_model

from .. import odd, tiny
from .conftest import assert_same_states, embedded, states_of, streamed
from .test_decoder import _names


@pytest.mark.parametrize(
    "quirk",
    [
        "",
        "tuples",
        "of a class",
        "keywords",
        "block buffer",
        "outer buffer",
        "likely name",
        "by weights",
        "by weights, by values",
        "shared linear",
        "side list",
        "idle linear",
        "joined",
        "beside, of no use",
        "looked at",
        "where a weight is",
        "where a weight is, by name",
    ],
)
def test_a_decoder_of_ones_own_is_streamed(quirk: odd.Quirk, tmp_path: Path, ids: Tensor) -> None:
    decoder = Decoder(odd.save(quirk, tmp_path))
    assert_same_states(streamed(decoder, ids, 3), states_of(odd.build(quirk), "model.layers", ids))


def test_a_linear_that_runs_twice_is_a_group_of_its_own_and_one_that_never_runs_is_in_none(
    tmp_path: Path,
) -> None:
    twice = Decoder(odd.save("shared linear", tmp_path / "twice"))
    assert sorted(_names(twice.weightless.groups(0))) == [("down",), ("up",)]
    idle = Decoder(odd.save("idle linear", tmp_path / "idle"))
    assert _names(idle.weightless.groups(0)) == [("up",), ("down",)]


@pytest.mark.parametrize("quirk", ["by weights", "by weights, by values"])
def test_linears_whose_weights_are_multiplied_by_without_their_modules_are_found(
    quirk: odd.Quirk, tmp_path: Path
) -> None:
    decoder = Decoder(odd.save(quirk, tmp_path))
    groups = decoder.weightless.groups(0)
    assert _names(groups) == [("up",), ("down",)]
    assert not any(group.expert for group in groups)
    assert [linear.name for linear in decoder.load(0).linears] == ["up", "down"]


def test_blocks_that_run_their_linears_are_not_run_again_to_see_what_they_multiply_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_stacks(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("reprune.model.weightless.find_stacks", find_stacks)
    assert _names(Decoder(odd.save("", tmp_path)).weightless.groups(0)) == [("up",), ("down",)]


def test_bert_is_streamed_where_it_is_a_decoder_and_refused_where_it_sees_what_comes(
    tmp_path: Path, ids: Tensor
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = tf.BertLMHeadModel(tf.BertConfig(vocab_size=tiny.VOCABULARY, is_decoder=True, **sizes)).eval()
    model.save_pretrained(tmp_path)
    decoder = Decoder(tmp_path)
    assert decoder.skeleton.blocks_path == "bert.encoder.layer"
    assert_same_states(streamed(decoder, ids, 3), states_of(model, "bert.encoder.layer", ids))
    model.config.is_decoder = False
    model.config.save_pretrained(tmp_path)
    for opened in (Decoder, lambda folder: load_model(folder, torch.device("cpu"))):
        with pytest.raises(UnsupportedModelError, match="attends to later tokens"):
            opened(tmp_path)


def test_a_model_whose_first_weights_are_no_text_model_s_is_streamed_too(tmp_path: Path, ids: Tensor) -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = tf.Idefics3Config(
        text_config=tiny.CONFIGS["llama"]().to_dict(), vision_config=vision | {"image_size": 28, "patch_size": 14}
    )
    torch.manual_seed(0)
    model = tf.Idefics3ForConditionalGeneration(config).eval()  # moves embeddings to the device of these weights
    model.save_pretrained(tmp_path)
    decoder = Decoder(tmp_path)
    assert decoder.skeleton.blocks_path == "model.text_model.layers"
    assert_same_states(streamed(decoder, ids, 3), states_of(model, decoder.skeleton.blocks_path, ids))


@pytest.mark.parametrize(
    ("quirk", "reason"),
    [
        ("between", "changes the hidden states between block 0 and block 1"),
        ("backwards", "block 2 is called where block 0 was expected"),
        ("again", "its 3 blocks at model.layers run 4 times in all"),
    ],
)
def test_blocks_that_do_not_run_once_each_in_order_are_refused(
    quirk: odd.Quirk, reason: str, tmp_path: Path, ids: Tensor
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"OddModel: .*{reason}"):
        decoder = Decoder(odd.save(quirk, tmp_path))
        embedded(decoder, ids)
