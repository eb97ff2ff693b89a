"""The main job with products in half precision, and on a device that is not the CPU, on every causal language model.

    python benchmarks/devices.py --out FOLDER [--only llama mixtral ...] [--jobs 2]

Each architecture that the installed Transformers registers is built in a tiny size with random weights, as in
benchmarks/architectures.py, and pruned with SparseGPT 50 %, BR+GP (2 samples of 32 tokens): in bfloat16 on the CPU, and
in float32, bfloat16 and float16 on a simulated device, which this machine need not have. That device computes on the
CPU, refuses CPU tensors among its own as CUDA does, and its autocast has CUDA's rules.

Prints a line for each model that does not run everywhere, and why; writes FOLDER/devices.json. Started again, it does
what is missing.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alone import sweep, sweep_parser
from main_job import SAMPLES
from tiny_models import CAUSAL, SEQLEN, build, write_text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import pretended

import reprune
from reprune.errors import HalfPrecisionError, UnsupportedModelError

PLACES = [("cpu", "bfloat16"), *((pretended.NAME, dtype) for dtype in ("float32", "bfloat16", "float16"))]


def examine(model_type: str, out: Path) -> dict[str, str]:
    """One architecture's outcomes by device and precision: passed, or why not; only one if refused or not built."""
    folder = out / "models" / model_type
    shutil.rmtree(folder, ignore_errors=True)
    found = {}
    try:
        build(CAUSAL, model_type, folder / "dense")
    except Exception as error:  # whatever a model raises
        return {"not built": str(error)}
    pretended.device()
    for device, precision in PLACES:
        try:
            reprune.prune(
                folder / "dense",
                folder / f"{device}-{precision}",
                calibration=str(out / "text.txt"),
                samples=SAMPLES,
                seqlen=SEQLEN,
                epochs=1,
                reconstruct="BR+GP",
                device=device,
                settings=[f"precision={precision}", "pruner.min_tokens=4"],
            )
            found[f"{device}, {precision}"] = "passed"
        except HalfPrecisionError as error:
            found[f"{device}, {precision}"] = f"float32 alone: {error.reason}"
        except UnsupportedModelError as error:
            return {"refused": str(error)}
        except Exception as error:  # whatever a model raises
            found[f"{device}, {precision}"] = f"failed: {type(error).__name__}: {' '.join(str(error).split()):.200}"
    shutil.rmtree(folder, ignore_errors=True)
    return found


def summary(found: Mapping[str, Mapping[str, str]]) -> str:
    pruned = [one for one in found.values() if not {"refused", "not built"} & one.keys()]
    counts = {
        f"{device}, {dtype}": sum(one.get(f"{device}, {dtype}") == "passed" for one in pruned)
        for device, dtype in PLACES
    }
    return f"{len(pruned)} that can be pruned; passed: " + "; ".join(f"{place} {n}" for place, n in counts.items())


def main() -> None:
    parser = sweep_parser(__doc__)
    options = parser.parse_args()
    write_text(options.out)

    def say(name: str, outcome: dict[str, Any]) -> None:
        for place, said in outcome.items():
            if said != "passed":
                print(f"{name:<28} {place:<22} {said}"[:400], flush=True)

    found = sweep(CAUSAL, options.only, examine, options.out / "devices.json", options.jobs, say)
    print(summary(found))
    sys.exit(any(said.startswith("failed") for one in found.values() for said in one.values()))


if __name__ == "__main__":
    main()
