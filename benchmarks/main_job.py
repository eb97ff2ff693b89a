"""The main job on one tiny model, and a check of the result's form; see benchmarks/architectures.py."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_models import SEQLEN, build
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import reprune
from reprune.errors import UnsupportedModelError
from reprune.math.patterns import parse_pattern
from reprune.model.bare import model_class
from reprune.model.block import Call
from reprune.model.checkpoint import Checkpoint
from reprune.model.decoder import Decoder

SAMPLES, TOLERANCE = 2, 1e-5
JOBS = {  # by name: flags
    "wanda LR": {"pruner": "wanda", "sparsity": "2:4", "reconstruct": "LR"},
    "wanda": {"pruner": "wanda", "sparsity": "2:4", "reconstruct": "BR+GP"},
    "sparsegpt LR": {"pruner": "sparsegpt", "sparsity": "0.5", "reconstruct": "LR"},
    "sparsegpt": {"pruner": "sparsegpt", "sparsity": "0.5", "reconstruct": "BR+GP+CR"},
}


def tokens() -> Tensor:
    return torch.randint(4, 256, (2, SEQLEN), generator=torch.Generator().manual_seed(1))


def seen_whole(folder: Path, path: str) -> tuple[list[Tensor], dict[str, Any]]:
    """The output of each block in the whole model, loaded by plain Transformers, and the loading info."""
    decoder = Decoder(folder)
    kind = model_class(decoder.skeleton.model.config, False)
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    states: list[Tensor] = []
    plain = replace(decoder.skeleton.forms[decoder.skeleton.running[0]], slots=())

    def saw(_: nn.Module, __: Any, outputs: Any) -> None:
        states.append(plain.of((outputs[0] if isinstance(outputs, tuple | list) else outputs).detach().clone()))

    for block in [model.get_submodule(path)[index] for index in decoder.skeleton.running]:
        block.register_forward_hook(saw)
    with torch.no_grad():
        model.eval()(input_ids=tokens(), use_cache=False)
    return states, info


@torch.no_grad()
def streamed(decoder: Decoder) -> list[tuple[Call, Tensor]]:
    """The call of each block, and the stream's states after it, block by block."""
    ids = tokens()
    (_, states), *_ = list(decoder.embed(ids, [slice(0, len(ids))]))
    decoder.release()
    found = []
    for index in decoder.skeleton.running:
        call = decoder.call(index, slice(0, len(ids)))
        states = decoder.load(index).run(states, call)
        found.append((call, states))
    return found


def seen_streaming(decoder: Decoder) -> list[Tensor]:
    """The output of each block, streamed block by block."""
    return [call.form.states(states) for call, states in streamed(decoder)]


@torch.no_grad()
def predictions(folder: Path) -> float:
    """The distance of the logits by the last block's states to those of the whole model in plain Transformers.

    Raises:
        UnsupportedModelError: the model computes no logits from these states.
    """
    decoder, ids = Decoder(folder), tokens()
    decoder.check_predicts()
    found = decoder.predictor()(streamed(decoder)[-1][1], ids)
    model = model_class(decoder.skeleton.model.config, False).from_pretrained(folder, dtype=torch.float32)
    return off([found], [model.eval()(input_ids=ids, use_cache=False).logits])


def off(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative distance between two models' states."""
    if len(found) != len(wanted):
        return float("inf")
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True))


def check_outside(dense: Decoder, result: Checkpoint) -> Iterator[str]:
    """What is wrong with a result's tensors outside its blocks, which must be the dense model's to the bit."""
    if dense.checkpoint.entries.keys() != result.entries.keys():
        yield "outside: its tensors have other names"
        return
    for name in (name for name in result.entries if dense.block_of(name) is None):
        one, other = dense.checkpoint.tensor(name), result.tensor(name)
        if one.dtype != other.dtype or not one.equal(other):
            yield f"outside: {name} is not as it was"


