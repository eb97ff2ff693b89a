"""The main job on every causal language model that the installed Transformers registers, each in a tiny size.

    python benchmarks/architectures.py --out FOLDER [--only llama mixtral ...] [--jobs 2] [--page docs/architectures.md]

Each architecture's default configuration is shrunk, built with random weights and saved. From disk it is pruned with
Wanda 2:4, BR+GP and with SparseGPT 50 %, BR+GP+CR (2 samples), and both pruners' LR beside. Then:

- streaming: what each block puts out under streaming is what it puts out in the whole model (1e-5, relative, float32);
- predictions: the logits that are made of the last block's states, for distillation, are those of the whole model, or
  it is said that there are none (1e-5);
- sparsity: every linear of every block but the routers of experts is on record and has its zeros;
- error: the last block's calibration error is not above LR's with the same pruner (without the guard, which goes by
  another error);
- reloaded: plain Transformers loads the result with no tensor missing, unexpected or of another shape, and its blocks
  put out what they put out under streaming; `reprune verify` finds nothing.

Prints a line for each: passed, refused (reprune says why), failed, or not built (Transformers' own fault here).
Writes FOLDER/architectures.json and, where --page is given, the table. Started again it does what is missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from runs import write_tokenizer
from tiny_configs import ODD, shrunk
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

import reprune
from reprune.errors import UnsupportedModelError
from reprune.math.patterns import parse_pattern
from reprune.model.bare import model_class
from reprune.model.block import Call
from reprune.model.decoder import Decoder

SAMPLES, SEQLEN, TOLERANCE, SECONDS = 2, 32, 1e-5, 400
JOBS = {  # by name: flags
    "wanda LR": {"pruner": "wanda", "sparsity": "2:4", "reconstruct": "LR"},
    "wanda": {"pruner": "wanda", "sparsity": "2:4", "reconstruct": "BR+GP"},
    "sparsegpt LR": {"pruner": "sparsegpt", "sparsity": "0.5", "reconstruct": "LR"},
    "sparsegpt": {"pruner": "sparsegpt", "sparsity": "0.5", "reconstruct": "BR+GP+CR"},
}


def build(model_type: str, folder: Path) -> Any:
    """Write a tiny model of random weights, and a tokenizer; returns the model."""
    kind = CONFIG_MAPPING[model_type]
    config = kind(**shrunk(kind, ODD.get(model_type)))
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.08 if parameter.dim() > 1 else 0.02))
    model.eval()
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    write_tokenizer(folder)
    with torch.no_grad():
        ids = torch.arange(2 * SEQLEN).view(2, SEQLEN) % 256
        if not torch.isfinite(model(input_ids=ids, use_cache=False).logits).all():
            raise ValueError("its logits are not finite")
    return model


def tokens() -> Tensor:
    return torch.randint(4, 256, (2, SEQLEN), generator=torch.Generator().manual_seed(1))


def seen_whole(folder: Path, path: str) -> tuple[list[Tensor], dict[str, Any]]:
    """What each block puts out in the whole model as plain Transformers loads it, and how that loading went."""
    decoder = Decoder(folder)
    kind = model_class(decoder.skeleton.model.config)
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
    """The same, block by block."""
    return [call.form.states(states) for call, states in streamed(decoder)]


@torch.no_grad()
def predictions(folder: Path) -> float:
    """How far logits of the last block's states are off those of the whole model as plain Transformers loads it.

    Raises:
        UnsupportedModelError: the model makes none of them.
    """
    decoder, ids = Decoder(folder), tokens()
    decoder.check_predicts()
    found = decoder.predictor()(streamed(decoder)[-1][1], ids)
    model = model_class(decoder.skeleton.model.config).from_pretrained(folder, dtype=torch.float32)
    return off([found], [model.eval()(input_ids=ids, use_cache=False).logits])


def off(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative distance between two models' states."""
    if len(found) != len(wanted):
        return float("inf")
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True))


def check_result(out: Path, record: dict[str, Any], sparsity: str) -> Iterator[str]:
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
        if left := sorted(plain - on_record - block.routers - set(entry["idle"])):
            yield f"sparsity: block {entry['index']}: {left[0]} is not pruned"
        for linear in block.linears:
            if linear.name not in on_record:
                continue
            matrix = linear.matrix()
            if not pattern.allows(matrix != 0) or abs(float((matrix == 0).float().mean()) - 0.5) > 0.02:
                yield f"sparsity: block {entry['index']}: {linear.name} is not {sparsity}"
    for check in reprune.verify(out).checks:
        for problem in check.problems:
            yield f"verify: {problem}"


def examine(model_type: str, out: Path) -> dict[str, Any]:
    """One architecture: how it went, and why."""
    began = time.monotonic()
    folder = out / "models" / model_type
    shutil.rmtree(folder, ignore_errors=True)
    try:
        model = build(model_type, folder / "dense")
    except Exception as error:  # whatever a model raises
        return {"outcome": "not built", "why": _said(error)}
    name = type(model).__name__
    found: dict[str, Any] = {"class": name, "weights": sum(parameter.numel() for parameter in model.parameters())}
    del model
    try:
        problems, measured = [], {}
        decoder = Decoder(folder / "dense")
        streaming = seen_streaming(decoder)
        whole, _ = seen_whole(folder / "dense", decoder.skeleton.blocks_path)
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
                problems += [f"{job}: {said}" for said in check_result(folder / job, record, flags["sparsity"])]
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


