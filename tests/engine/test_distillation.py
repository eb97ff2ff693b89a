"""The last blocks may be fitted once more, to the dense model's predictions (`distill`)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import reprune
from reprune.engine.frontier import Frontier
from reprune.engine.ledger import Ledger
from reprune.engine.names import FOLDER
from reprune.engine.predictions import PredictionObjective
from reprune.engine.watcher import Watcher
from reprune.errors import ChangedError, InputError, NumericalError, UnsupportedModelError
from reprune.math.reconstruction_error import Error
from reprune.math.solver import Errors
from reprune.model.decoder import Decoder
from reprune.model.skeleton import Skeleton
from reprune.model.whole import load_model
from reprune.planning.schedule import Window
from tests import tiny
from tests.damage import flip_bit
from tests.engine.quick import prune, tensors
from tests.engine.test_ledger import InterruptAt, Interrupted, files

pytestmark = pytest.mark.usefixtures("short_manual")

LAST = ["distill.blocks=2", "distill.epochs=3", "distill.lr=2%"]
MANY: dict[str, Any] = {"samples": 48, "heldout": "manual=16", "batch_size": 12}
"""Enough samples for held-out predictions to improve on any text; with fewer, the guard may keep no epoch."""


class Keeping(Watcher):
    """Keeps the samples of a run."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def window_done(self, window: Window, record: Any) -> None:
        samples = Ledger(self.out).samples()
        self.calibration, self.heldout = samples["calibration"], samples["heldout"]


@torch.no_grad()
def divergence(dense: Path, sparse: Path, ids: torch.Tensor) -> float:
    """KL(dense || sparse) per token, from the formula, with plain Transformers."""
    one, other = (
        load_model(folder, torch.device("cpu"))(input_ids=ids, use_cache=False).logits.double().softmax(-1)
        for folder in (dense, sparse)
    )
    return float((one * (one / other).log()).sum(-1).mean())


@pytest.mark.parametrize(("rung", "blocks"), [("LR", 2), ("BR+GP", 3), ("BR+GP+CR", 2), ("auto", 2)])
def test_predictions_come_nearer_to_the_dense_models_and_nothing_else_changes(
    llama: Path, tmp_path: Path, rung: str, blocks: int
) -> None:
    """Among the cases, all three blocks are distilled."""
    plain, distilled = tmp_path / "plain", tmp_path / "distilled"
    keeping = Keeping(distilled)
    before = prune(llama, plain, reconstruct=rung, **MANY)
    settings = [*LAST, f"distill.blocks={blocks}"]
    record = prune(llama, distilled, *settings, reconstruct=rung, watcher=keeping, **MANY)
    assert before["distillation"] is None
    step = record["distillation"]
    # The record agrees with plain Transformers.
    measured = [divergence(llama, folder, keeping.heldout) for folder in (plain, distilled)]
    assert step["heldout_divergence"]["before"] == pytest.approx(measured[0], rel=1e-3)
    assert step["heldout_divergence"]["after"] == pytest.approx(measured[1], rel=1e-3)
    assert measured[1] < measured[0]
    for key, found in step["last_block"].items():
        assert found == {"before": before["blocks"][-1][key], "after": record["blocks"][-1][key]}
    assert divergence(llama, distilled, keeping.calibration) < divergence(llama, plain, keeping.calibration)
    # The windows, and everything outside the last blocks, are those of the plain run; zeros stay zeros.
    last = tuple(f"layers.{index}." for index in step["blocks"])
    assert step["blocks"] == list(range(3 - blocks, 3))
    seconds = {"seconds"}
    assert [{k: v for k, v in window.items() if k not in seconds} for window in record["windows"]] == [
        {k: v for k, v in window.items() if k not in seconds} for window in before["windows"]
    ]
    were, are = tensors(plain), tensors(distilled)
    assert were.keys() == are.keys()
    for name, tensor in are.items():
        changed = not torch.equal(tensor, were[name])
        assert changed == any(part in name for part in last), name
        if changed and tensor.dim() == 2:
            assert torch.equal(tensor == 0, were[name] == 0)
    assert reprune.verify(distilled).passed


def test_an_epochs_divergence_is_that_of_a_token_of_all_samples_calibrated_on(llama: Path, tmp_path: Path) -> None:
    out, keeping = tmp_path / "out", Keeping(tmp_path / "out")
    settings = ("distill.blocks=1", "distill.epochs=1", "distill.lr=1e-12")  # steps too small to matter
    record = prune(llama, out, *settings, reconstruct="LR", watcher=keeping)
    (epoch,) = record["distillation"]["epochs"]
    assert epoch["calibration_divergence"] == pytest.approx(divergence(llama, out, keeping.calibration), rel=1e-3)


