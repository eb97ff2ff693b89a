"""A survey names what would be pruned of a model, and everything that prevents it, with remedies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import transformers as tf

from reprune.errors import InputError, UnsupportedModelError
from reprune.math.patterns import NM, Unstructured
from reprune.model.decoder import Decoder
from reprune.planning.choice import Choice, fits
from reprune.planning.sparsities import Sparsities
from reprune.planning.survey import Survey, survey

from .. import odd, tiny

_LLAMA = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_GROUPS = dict.fromkeys(tiny.CONFIGS, _LLAMA) | {
    "opt": (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ),
    "phi3": (("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)),
    "gpt_neox": (
        ("attention.query_key_value",),
        ("attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ),
    "gpt2": (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
}
_HALF = Sparsities(Unstructured(0.5))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return Decoder(tiny.save("llama", tmp_path_factory.mktemp("llama")))


def _mixtral(folder: Path, **options: bool) -> Path:
    config = tf.MixtralConfig(**tiny._GROUPED, num_local_experts=2, num_experts_per_tok=1)
    torch.manual_seed(0)
    tf.MixtralForCausalLM(config).save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("name", list(tiny.CONFIGS))
def test_the_groups_of_an_architecture_are_the_linears_that_share_their_inputs(name: str, tmp_path: Path) -> None:
    decoder = Decoder(tiny.save(name, tmp_path))
    found = survey(decoder, _HALF, Choice())
    found.check()
    assert found.refusals == ()
    assert [block.index for block in found.blocks] == [0, 1, 2]
    for block in found.blocks:
        assert block.groups == _GROUPS[name]
        assert block.dense == ()
        assert block.others == {}
        modules = decoder.skeleton.blocks[block.index]
        for linear, (rows, columns) in block.shapes.items():
            weight = modules.get_submodule(linear).weight
            assert tuple(weight.shape) == ((columns, rows) if name == "gpt2" else (rows, columns))


def test_the_weights_to_be_pruned_are_counted(llama: Decoder) -> None:
    per_block = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64
    assert survey(llama, _HALF, Choice()).pruned_weights == 3 * per_block
    assert survey(llama, _HALF, Choice(exclude=("down_proj",))).pruned_weights == 3 * (per_block - 32 * 64)


def test_blocks_that_write_into_the_states_that_they_are_given_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="block 0 writes into the hidden states that it is given"):
        survey(Decoder(odd.save("in place", tmp_path)), _HALF, Choice())


@pytest.mark.parametrize(
    ("exclude", "groups", "dense"),
    [
        (["down_proj"], _LLAMA[:3], ("mlp.down_proj",)),
        (["mlp.down_proj"], _LLAMA[:3], ("mlp.down_proj",)),
        (["mlp.*"], _LLAMA[:2], ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")),
        (
            ["?_proj"],
            _LLAMA[2:],
            ("self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"),
        ),
        (["k_proj"], (("self_attn.q_proj", "self_attn.v_proj"), *_LLAMA[1:]), ("self_attn.k_proj",)),
        (["[kv]_proj", "o_proj"], (("self_attn.q_proj",), *_LLAMA[2:]), None),
    ],
)
def test_what_is_excluded_stays_dense(
    exclude: list[str], groups: tuple[tuple[str, ...], ...], dense: tuple[str, ...] | None, llama: Decoder
) -> None:
    found = survey(llama, _HALF, Choice(exclude=tuple(exclude)))
    assert found.refusals == ()
    for block in found.blocks:
        assert block.groups == groups
        assert dense is None or block.dense == dense


@pytest.mark.parametrize(
    ("name", "patterns", "expected"),
    [
        ("mlp.down_proj", ["down_proj"], True),
        ("mlp.down_proj", ["mlp.down_proj"], True),
        ("mlp.down_proj", ["*proj"], True),
        ("mlp.down_proj", ["mlp"], False),
        ("mlp.down_proj", ["Down_proj"], False),
        ("mlp.down_proj", ["down"], False),
        ("mlp.down_proj", [], False),
        ("mlp.down_proj", ["up_proj", "down_*"], True),
        ("fc1", ["fc?"], True),
        ("mlp.experts.up_proj.7", ["up_proj"], True),
        ("mlp.experts.up_proj.7", ["up_proj.7"], False),
        ("mlp.experts.up_proj.7", ["*.up_proj.7"], True),
        ("mlp.experts.up_proj.7", ["*.up_proj.17"], False),
    ],
)
def test_a_pattern_fits_a_whole_name_or_its_last_part(name: str, patterns: list[str], expected: bool) -> None:
    assert any(fits(name, pattern) for pattern in patterns) == expected
    assert Choice(exclude=tuple(patterns)).leaves_dense(3, name) == expected
    assert Choice(include=tuple(patterns)).leaves_dense(3, name) == (bool(patterns) and not expected)


def test_a_pattern_may_begin_with_a_blocks_number() -> None:
    choice = Choice(include=("*proj",), exclude=("1.mlp.*", "2.*"))
    assert not choice.leaves_dense(0, "mlp.up_proj")
    assert choice.leaves_dense(1, "mlp.up_proj")
    assert not choice.leaves_dense(1, "self_attn.q_proj")
    assert choice.leaves_dense(2, "self_attn.q_proj")
    assert choice.leaves_dense(0, "fc1"), "it is not among those that are included"
    experts = Choice(exclude=("1.mlp.experts.up_proj",))
    assert experts.leaves_dense(1, "mlp.experts.up_proj.7"), "as without the number of the block"
    assert not experts.leaves_dense(0, "mlp.experts.up_proj.7")


def test_some_linears_have_a_pattern_of_their_own(llama: Decoder) -> None:
    sparsities = Sparsities(Unstructured(0.5), {"0.*": NM(2, 4), "down_proj": Unstructured(0.3)})
    assert sparsities.of(0, "mlp.down_proj") == NM(2, 4)
    assert sparsities.of(1, "mlp.down_proj") == Unstructured(0.3)
    assert sparsities.of(1, "mlp.up_proj") == Unstructured(0.5)
    shared = sparsities.allocated([0.6, 0.4])
    assert shared.of(1, "mlp.up_proj") == Unstructured(0.4)
    assert shared.of(1, "mlp.down_proj") == Unstructured(0.3)
    survey(llama, sparsities, Choice()).check()
    with pytest.raises(InputError, match="sparsity_by_name: 'upp' matches no matrix"):
        survey(llama, Sparsities(Unstructured(0.5), {"upp": NM(2, 4)}), Choice())
    refusals = survey(llama, Sparsities(Unstructured(0.5), {"1.*": NM(3, 64)}), Choice()).refusals
    assert len(refusals) == 6
    assert all(refusal.startswith("block 1: ") for refusal in refusals)


@pytest.mark.parametrize("name", list(tiny.CONFIGS))
def test_attention_and_mlp_share_out_the_linears_of_every_architecture(name: str, tmp_path: Path) -> None:
    decoder = Decoder(tiny.save(name, tmp_path))
    attention = survey(decoder, _HALF, Choice("attention")).blocks[0].groups
    assert attention == _GROUPS[name][:2]
    assert survey(decoder, _HALF, Choice("mlp")).blocks[0].groups == _GROUPS[name][2:]


@pytest.mark.parametrize("exclude", [["dwn_proj"], ["mlp.*", "lm_head"], [""]])
def test_an_exclusion_that_fits_nothing_is_refused_with_what_there_is(exclude: list[str], llama: Decoder) -> None:
    with pytest.raises(InputError, match=rf"exclude: '{exclude[-1]}' matches no matrix .*mlp\.down_proj"):
        survey(llama, _HALF, Choice(exclude=tuple(exclude)))


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("lm_head", ": what is outside the blocks stays dense anyway; the matrices"),
        ("model.embed_tokens", ": what is outside the blocks stays dense anyway; the matrices"),
        ("model.layers.0.mlp.down_proj", ": give it with the block's number, '0.mlp.down_proj'; the matrices"),
        ("model.layers.*.mlp.*", r": give it with the block's number, '\*\.mlp\.\*'; the matrices"),
        ("model.layers.9.mlp.down_proj", "; the matrices"),
        ("model", "; the matrices"),
    ],
)
def test_a_name_in_the_whole_model_is_known_for_what_it_is(pattern: str, hint: str, llama: Decoder) -> None:
    with pytest.raises(InputError, match=rf"matches no matrix of a block{hint} are mlp\.down_proj"):
        survey(llama, _HALF, Choice(exclude=(pattern,)))


def test_an_exclusion_of_everything_is_refused(llama: Decoder) -> None:
    with pytest.raises(InputError, match="no linear is left to prune in any block"):
        survey(llama, _HALF, Choice(exclude=("*",)))


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(4, 8), NM(1, 16), NM(3, 32)], ids=str)
def test_patterns_that_divide_every_width_are_fine(pattern: NM, llama: Decoder) -> None:
    assert survey(llama, Sparsities(pattern), Choice()).refusals == ()


def test_widths_that_a_pattern_does_not_divide_are_refused_by_name(llama: Decoder) -> None:
    found = survey(llama, Sparsities(NM(3, 5)), Choice())
    assert len(found.refusals) == 7
    for name in (name for group in _LLAMA for name in group):
        (refusal,) = [line for line in found.refusals if f" {name}: " in line]
        assert refusal.startswith("blocks 0-2: ")
        assert "3:5" in refusal
    with pytest.raises(
        UnsupportedModelError,
        match=r"mlp\.down_proj: the pattern 3:5 needs a multiple of 5 input columns, but this matrix has 64",
    ):
        found.check()


def test_a_width_that_is_not_divided_may_be_left_dense(llama: Decoder) -> None:
    assert len(survey(llama, Sparsities(NM(3, 64)), Choice()).refusals) == 6  # all but mlp.down_proj with 64 inputs
    left = survey(llama, Sparsities(NM(3, 64)), Choice(exclude=("self_attn.*", "gate_proj", "up_proj")))
    assert left.refusals == ()
    assert left.blocks[0].groups == (("mlp.down_proj",),)


def test_a_matrix_of_no_linear_is_refused_by_name_unless_excluded(tmp_path: Path) -> None:
    decoder = Decoder(odd.save("stray matrix", tmp_path))
    found = survey(decoder, _HALF, Choice())
    (refusal,) = found.refusals
    assert refusal.startswith("blocks 0-2: the matrix mixer [16, 16] is not the weight of a linear")
    assert "20% of the block" in refusal
    assert "exclude" in refusal
    assert found.blocks[0].others == {"mixer": (16, 16)}
    with pytest.raises(UnsupportedModelError, match="mixer"):
        found.check()
    left = survey(decoder, _HALF, Choice(exclude=("mixer",)))
    left.check()
    assert left.blocks[0].others == {}
    assert left.blocks[0].groups == (("up",), ("down",))


def test_a_linear_that_never_runs_stays_dense_and_is_named(tmp_path: Path) -> None:
    found = survey(Decoder(odd.save("idle linear", tmp_path)), _HALF, Choice())
    found.check()
    for block in found.blocks:
        assert block.idle == ("idle",)
        assert block.read == ()
        assert block.groups == (("up",), ("down",))


def test_blocks_most_of_whose_linears_never_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(odd.save("idle linear", tmp_path))
    monkeypatch.setattr("reprune.planning.survey._IDLE", 0.1)
    with pytest.raises(UnsupportedModelError, match="blocks 0-2: the linear idle never runs"):
        survey(decoder, _HALF, Choice()).check()
    survey(decoder, _HALF, Choice(exclude=("idle",))).check()


def test_linears_whose_weights_are_used_otherwise_are_refused_where_they_are_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(odd.save("joined", tmp_path))
    with pytest.raises(UnsupportedModelError, match=r"blocks 0-2: the weight of the linear gate is used, .* 17% of"):
        survey(decoder, _HALF, Choice()).check()
    survey(decoder, _HALF, Choice(exclude=("gate", "value"))).check()
    monkeypatch.setattr("reprune.planning.survey._LARGE", 0.2)
    found = survey(decoder, _HALF, Choice())
    found.check()
    assert found.blocks[0].idle == found.blocks[0].read == ("gate", "value")
    assert found.blocks[0].groups == (("up",), ("down",))
    monkeypatch.setattr("reprune.planning.survey._IDLE", 0.3)
    refusals = survey(decoder, _HALF, Choice()).refusals
    assert [refusal.partition(" is used, ")[0].split()[-1] for refusal in refusals] == ["gate", "value"]
    assert all("and all that do not run are 33% of the block" in refusal for refusal in refusals)
    survey(decoder, _HALF, Choice(exclude=("gate",))).check()


@pytest.mark.parametrize("original", [True, False])
def test_the_experts_of_a_mixture_are_surveyed_one_by_one_however_they_are_stored(
    original: bool, tmp_path: Path
) -> None:
    found = survey(Decoder(_mixtral(tmp_path, save_original_format=original)), _HALF, Choice())
    found.check()
    for block in found.blocks:
        experts = [group for group in block.groups if "experts" in group[0]]
        assert experts == [
            (f"mlp.experts.{name}.{number}",) for name in ("gate_up_proj", "down_proj") for number in range(2)
        ]
        assert block.shapes["mlp.experts.gate_up_proj.1"] == (128, 32)
        assert block.experts == dict.fromkeys((name for group in experts for name in group), 0.5)
        assert block.others == {"mlp.gate.weight": (2, 32)}


def test_the_attention_of_a_mixture_is_pruned_when_its_experts_are_left_dense(tmp_path: Path) -> None:
    decoder = Decoder(_mixtral(tmp_path))
    found = survey(decoder, _HALF, Choice(exclude=("mlp.*",)))
    found.check()
    names = {name for group in _LLAMA[:2] for name in group}
    assert {name for group in found.blocks[0].groups for name in group} == names


def test_a_survey_without_refusals_passes_its_check() -> None:
    Survey((), (), ()).check()
    with pytest.raises(UnsupportedModelError, match="one\ntwo"):
        Survey((), ("one", "two"), ()).check()


def _failing(error: Exception) -> Callable[..., NoReturn]:
    def call(*_: object) -> NoReturn:
        raise error

    return call


def test_a_block_that_does_not_run_without_weights_has_its_linears_one_by_one(
    llama: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.weightless, "groups", _failing(RuntimeError("no such kernel")))
    found = survey(llama, _HALF, Choice())
    assert found.refusals == ()
    for block in found.blocks:
        assert not block.groups_known
        assert block.groups == tuple((name,) for name in block.shapes)
        assert block.idle == ()


def test_a_block_whose_products_cannot_be_seen_is_refused(llama: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.weightless, "stacks", _failing(ValueError("no\nnumber")))
    with pytest.raises(UnsupportedModelError) as refused:
        survey(llama, _HALF, Choice()).check()
    assert (
        str(refused.value) == "blocks 0-2: the matrices that it multiplies by cannot be found (ValueError: no number)"
    )


@pytest.mark.parametrize("asked", ["stacks", "groups"])
def test_what_a_block_is_refused_for_by_name_is_said_as_it_is(
    asked: str, llama: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.weightless, asked, _failing(UnsupportedModelError("it writes")))
    with pytest.raises(UnsupportedModelError, match=r"^it writes$"):
        survey(llama, _HALF, Choice())


def test_a_pattern_that_does_not_divide_experts_is_refused_once_for_all_of_them(tmp_path: Path) -> None:
    refusals = survey(Decoder(_mixtral(tmp_path)), Sparsities(NM(2, 7)), Choice()).refusals
    experts = [refusal for refusal in refusals if "experts" in refusal]
    assert [refusal.split(": the pattern")[0] for refusal in experts] == [
        f"blocks 0-2: mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")
    ]
    assert "'exclude=[\"down_proj\"]'" in experts[1]


@pytest.mark.parametrize(
    ("name", "remedy"), [("mamba", "dt_proj"), ("jetmoe", "mlp.input_linear.weight"), ("by number", "mlp.2")]
)
def test_what_such_a_refusal_says_to_leave_out_is_what_it_names(name: str, remedy: str, tmp_path: Path) -> None:
    """Mamba uses the weight of a linear without calling it; JetMoE's experts are parameters named `weight`.

    Linears in a list have numbers in their names, like experts, but the numbers belong to their names.
    """
    if name == "mamba":
        config = tf.MambaConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=1, state_size=4)
        tf.MambaForCausalLM(config).save_pretrained(tmp_path)
    elif name == "by number":
        odd.save("by number", tmp_path)
    else:
        tiny.save(name, tmp_path)
    decoder, pattern = Decoder(tmp_path), Sparsities(NM(1, 7))
    refusals = survey(decoder, pattern, Choice()).refusals
    assert any(f"'exclude=[\"{remedy}\"]'" in refusal for refusal in refusals)
    left = survey(decoder, pattern, Choice(exclude=(remedy,))).refusals
    assert len(left) == len(refusals) - 1


def test_a_sparsity_by_name_that_decides_nothing_is_told(llama: Decoder) -> None:
    def notes(*names: str, only: str = "all", exclude: tuple[str, ...] = ()) -> list[str]:
        by_name = {name: Unstructured(0.7) for name in names}
        choice = Choice("attention" if only == "attention" else "all", exclude=exclude)
        found = survey(llama, Sparsities(Unstructured(0.5), by_name), choice).notes
        return [note.split("'")[1] for note in found]

    assert notes("mlp.*", "q_proj", "1.*") == []
    assert notes("mlp.*", "q_proj", only="attention") == ["mlp.*"]
    assert notes("0.*", "q_proj", exclude=("0.*",)) == ["0.*"]
    assert notes("self_attn.*", "q_proj") == ["q_proj"], "the first name that fits decides"
