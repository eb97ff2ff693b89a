"""Mixtures are pruned expert by expert, by the tokens that are routed to each, and saved in their original form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PhimoeConfig

import reprune
from reprune.engine import group_statistics
from reprune.engine.frontier import Frontier
from reprune.errors import InputError
from reprune.math.patterns import NM
from reprune.model.decoder import Decoder
from tests import tiny
from tests.engine.conftest import Once
from tests.engine.quick import prune, tensors


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("mixtral", tmp_path_factory.mktemp("models") / "mixtral")


@pytest.mark.parametrize("name", tiny.MIXTURES)
def test_every_mixture_is_pruned_from_disk_to_disk(name: str, tmp_path: Path) -> None:
    model = tiny.save(name, tmp_path / "model")
    record = prune(model, tmp_path / "out", "pruner.min_tokens=4", reconstruct="BR+GP+CR")
    by_wanda = prune(model, tmp_path / "wanda", "pruner.min_tokens=4", pruner="wanda", sparsity="2:4", reconstruct="LR")
    fitted = [window["calibration_error"] for window in record["windows"] if window["kept_epoch"]]
    assert fitted
    assert all(error["after"] < error["before"] for error in fitted)
    _check_mixture(model, tmp_path / "out", record)
    _check_mixture(model, tmp_path / "wanda", by_wanda, NM(2, 4))


def _check_mixture(model: Path, out: Path, record: dict[str, Any], pattern: NM | None = None) -> None:
    dense, sparse = tensors(model), tensors(out)
    assert {key: (t.shape, t.dtype) for key, t in dense.items()} == {
        key: (t.shape, t.dtype) for key, t in sparse.items()
    }
    for block in record["blocks"]:
        for matrix in block["matrices"]:
            assert matrix["sparsity"] == pytest.approx(0.5, abs=0.03), matrix["name"]
    last = record["blocks"][-1]["matrices"]
    experts = [matrix for matrix in last if "tokens" in matrix]
    assert len(experts) >= 8
    assert reprune.verify(out).passed
    decoder = Decoder(out)
    block = decoder.load(len(decoder) - 1)
    for router in block.routers:
        weight = block.module.get_submodule(router).get_parameter("weight")
        assert (weight != 0).all(), "routers are not pruned"
    if pattern is not None:
        assert all(pattern.allows(one.matrix() != 0) for one in block.linears if one.name not in block.routers)
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.isfinite(loaded(torch.arange(3, 20).view(1, -1)).logits).all()


def test_the_record_says_how_many_tokens_reached_each_expert(mixtral: Path, tmp_path: Path) -> None:
    record = prune(mixtral, tmp_path / "out", pruner="wanda", reconstruct="LR")
    for block in record["blocks"]:
        for parameter in ("gate_up_proj", "down_proj"):
            reached = [one["tokens"] for one in block["matrices"] if one["name"].startswith(f"mlp.experts.{parameter}")]
            assert len(reached) == 4
            assert sum(reached) == 2 * 8 * 24, "each token passes through two"
        assert not any("tokens" in one for one in block["matrices"] if "experts" not in one["name"])


def test_an_expert_that_too_few_tokens_reach_is_pruned_by_magnitude_and_named(mixtral: Path, tmp_path: Path) -> None:
    record = prune(mixtral, tmp_path / "out", "pruner.min_tokens=100000", pruner="wanda", reconstruct="LR")
    notes = [note for window in record["windows"] for note in window["notes"]]
    assert any(
        "4 of 4 experts of mlp.experts.down_proj were reached by fewer than 100000 tokens and are pruned by magnitude"
        in note
        for note in notes
    )
    by_magnitude = prune(mixtral, tmp_path / "magnitude", pruner="magnitude", reconstruct="LR")
    assert not [note for window in by_magnitude["windows"] for note in window["notes"] if "magnitude" not in note]
    one, other = tensors(tmp_path / "out"), tensors(tmp_path / "magnitude")
    experts = [key for key in one if ".experts." in key]
    assert experts
    assert all(torch.equal(one[key], other[key]) for key in experts)
    assert not all(torch.equal(one[key], other[key]) for key in one if "self_attn" in key)


def test_experts_whose_statistics_do_not_fit_at_once_are_pruned_as_those_that_do(
    mixtral: Path, once: Once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, at_once = once(mixtral, reconstruct="LR")
    monkeypatch.setattr(group_statistics, "AT_ONCE", 4 * 64**2)
    prune(mixtral, tmp_path / "often", reconstruct="LR")
    one, other = tensors(at_once), tensors(tmp_path / "often")
    assert all(torch.equal(one[key], other[key]) for key in one)


class Stopper(reprune.Watcher):
    """Ends a run after its second window."""

    done = 0

    def window_done(self, window: Any, record: Any) -> None:
        self.done += 1
        if self.done == 2:
            raise KeyboardInterrupt


def test_a_run_that_goes_on_keeps_what_it_knew_of_experts(mixtral: Path, once: Once, tmp_path: Path) -> None:
    whole, _ = once(mixtral, reconstruct="BR+GP+CR")
    with pytest.raises(KeyboardInterrupt):
        prune(mixtral, tmp_path / "broken", reconstruct="BR+GP+CR", watcher=Stopper())
    assert reprune.resume(tmp_path / "broken")["blocks"] == whole["blocks"]


@pytest.mark.parametrize("rung", ["BR+GP", "BR+GP+CR"])
def test_tokens_may_be_fitted_with_the_experts_that_the_dense_model_chooses(
    mixtral: Path, rung: str, once: Once, tmp_path: Path
) -> None:
    own, _ = once(mixtral, reconstruct=rung)
    dense = prune(mixtral, tmp_path / "teacher", "solver.routing=teacher", reconstruct=rung)
    assert own["blocks"][0]["calibration_error"] != dense["blocks"][0]["calibration_error"]
    plain, _ = once(mixtral, reconstruct="LR")
    assert dense["blocks"][-1]["calibration_error"] < plain["blocks"][-1]["calibration_error"]


def test_a_run_that_goes_on_finds_the_experts_of_a_block_left_dense_in_the_dense_model(
    mixtral: Path, tmp_path: Path
) -> None:
    """Windows of two fit the dense block both before the run is interrupted and after."""
    options = {"reconstruct": "BR+GP+CR", "exclude": ["1.*"], "lr": 1e-2}
    prune(mixtral, tmp_path / "whole", "solver.routing=teacher", "guard=off", **options)
    with pytest.raises(KeyboardInterrupt):
        prune(mixtral, tmp_path / "broken", "solver.routing=teacher", "guard=off", watcher=Stopper(), **options)
    reprune.resume(tmp_path / "broken")
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "broken")
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("rung", ["BR+GP", "BR+GP+CR"])
def test_where_experts_are_not_chosen_by_topk_each_model_chooses_its_own_and_notes_say_so(
    rung: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_local_experts": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"vocab_size": tiny.VOCABULARY, "max_position_embeddings": tiny.POSITIONS, "bos_token_id": 1}
    monkeypatch.setitem(
        tiny.MIXTURES, "phimoe", lambda: PhimoeConfig(**sizes, **heads, **tokens, eos_token_id=2, pad_token_id=0)
    )
    model = tiny.save("phimoe", tmp_path / "model")
    records = [
        prune(model, tmp_path / routing, f"solver.routing={routing}", reconstruct=rung)
        for routing in ("student", "teacher")
    ]
    assert records[0]["blocks"] == records[1]["blocks"]
    notes = [[note for window in record["windows"] for note in window["notes"]] for record in records]
    effect = "solver.routing teacher has no effect, as its experts are not chosen by topk"
    assert [note for note in notes[1] if note not in notes[0]] == [f"block {index}: {effect}" for index in range(3)]


def test_where_nothing_is_fitted_the_dense_models_choices_of_experts_are_not_asked_for(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Frontier, "routes", None)
    prune(mixtral, tmp_path / "out", "solver.routing=teacher", "teacher=global", reconstruct="LR")


def test_a_local_teacher_has_no_routes_to_give(mixtral: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"solver\.routing teacher"):
        prune(mixtral, tmp_path / "out", "solver.routing=teacher", reconstruct="BR")


def test_least_squares_fits_what_all_tokens_pass_and_says_that_experts_are_left(mixtral: Path, tmp_path: Path) -> None:
    record = prune(mixtral, tmp_path / "out", "solver.start=least-squares", reconstruct="LR")
    fitted = [one["linears"] for window in record["windows"] for one in window["least_squares"]]
    assert ["self_attn.o_proj"] in fitted
    assert not any("experts" in name for names in fitted for name in names)
    notes = [note for window in record["windows"] for note in window["notes"]]
    assert sum("not fitted by least squares: each expert reads tokens of its own" in note for note in notes) == 2 * 3


def test_an_expert_that_stays_dense_is_fitted_beside_those_that_are_pruned(mixtral: Path, tmp_path: Path) -> None:
    """All experts of a block are one parameter, of which masks hold only the weights of those that are pruned."""
    prune(mixtral, tmp_path / "out", "exclude=[mlp.experts.down_proj.3]", "guard=off", reconstruct="BR+GP")
    dense, sparse = tensors(mixtral), tensors(tmp_path / "out")
    for key in (key for key in dense if key.endswith(".w2.weight")):
        zeros = int((sparse[key] == 0).sum())
        assert zeros == (0 if ".experts.3." in key else sparse[key].numel() // 2)
        assert not torch.equal(sparse[key], dense[key])


def test_low_rank_updates_reach_experts(mixtral: Path, once: Once, tmp_path: Path) -> None:
    plain, _ = once(mixtral, reconstruct="LR")
    record = prune(mixtral, tmp_path / "out", "solver.rank=4", reconstruct="BR+GP", epochs=4)
    assert record["blocks"][-1]["calibration_error"] < plain["blocks"][-1]["calibration_error"]
    assert reprune.verify(tmp_path / "out").passed


def test_plan_shows_experts_in_one_row_and_their_share_of_the_tokens(mixtral: Path, tmp_path: Path) -> None:
    from reprune.doors.command.views import _alike

    planned = reprune.plan(mixtral, samples=8, seqlen=24, calibration="manual")
    rows = {name: shapes for _, name, shapes in _alike(planned)}
    assert rows["mlp.experts.gate_up_proj.*"] == "4 experts: 128 x 32, about 96 tokens each"
    assert rows["mlp.gate.weight (no linear)"] == "4 x 32"
    assert planned.forecast.seconds > 0
    assert json.dumps(vars(planned.forecast))