def test_block_errors_on_record_are_those_of_the_blocks_as_they_are_saved(llama: Path, tmp_path: Path) -> None:
    keeping = Keeping(tmp_path / "out")
    record = prune(llama, tmp_path / "out", *LAST, watcher=keeping)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (llama, tmp_path / "out")]
    found: list[list[torch.Tensor]] = [[], []]
    for model, seen in zip(models, found, strict=True):
        for block in model.model.layers:
            block.register_forward_hook(lambda _m, _a, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model(keeping.heldout)
    for entry, dense, sparse in zip(record["blocks"], *found, strict=True):
        relative = float((sparse - dense).square().sum() / dense.square().sum())
        assert entry["relative_heldout_error"] == pytest.approx(relative, rel=1e-3)
    assert record["distillation"]["last_block"]["relative_heldout_error"]["after"] == pytest.approx(relative, rel=1e-3)


def test_block_errors_after_a_step_that_moves_nothing_are_those_without_it(tmp_path: Path) -> None:
    """Also those of a block beside whose states the values of other blocks are carried along."""
    folder, still = tiny.save("gemma3n", tmp_path / "dense"), ("distill=2", "distill.epochs=1", "distill.lr=1e-12")
    without, after = (
        prune(folder, tmp_path / f"out{len(settings)}", *settings, reconstruct="LR")["blocks"]
        for settings in ((), still)
    )
    for one, other in zip(without, after, strict=True):
        assert all(other[key] == pytest.approx(one[key], rel=1e-4) for key in one if key.endswith("error"))


@pytest.mark.parametrize("rate", ["2%", "3e4"])
def test_the_guard_keeps_no_state_that_predicts_worse(llama: Path, tmp_path: Path, rate: str) -> None:
    step = prune(llama, tmp_path / "out", "distill=2", f"distill.lr={rate}")["distillation"]
    assert step["heldout_divergence"]["after"] <= step["heldout_divergence"]["before"] * (1 + 1e-6)
    assert all(math.isfinite(value) for value in step["heldout_divergence"].values())


@pytest.mark.parametrize("seed", range(3))
def test_a_state_whose_squares_overflow_is_not_kept(llama: Path, tmp_path: Path, seed: int) -> None:
    """The norm turns it into zeros, so predictions are uniform, which beats those of a model pruned this much."""
    options: dict[str, Any] = {"pruner": "magnitude", "sparsity": "0.9", "seed": seed}
    step = prune(llama, tmp_path / "out", "distill=2", "distill.lr=3e5", **options)["distillation"]
    assert step["kept_epoch"] == 0
    assert step["heldout_divergence"]["after"] == step["heldout_divergence"]["before"] > 0.5
    written = (tmp_path / "out" / "reprune.json").read_text()
    json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    loose = [*LAST, "distill.lr=3e5", "guard=off"]
    with pytest.raises(
        NumericalError, match=r"the held-out error became inf in epoch \d; lower distill\.lr \(the learning rate, now "
    ):
        prune(llama, tmp_path / "loose", *loose, **options)


@pytest.mark.parametrize(
    ("error", "rate", "message"),
    [
        (math.inf, "1%", r"distillation of blocks \[2\]: the predictions from their outputs are not finite"),
        (0.5, "1e30", r"blocks \[2\]: their outputs are not finite after distillation"),
    ],
)
def test_blocks_that_give_what_is_not_finite_are_not_written(
    error: float, rate: str, message: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before the first step, nor after the last, whose loss on what is calibrated on nothing has looked at."""
    monkeypatch.setattr(PredictionObjective, "heldout_error", lambda _: Error.of_predictions(error))
    settings = ["distill=1", "distill.epochs=1", f"distill.lr={rate}", "guard=off"]
    with pytest.raises(NumericalError, match=f"^{message}"):
        prune(llama, tmp_path / "out", *settings, reconstruct="LR", batch_size=8)
    assert reprune.status(tmp_path / "out").windows_done == 3


def test_blocks_that_give_what_is_not_finite_on_held_out_samples_alone_are_not_written(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeat = Frontier.repeat

    def overflowing(self: Frontier, *arguments: Any) -> dict[int, Errors]:
        errors = repeat(self, *arguments)
        return {index: Errors(one.calibration, Error(math.inf, math.inf)) for index, one in errors.items()}

    monkeypatch.setattr(Frontier, "repeat", overflowing)
    with pytest.raises(NumericalError, match=r"^blocks \[2\]: their outputs are not finite after distillation"):
        prune(llama, tmp_path / "out", "distill=1", reconstruct="LR")


@pytest.mark.parametrize("seed", range(4))
def test_what_rounding_takes_back_more_of_than_was_gained_is_not_kept(tmp_path: Path, seed: int) -> None:
    """The steps are far smaller than bfloat16 can resolve."""
    folder = tiny.save("llama", tmp_path / "dense", dtype=torch.bfloat16)
    out = tmp_path / "out"
    step = prune(folder, out, "distill=2", "distill.lr=0.05%", "distill.epochs=1", seed=seed)["distillation"]
    assert step["heldout_divergence"]["after"] <= step["heldout_divergence"]["before"]
    if not step["kept_epoch"]:
        prune(folder, tmp_path / "plain", seed=seed)
        assert files(out) == files(tmp_path / "plain")


@pytest.mark.parametrize(("guard", "after"), [("on", 0.5), ("off", 0.6)])
def test_the_record_says_that_nothing_is_kept_where_rounding_makes_it_worse(
    guard: str, after: float, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases, said = list[str](), [0.5]

    class Phases(Watcher):
        def phase(self, window: Window | None, name: str) -> None:
            phases.append(name)

    def error(_: PredictionObjective) -> Error:
        return Error.of_predictions(said.pop() if said else 0.6 if phases[-1] == "advancing" else 0.4)

    monkeypatch.setattr(PredictionObjective, "heldout_error", error)
    options = ["distill=1", "distill.epochs=1", f"guard={guard}"]
    step = prune(llama, tmp_path / "out", *options, reconstruct="LR", watcher=Phases())["distillation"]
    assert step["heldout_divergence"] == {"before": 0.5, "after": after}
    assert step["kept_epoch"] == (guard == "off")
    prune(llama, tmp_path / "plain", reconstruct="LR")
    assert (files(tmp_path / "out") == files(tmp_path / "plain")) is (guard == "on")


def test_what_saves_memory_in_windows_saves_it_here(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[int, bool]] = []
    run = Frontier.run

    def watched(self: Frontier, blocks: Any, states: torch.Tensor, samples: Any, *how: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            fitted.append((len(states), how[0]))
        return run(self, blocks, states, samples, *how)

    monkeypatch.setattr(Frontier, "run", watched)
    settings = ["distill=1", "distill.epochs=1", "solver.checkpointing=true", "solver.micro_batch_size=4"]
    prune(llama, tmp_path / "out", *settings, reconstruct="LR", samples=8, batch_size=6)
    assert fitted == [(4, True), (2, True), (2, True)], "two at a time pass nowhere else"


def test_what_makes_the_logits_takes_no_memory_when_dense_blocks_are_loaded_again(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for method in (Decoder.predictor, Decoder.release, Decoder.load):

        def noted(*given: Any, method: Any = method) -> Any:
            done.append(method.__name__)
            return method(*given)

        monkeypatch.setattr(Decoder, method.__name__, noted)
    prune(llama, tmp_path / "out", "distill=1", "distill.epochs=1", reconstruct="LR")
    assert done[done.index("predictor") + 1 :][:2] == ["release", "load"]


def test_how_many_tokens_reached_each_expert_stays_on_record(tmp_path: Path) -> None:
    folder, options = tiny.save("mixtral", tmp_path / "model"), {"pruner": "wanda", "reconstruct": "LR"}
    plain = prune(folder, tmp_path / "plain", **options)
    distilled = prune(folder, tmp_path / "out", "distill=1", "distill.epochs=1", **options)
    one, other = ([each.get("tokens") for each in record["blocks"][-1]["matrices"]] for record in (plain, distilled))
    assert one == other and any(one)


def test_a_model_that_changes_meanwhile_leaves_the_step_undone(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model")

    class Changing(Watcher):
        def phase(self, window: Window | None, name: str) -> None:
            if name == "predictions":
                with (model / "config.json").open("a") as file:
                    file.write("\n")

    with pytest.raises(ChangedError, match=r"config\.json: was changed or replaced"):
        prune(model, tmp_path / "out", "distill=1", "distill.epochs=1", reconstruct="LR", watcher=Changing())
    assert reprune.status(tmp_path / "out").windows_done == 3


def test_more_blocks_than_there_are_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"distill.blocks 9: llama has \d blocks"):
        prune(llama, tmp_path / "out", "distill=9")
    assert not (tmp_path / "out").exists()


def test_blocks_that_text_passes_over_are_not_distilled_alone(tmp_path: Path) -> None:
    folder = tiny.save("mllama-last", tmp_path / "dense")
    with pytest.raises(
        InputError, match=r"distill.blocks 1: no text passes through the last block of dense; give at least 2\."
    ):
        prune(folder, tmp_path / "out", "distill=1")
    assert not (tmp_path / "out").exists()
    assert prune(folder, tmp_path / "out", "distill=2", reconstruct="LR")["distillation"]["blocks"] == [1, 2]


@pytest.mark.parametrize(
    "form", [*tiny.CONFIGS, "mixtral", "dbrx", "gemma3n", "xlnet", "mllama", "cpmant", "prophetnet"]
)
def test_every_form_of_decoder_can_be_distilled(form: str, tmp_path: Path) -> None:
    folder = tiny.save(form, tmp_path / "dense")
    keeping = Keeping(tmp_path / "out")
    how: dict[str, Any] = {"reconstruct": "LR", "watcher": keeping}
    step = prune(folder, tmp_path / "out", "distill=1", "distill.lr=1%", **how)["distillation"]
    measured = divergence(folder, tmp_path / "out", keeping.heldout)
    assert step["heldout_divergence"]["after"] == pytest.approx(measured, rel=0.01, abs=1e-6)


def test_a_model_whose_logits_no_module_makes_is_refused_before_anything_is_done(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = Skeleton.__init__

    def headless(self: Skeleton, *arguments: Any) -> None:
        init(self, *arguments)
        monkeypatch.setattr(self.model, "get_output_embeddings", lambda: None)

    monkeypatch.setattr(Skeleton, "__init__", headless)
    with pytest.raises(UnsupportedModelError, match=r"no module that computes its logits.*leave out distill\.blocks"):
        prune(llama, tmp_path / "out", "distill=1")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled result of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    prune(llama, folder, *LAST)
    return folder


STEP = 3  # the index of distillation, after the tiny Llama's three windows


@pytest.mark.parametrize("window, phase", [(1, "reconstruction"), (2, None), (STEP, "predictions"), (STEP, None)])
def test_it_goes_on_after_an_interruption_to_the_same_bits(
    llama: Path, whole: Path, tmp_path: Path, window: int, phase: str | None
) -> None:
    cut = tmp_path / "cut"
    with pytest.raises(Interrupted):
        prune(llama, cut, *LAST, watcher=InterruptAt(window, phase))
    status, done = reprune.status(cut), window + (phase is None)
    assert (status.windows_done, status.windows) == (done, STEP + 1)
    assert not (cut / "config.json").exists()
    said: list[str] = []

    class Saying(Watcher):
        def phase(self, window: Window | None, name: str) -> None:
            said.extend([name] * (window is None))

    record = reprune.resume(cut, watcher=Saying())
    again = ["embedding the samples", *(f"replaying block {index}" for index in range(done))]
    assert said == [*(again if done <= STEP else []), "writing the result"]
    assert files(cut) == files(whole)
    assert len(record["windows"]) == STEP
    assert record["distillation"]["blocks"] == [1, 2]
    assert reprune.verify(cut).passed


def test_blocks_that_were_staged_for_nothing_do_no_harm(llama: Path, whole: Path, tmp_path: Path) -> None:
    """A process was killed after it had written the blocks, and before their line was in the ledger."""
    cut = tmp_path / "cut"
    with pytest.raises(Interrupted):
        prune(llama, cut, *LAST, watcher=InterruptAt(STEP, "predictions"))
    last = sorted(cut.glob("model-*.safetensors"))[-1]
    staged = cut / FOLDER / "staged"
    staged.mkdir()
    (staged / last.name).write_bytes(b"of no use")
    reprune.resume(cut)
    assert files(cut) == files(whole)


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_run_that_was_killed_while_blocks_took_their_places_is_finished(
    llama: Path, whole: Path, tmp_path: Path, moved: int
) -> None:
    cut = tmp_path / "cut"
    with pytest.raises(Interrupted):
        prune(llama, cut, *LAST, watcher=InterruptAt(STEP))
    for file in sorted((cut / FOLDER / "staged").iterdir())[:moved]:
        file.replace(cut / file.name)
    reprune.resume(cut)
    assert files(cut) == files(whole)


def test_a_staged_block_that_was_damaged_is_not_gone_on_with(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        prune(llama, tmp_path / "cut", *LAST, watcher=InterruptAt(STEP))
    file = sorted((tmp_path / "cut" / FOLDER / "staged").iterdir())[0]
    flip_bit(file, file.stat().st_size - 8)
    with pytest.raises(InputError, match="damaged"):
        reprune.resume(tmp_path / "cut")