def alone(work: Callable[[str, Path], dict[str, Any]], model_type: str, out: Path) -> dict[str, Any]:
    """Some work on an architecture in a process of its own, which a model may end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with _limited():
        return work(model_type, out)


@contextmanager
def _limited() -> Iterator[None]:
    import signal

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def write_text(out: Path) -> None:
    """What is calibrated on."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "text.txt").write_text("\n\n".join(topics[key] for key in sorted(topics))[:60_000], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    write_text(options.out)
    file = options.out / "architectures.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    wanted = options.only or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    remaining = [name for name in wanted if options.only or name not in found]

    def done(name: str, outcome: dict[str, Any]) -> None:
        found[name] = outcome
        file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{name:<28} {outcome['outcome']:<9} {outcome['why']}"[:400], flush=True)

    in_processes(remaining, partial(alone, examine), options.out, options.jobs, done)
    print(summary(found))
    if options.page:
        options.page.write_text(page(found), encoding="utf-8")
    sys.exit(any(one["outcome"] == "failed" for one in found.values()))


def in_processes(
    names: list[str],
    work: Callable[[str, Path], dict[str, Any]],
    out: Path,
    jobs: int,
    done: Callable[[str, dict[str, Any]], None],
) -> None:
    """Each in a fork of this process, so many at a time; one that ends its process has failed."""
    context = multiprocessing.get_context("fork")
    while names:
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=None) as pool:
            futures = {name: pool.submit(work, name, out) for name in names}
            try:
                for name, future in futures.items():
                    done(name, future.result())
                    names = names[1:]
            except BrokenProcessPool:
                done(name, {"outcome": "failed", "why": "it ended its process", "seconds": 0.0})
                names = names[1:]


def summary(found: Mapping[str, Mapping[str, Any]]) -> str:
    counts = {outcome: sum(one["outcome"] == outcome for one in found.values()) for outcome in OUTCOMES}
    built = len(found) - counts["not built"]
    share = counts["passed"] / max(built, 1)
    return (
        f"{len(found)} registered, {built} built: "
        + ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if outcome != "not built")
        + f" ({share:.1%} passed)"
    )


OUTCOMES = ("passed", "refused", "failed", "not built")


INTRODUCTION = """# Architectures

There is no list of what is supported: what a model is made of is found by running it ([how](architecture.md)). Whether
that works is seen by trying. This table is of every causal language model that Transformers registers:

    python benchmarks/architectures.py --out sweep --page docs/architectures.md

Each default configuration is shrunk (4 blocks of width 64), built with random weights, saved, and pruned from disk with
Wanda 2:4, BR+GP and SparseGPT 50 %, BR+GP+CR (2 samples of 32 tokens). A model has passed if every linear of every
block that runs on text has its zeros (routers of experts apart), plain Transformers loads the result without a tensor
missing or unexpected and computes in it what was computed block by block (1e-5), the last block's calibration error
(without the guard, which goes by another) is not above that of pruning alone, and `reprune verify` finds nothing. That
is a test of form: it says nothing of quality.
"Not built" are configurations that Transformers itself does not build or run by themselves. (gemma3n needs the package
timm for its images.) Of an encoder-decoder, as BART, what is built here is the decoder, of which Transformers makes
a model of its own (`BartForCausalLM`); as a whole it is refused.

A model that is refused is refused before anything is written, for the reason in the table.

All of that is in float32 on the CPU. Most runs have products in bfloat16, and many are on a GPU, so that the same
models are pruned in these ways too (SparseGPT 50 %, BR+GP), as far as a machine without a GPU can tell:

    python benchmarks/devices.py --out sweep

The device there is a pretended one: it computes on the CPU, refuses tensors of the CPU among its own as CUDA does, and
its autocast has CUDA's rules. Of the 183 that can be pruned (without timm), all are in float32 on that device, all but
xmod in bfloat16 and in float16, and all but xmod and dbrx in bfloat16 on the CPU. Those two bring together tensors of
two dtypes; with `precision: auto`, the default, they are run in float32, and a note says so.
"""


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of the documentation."""
    versions = f"Transformers {version('transformers')}, torch {version('torch')}"
    lines = [INTRODUCTION, f"{summary(found)}, with {versions}.", ""]
    lines += ["| architecture | outcome | matrices pruned | streaming off by | why |", "|---|---|---|---|---|"]
    for name, one in sorted(found.items()):
        experts = f", {one['experts']} of experts in a block" if one.get("experts") else ""
        matrices = f"{one['matrices']}{experts}" if "matrices" in one else ""
        streaming = f"{one['streaming']:.0e}" if "streaming" in one else ""
        why = one["why"].replace("|", "/").replace("dense: ", "")
        lines.append(f"| {name} | {one['outcome']} | {matrices} | {streaming} | {why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