def check_result(dense: Path, out: Path, record: dict[str, Any], sparsity: str) -> Iterator[str]:
    """What is wrong with a result."""
    decoder = Decoder(out)
    pattern = parse_pattern(sparsity)
    streaming = seen_streaming(decoder)
    whole, info = seen_whole(out, decoder.skeleton.blocks_path)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(what):
            yield f"reloaded: {what} {sorted(map(str, info[what]))[0]}"
    if not (distance := off(streaming, whole)) <= TOLERANCE:
        yield f"reloaded: its blocks are {distance:.1e} off"
    for entry in record["blocks"]:
        block = decoder.load(entry["index"])
        on_record = {matrix["name"] for matrix in entry["matrices"]}
        plain = {name for name, module in block.module.named_modules() if isinstance(module, nn.Linear | Conv1D)}
        in_parts = {name.rpartition(".")[0] for name in on_record}
        if left := sorted(plain - on_record - in_parts - block.routers - set(entry["idle"])):
            yield f"sparsity: block {entry['index']}: {left[0]} is not pruned"
        for linear in block.linears:
            if linear.name not in on_record:
                continue
            matrix = linear.matrix()
            if not pattern.allows(matrix != 0) or abs(float((matrix == 0).float().mean()) - 0.5) > 0.02:
                yield f"sparsity: block {entry['index']}: {linear.name} is not {sparsity}"
    yield from check_outside(Decoder(dense), Checkpoint(out))
    for check in reprune.verify(out).checks:
        for problem in check.problems:
            yield f"verify: {problem}"


def examine(kinds: Mapping[str, Any], model_type: str, out: Path) -> dict[str, Any]:
    """One architecture's outcome, and the reason."""
    began = time.monotonic()
    folder = out / "models" / model_type
    shutil.rmtree(folder, ignore_errors=True)
    try:
        model = build(kinds, model_type, folder / "dense")
    except Exception as error:  # whatever a model raises
        return {"outcome": "not built", "why": _said(error)}
    name = type(model).__name__
    found: dict[str, Any] = {"class": name, "weights": sum(parameter.numel() for parameter in model.parameters())}
    del model
    try:
        problems, measured = [], {}
        decoder = Decoder(folder / "dense")
        streaming = seen_streaming(decoder)
        try:
            whole, _ = seen_whole(folder / "dense", decoder.skeleton.blocks_path)
        except Exception as error:  # whatever a model raises that Transformers itself cannot run in this way
            return found | {"outcome": "not built", "why": f"its own forward fails: {_said(error)}"}
        measured["streaming"] = off(streaming, whole)
        if not measured["streaming"] <= TOLERANCE:
            problems.append(f"streaming: {measured['streaming']:.1e} off the whole model's forward")
        try:
            measured["predictions"] = predictions(folder / "dense")
            if not measured["predictions"] <= TOLERANCE:
                problems.append(f"predictions: {measured['predictions']:.1e} off the whole model's")
        except UnsupportedModelError as error:
            found["not distilled"] = _said(error, False)
        text = out / "text.txt"
        errors = {}
        for job, flags in JOBS.items():
            record = reprune.prune(
                folder / "dense",
                folder / job.replace(" ", "-"),
                calibration=str(text),
                samples=SAMPLES,
                seqlen=SEQLEN,
                epochs=3,
                device="cpu",
                settings=["precision=float32", "pruner.min_tokens=4", "guard=off"],
                **flags,
            )
            errors[job] = record["blocks"][-1]["calibration_error"]
            if not job.endswith("LR"):
                problems += [
                    f"{job}: {said}" for said in check_result(folder / "dense", folder / job, record, flags["sparsity"])
                ]
                if not errors[job] <= errors[f"{job} LR"]:
                    problems.append(f"{job}: error {errors[job]:.3g}, LR {errors[f'{job} LR']:.3g}")
                found["experts"] = max(
                    sum("tokens" in matrix for matrix in block["matrices"]) for block in record["blocks"]
                )
                found["matrices"] = sum(len(block["matrices"]) for block in record["blocks"])
        found |= {
            "outcome": "failed" if problems else "passed",
            "why": "; ".join(problems),
            "errors": errors,
            **measured,
        }
    except UnsupportedModelError as error:
        found |= {"outcome": "refused", "why": _said(error, False)}
    except Exception as error:  # whatever a model raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        found |= {"outcome": "failed", "why": f"{_said(error)} ({Path(place.filename).name}:{place.lineno})"}
    shutil.rmtree(folder, ignore_errors=True)
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _said(error: BaseException, kind: bool = True) -> str:
    said = " ".join(str(error).split())[:400]
    return f"{type(error).__name__}: {said}" if kind else said
