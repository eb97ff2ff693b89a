"""Zero-shot evaluation against lm-eval's own model class, HFLM, on the same rows in the same process.

    python benchmarks/zeroshot.py MODEL --data FOLDER [--limit 50] [--batch-size 1 8]

Answers the same requests with HFLM at each batch size and with reprune's class, HFLM under the same autocast context.
Prints seconds (of the clock, and of the processor: these count where others use the machine, but not on a GPU), tokens
a second (of the requests as they are, whatever is run for them), how much longer HFLM takes, the largest difference of
a log-likelihood, and the accuracies.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from reprune.doors.devices import DTYPES, settle_device, settle_precision
from reprune.doors.zeroshot.accuracy import TASKS
from reprune.doors.zeroshot.likelihoods import Likelihoods
from reprune.doors.zeroshot.rows import LAYOUTS
from reprune.doors.zeroshot.tasks import Task, load_tasks, quiet_harness
from reprune.model.block import Precision
from reprune.model.locate import locate_model
from reprune.model.whole import load_model
from reprune.planning.tokenizer import load_tokenizer

Answers = list[tuple[float, bool]]


def timed(model: Any, requests: list[Any], precision: Precision) -> tuple[Answers, float, float]:
    """The answers of a model class to requests, the seconds that it took, and its CPU seconds."""
    began, busy = time.monotonic(), time.process_time()
    with quiet_harness(), precision.on(model.device):
        answers = model.loglikelihood(requests, disable_tqdm=True)
    return answers, time.monotonic() - began, time.process_time() - busy


def accuracies(tasks: tuple[Task, ...], answers: Answers) -> str:
    """Each task's accuracy."""
    following = iter(answers)
    values = [task.metrics([next(following) for _ in task.requests])["acc"] for task in tasks]
    return " ".join(f"{sum(each) / len(each):.3f}" for each in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--batch-size", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    device = settle_device(options.device)
    name = settle_precision(options.precision, device)
    precision = Precision(DTYPES[name])
    there = [task for task in TASKS if (options.data / LAYOUTS[task].file).exists()]
    tasks = load_tasks(there, {task: LAYOUTS[task].read(options.data) for task in there}, options.limit)
    requests = [request for task in tasks for request in task.requests]
    folder = locate_model(options.model)
    network, tokenizer = load_model(folder, torch.device(device), False), load_tokenizer(folder)
    mixed = None if precision.products == torch.float32 else precision.products
    with quiet_harness():
        models: dict[str, Any] = {"reprune": Likelihoods(network, tokenizer, precision)}
        for size in options.batch_size:
            plain = HFLM(network, tokenizer=tokenizer, batch_size=size, mixed_precision_dtype=mixed, backend="causal")
            models[f"HFLM, batch {size}"] = plain
        pairs = [models["reprune"]._encode_pair(*request.args) for request in requests]
    tokens = sum(len(context) + len(continuation) - 1 for context, continuation in pairs)
    print(f"{folder.name}, {device}, {torch.get_num_threads()} threads, products in {name}")
    print(f"{', '.join(there)}: {options.limit} rows each, {len(requests)} requests, {tokens} tokens\n")
    print(
        "| | seconds | of the processor | tokens/s | times as long | largest difference | accuracies |\n|" + "---|" * 7
    )
    timed(models["reprune"], requests[:8], precision)  # warm up
    ours, fewest, least = timed(models["reprune"], requests, precision)
    for label, model in models.items():
        answers, seconds, busy = (ours, fewest, least) if label == "reprune" else timed(model, requests, precision)
        apart = max(abs(one - other) for (one, _), (other, _) in zip(ours, answers, strict=True))
        longer = seconds / fewest if device.startswith("cuda") else busy / least
        print(
            f"| {label} | {seconds:.1f} | {busy:.1f} | {tokens / seconds:.0f} | {longer:.2f} | {apart:.1e} "
            f"| {accuracies(tasks, answers)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
