"""The peak memory of a window's tensors, phase by phase, from PyTorch's own record of its allocations.

    python benchmarks/tensors.py --out FOLDER [--rung BR+GP+CR] [--hidden 4096 --intermediate 11008 --heads 32]
        [--batch 8] [--seqlen 1024] [--set precision=bfloat16 ...]

By default: blocks of Llama-7B's shape at the paper's batch, two steps of one batch, SparseGPT 50 %. The streams are in
files. So this is what a GPU would hold, except for the guard's copies (on a GPU only of kept weights), the memory of
its libraries, and kernels that need other room. Runs on a CPU, in some minutes and 20 GB. Prints a Markdown table, and
the largest tensors that are alive at the peak.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from runs import add_shape, llama_of_shape, random_text
from torch.profiler import ProfilerActivity, profile, record_function

import reprune
from reprune.engine.watcher import Watcher
from reprune.planning.schedule import Window


class Marks(Watcher):
    """Marks in the profile where a phase begins."""

    def phase(self, window: Window | None, what: str) -> None:
        if window is not None:
            with record_function(f"PHASE {list(window.blocks)} {what}"):
                pass


def allocations(trace: Path) -> Iterator[tuple[str, dict[int, int]]]:
    """After each allocation in a window: its phase, and the bytes of all that is alive except files, by address."""
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    files = [one for one in events if one.get("name") == "aten::from_file"]
    spans = [(float(one["ts"]), float(one["ts"]) + float(one["dur"])) for one in files]
    wanted = (one for one in events if one.get("name") == "[memory]" or one.get("name", "").startswith("PHASE"))
    phase, alive = "", dict[int, int]()
    for event in sorted(wanted, key=lambda one: float(one["ts"])):
        if event["name"] != "[memory]":
            phase = event["name"].removeprefix("PHASE ")
            continue
        size, address, when = event["args"]["Bytes"], event["args"]["Addr"], float(event["ts"])
        if size < 0:
            alive.pop(address, None)
        elif event["args"]["Device Type"] == 0 and not any(begin <= when <= end for begin, end in spans):
            alive[address] = size
            if phase:
                yield phase, alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rung", default="BR+GP")
    add_shape(parser)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    blocks = 2 if "CR" in options.rung else 1
    model = llama_of_shape(options.out / f"model-{blocks}", options, blocks)
    text = random_text(options.out / "random.txt", 8 * options.batch * options.seqlen)
    shutil.rmtree(options.out / "sparse", ignore_errors=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        reprune.prune(
            model,
            options.out / "sparse",
            pruner="sparsegpt",
            reconstruct=options.rung,
            calibration=str(text),
            samples=options.batch,
            batch_size=options.batch,
            seqlen=options.seqlen,
            epochs=2,
            device="cpu",
            settings=["streams.memory=0B", *options.set],
            watcher=Marks(),
        )
    trace = options.out / "trace.json"
    found.export_chrome_trace(str(trace))
    peaks: dict[str, int] = {}
    at_peak: Counter[int] = Counter()
    for phase, alive in allocations(trace):
        total = sum(alive.values())
        if total > max(peaks.values(), default=0):
            at_peak = Counter(alive.values())
        peaks[phase] = max(peaks.get(phase, 0), total)
    trace.unlink()
    print("| blocks, phase | tensors (GB) |\n|---|---|")
    for phase, peak in peaks.items():
        print(f"| {phase} | {peak / 1e9:.2f} |")
    print("\nAlive at the peak: ", end="")
    largest = sorted(at_peak.items(), key=lambda one: -one[0] * one[1])[:8]
    print(", ".join(f"{count} of {size / 1e6:.0f} MB" for size, count in largest))


if __name__ == "__main__":
    main()
