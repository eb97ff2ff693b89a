"""The main job on every causal language model that the installed Transformers registers, each in a tiny size.

    python benchmarks/architectures.py --out FOLDER [--only llama mixtral ...] [--jobs 2] [--page docs/architectures.md]

Each architecture's default configuration is shrunk, built with random weights and saved. From disk it is pruned with
Wanda 2:4, BR+GP and with SparseGPT 50 %, BR+GP+CR (2 samples), and both pruners' LR beside. Then:

- streaming: what each block puts out under streaming is what it puts out in the whole model (1e-5, relative, float32);
- sparsity: every linear of every block but the routers of experts is on record and has its zeros;
- error: the last block's calibration error is not above LR's with the same pruner;
- reloaded: plain Transformers loads the result with no tensor missing, unexpected or of another shape, and its blocks
  put out what they put out under streaming; `reprune verify` finds nothing.

Prints a line for each: passed, refused (reprune says why), failed, or not built (Transformers' own fault here).
Writes FOLDER/architectures.json and, where --page is given, the table. Started again it does what is missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from runs import write_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

import reprune
from reprune.errors import UnsupportedModelError
from reprune.math.patterns import parse_pattern
from reprune.model.decoder import Decoder
from reprune.model.skeleton import model_class

SAMPLES, SEQLEN, TOLERANCE, SECONDS = 2, 32, 1e-5, 400
VOCABULARY, WIDTH, WIDE, BLOCKS, HEADS = 512, 64, 128, 4, 4
JOBS = {  # by name: flags
    "wanda LR": {"pruner": "wanda", "sparsity": "2:4", "reconstruct": "LR"},
    "wanda": {"pruner": "wanda", "sparsity": "2:4", "reconstruct": "BR+GP"},
    "sparsegpt LR": {"pruner": "sparsegpt", "sparsity": "0.5", "reconstruct": "LR"},
    "sparsegpt": {"pruner": "sparsegpt", "sparsity": "0.5", "reconstruct": "BR+GP+CR"},
}

SIZES: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embed_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("word_embed_proj_dim", "input_embedding_size", "output_embedding_size", "ffn_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "mlp_dim", "dim_ff", "d_inner"), WIDE),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "shared_intermediate_size", "intermediate_size_mlp"), WIDE),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), WIDTH),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "dense_intermediate_size", "expert_dim"), WIDTH),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), BLOCKS
    ),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_blocks", "num_hidden_groups", "depth"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "attention_heads", "num_encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "n_kv_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_size", "global_head_dim", "swa_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "q_lora_rank", "kv_lora_rank", "kv_channels"), 16),
    **dict.fromkeys(("index_head_dim", "linear_key_head_dim", "linear_value_head_dim", "attention_hidden_size"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads"), 2),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_headdim", "mamba_head_dim"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_selected_experts", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "attention_window", "chunk_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 128),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "context_length", "index_topk"), 128),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size", "text_vocab_size"), VOCABULARY),
    **dict.fromkeys(("rotary_dim", "partial_rotary_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_ssm", "mamba_intermediate_size"), WIDTH),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "lru_width", "recurrent_block_width"), WIDTH),
}
"""What a configuration's numbers become, by name, where it has them and they are larger."""

_HEAD = {"head_dim": 16}
_LATENT = {"num_key_value_heads": HEADS}  # latent attention has as many heads of keys
ODD: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "sarvam_mla"), _LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu", "kimi_linear"), _LATENT),
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "nemotron_h": {"n_groups": 1},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _HEAD),
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 16], "attn_layers": ["local", "lsh"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": WIDTH, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH},
    },
}
"""What must be given besides, by architecture."""


def shrunk(kind: type[PreTrainedConfig], odd: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments that make a configuration tiny."""
    default = kind()
    given: dict[str, Any] = {}
    for name, size in SIZES.items():
        value = _value(default, name)
        if isinstance(value, int) and not isinstance(value, bool) and value > size and name in _settable(default):
            given[name] = size
    for name in _settable(default):
        value = _value(default, name)
        if re.search(r"(token_id|token_index|_token)$", name) and isinstance(value, int) and value >= VOCABULARY:
            given[name] = 3
    for name in getattr(kind, "sub_configs", None) or {}:
        if isinstance(part := _value(default, name), PreTrainedConfig):
            given[name] = {**shrunk(type(part)), "model_type": part.model_type}
    return given | dict(odd or {})


def _value(config: PreTrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # some say that what differs from block to block has no one value
        return None


def _settable(config: PreTrainedConfig) -> set[str]:
    return {name for name in vars(config) if not name.startswith("_")} | set(getattr(config, "attribute_map", {}))


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

    def saw(_: nn.Module, __: Any, outputs: Any) -> None:
        states.append((outputs[0] if isinstance(outputs, tuple | list) else outputs).detach().clone())

    for block in model.get_submodule(path):
        block.register_forward_hook(saw)
    with torch.no_grad():
        model.eval()(input_ids=tokens(), use_cache=False)
    return states, info


def seen_streaming(decoder: Decoder) -> list[Tensor]:
    """The same, block by block."""
    ids = tokens()
    (_, states), *_ = list(decoder.embed(ids, [slice(0, len(ids))]))
    decoder.release()
    found = []
    with torch.no_grad():
        for index in range(len(decoder)):
            states = decoder.load(index).run(states, decoder.call(index, slice(0, len(ids))))
            found.append(states)
    return found


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
                settings=["precision=float32", "pruner.min_tokens=4"],
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


def _alone(model_type: str, out: Path) -> dict[str, Any]:
    """In a process of its own, which a model may end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with _limited():
        return examine(model_type, out)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "text.txt").write_text("\n\n".join(topics[key] for key in sorted(topics))[:60_000], encoding="utf-8")
    file = options.out / "architectures.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    wanted = options.only or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    remaining = [name for name in wanted if options.only or name not in found]

    def done(name: str, outcome: dict[str, Any]) -> None:
        found[name] = outcome
        file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{name:<28} {outcome['outcome']:<9} {outcome['why']}"[:400], flush=True)

    _in_processes(remaining, options.out, options.jobs, done)
    print(summary(found))
    if options.page:
        options.page.write_text(page(found), encoding="utf-8")
    sys.exit(any(one["outcome"] == "failed" for one in found.values()))


def _in_processes(names: list[str], out: Path, jobs: int, done: Callable[[str, dict[str, Any]], None]) -> None:
    """Each in a fork of this process, so many at a time; one that ends its process has failed."""
    context = multiprocessing.get_context("fork")
    while names:
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=None) as pool:
            futures = {name: pool.submit(_alone, name, out) for name in names}
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
missing or unexpected and computes in it what was computed block by block (1e-5), the last block's calibration error is
not above that of pruning alone, and `reprune verify` finds nothing. That is a test of form: it says nothing of quality.
"Not built" are configurations that Transformers itself does not build or run in this size.

A model that is refused is refused before anything is written, for the reason in the table.
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
