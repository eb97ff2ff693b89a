"""What is given by flags reaches what a command calls, each value under its own name; what is not given is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reprune.planning.generation.settings import generation
from tests.doors.conftest import Cli

_RUN: dict[str, tuple[tuple[str, ...], Any]] = {
    "recipe": (("--recipe", "r.yaml"), Path("r.yaml")),
    "sparsity": (("--sparsity", "2:4"), "2:4"),
    "calibration": (("--calibration", "a", "b"), ["a", "b"]),
    "heldout": (("--heldout", "c", "d"), ["c", "d"]),
    "samples": (("--samples", "5"), 5),
    "seqlen": (("--seqlen", "6"), 6),
    "epochs": (("--epochs", "7"), 7),
    "lr": (("--lr", "1%"), "1%"),
    "batch_size": (("--batch-size", "8"), 8),
    "include": (("--include", "e"), ["e"]),
    "exclude": (("--exclude", "f"), ["f"]),
    "device": (("--device", "cuda:1"), "cuda:1"),
    "settings": (("--set", "guard=off"), ["guard=off"]),
    "trust_remote_code": (("--trust-remote-code",), True),
}
_ONE = {
    "pruner": (("--pruner", "wanda"), "wanda"),
    "reconstruct": (("--reconstruct", "BR"), "BR"),
    "self_generate": (("--self-generate", "9"), 9),
    "seed": (("--seed", "10"), 10),
    "only": (("--only", "mlp"), "mlp"),
}
_PLAN = {
    "on": (("--on", "h100"), "h100"),
    "ranks": (("--ranks", "11"), 11),
    "network": (("--network", "100g"), "100g"),
}
_STUDY = {
    "pruners": (("--pruners", "wanda", "magnitude"), ["wanda", "magnitude"]),
    "rungs": (("--rungs", "BR", "LR"), ["BR", "LR"]),
    "seeds": (("--seeds", "0", "1"), [0, 1]),
    "only": (("--only", "mlp", "all"), ["mlp", "all"]),
    "self_generate": (("--self-generate", "0", "9"), [0, 9]),
    "texts": (("--text", "g", "h"), ["g", "h"]),
    "protocol": (("--protocol", "short"), "short"),
    "text_seqlen": (("--text-seqlen", "12"), 12),
    "windows": (("--windows", "13"), 13),
    "zero_shot": (("--zero-shot", "rte", "boolq"), ["rte", "boolq"]),
    "zero_shot_data": (("--zero-shot-data", "rows"), Path("rows")),
    "zero_shot_limit": (("--zero-shot-limit", "14"), 14),
    "keep_models": (("--keep-models",), True),
    "ray": (("--ray", "auto"), "auto"),
    "ray_cpus": (("--ray-cpus", "15"), 15),
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What is called by a command that does nothing else: its keyword arguments, but for who is told."""
    calls: dict[str, dict[str, Any]] = {}

    def stand_in(name: str) -> Any:
        def call(*_: Any, **given: Any) -> Any:
            calls[name] = {key: value for key, value in given.items() if key not in ("watcher", "progress", "notify")}
            return _Result()

        return call

    for name in ("api.prune", "planned.plan", "study.run.study", "generation.generate.generate",
                 "evaluation.evaluate.evaluate", "evaluation.against.errors_against",
                 "evaluation.against.check_against", "zeroshot.accuracy.zero_shot",
                 "zeroshot.accuracy.check_tasks"):  # fmt: skip
        monkeypatch.setattr(f"reprune.doors.{name}", stand_in(name.rpartition(".")[2]))
    return calls


class _Result(dict[str, Any]):
    """Of any command."""

    refusals = ()

    def __missing__(self, key: str) -> list[Any]:
        return []

    def record(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("command", "flags"),
    [("prune", {**_RUN, **_ONE}), ("plan", {**_RUN, **_ONE, **_PLAN}), ("study", {**_RUN, **_STUDY})],
)
def test_flags_of_prune_plan_and_study_are_passed_on_under_their_own_names(
    command: str,
    flags: dict[str, tuple[tuple[str, ...], Any]],
    cli: Cli,
    called: dict[str, dict[str, Any]],
) -> None:
    said = cli(command, "llama", "--out", "o", "-q", *(word for words, _ in flags.values() for word in words))
    assert (said.code, said.err) == (0, "")
    given = called[command]
    given.pop("ranks" if command == "prune" else "", None)
    assert given == {name: value for name, (_, value) in flags.items()}


@pytest.mark.parametrize("command", ["prune", "plan", "study"])
def test_without_flags_the_defaults_of_the_function_hold(
    command: str, cli: Cli, called: dict[str, dict[str, Any]]
) -> None:
    assert cli(command, "llama", "--out", "o", "-q").code == 0
    called[command].pop("ranks", None)
    assert called[command] == {}


def test_flags_of_evaluate_are_passed_on_under_their_own_names(cli: Cli, called: dict[str, dict[str, Any]]) -> None:
    common = {"device": "cpu", "precision": "float16", "trust_remote_code": True}
    flags = ["--device", "cpu", "--precision", "float16", "--trust-remote-code"]
    said = cli(
        *("evaluate", "llama", "--text", "a", "--seqlen", "5", "--windows", "6", "--against", "dense"),
        *("--zero-shot", "rte", "--zero-shot-data", "rows", "--zero-shot-limit", "7", "--json", *flags),
    )
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out).keys() == {"perplexity", "against", "zero_shot"}
    cut = {"protocol": None, "seqlen": 5, "max_windows": 6}
    rows = {"data": Path("rows"), "limit": 7}
    assert called == {
        "check_tasks": rows,
        "check_against": {},
        "evaluate": {**common, **cut},
        "errors_against": {**common, **cut},
        "zero_shot": {**common, **rows},
    }


def test_flags_of_generate_are_passed_on_under_their_own_names(cli: Cli, called: dict[str, dict[str, Any]]) -> None:
    settings = {
        "length": 40,
        "least": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "language": "any",
        "filters": ("code", "repetition"),
        "seed": 3,
        "batch_size": 2,
    }
    said = cli(
        *("generate", "llama", "--out", "o.jsonl", "--samples", "9", "--length", "40", "--least", "8", "-q"),
        *("--temperature", "0.5", "--top-p", "0.9", "--top-k", "4", "--language", "any", "--seed", "3"),
        *("--filters", "code", "repetition", "--batch-size", "2", "--endpoint", "http://x", "--endpoint-model", "m"),
        *("--concurrency", "5", "--device", "cpu", "--precision", "float16", "--trust-remote-code"),
    )
    assert (said.code, said.err) == (0, "")
    given = called["generate"]
    del given["ranks"]
    assert given == {
        "samples": 9,
        "settings": generation(settings),
        "endpoint": "http://x",
        "endpoint_model": "m",
        "concurrency": 5,
        "device": "cpu",
        "precision": "float16",
        "trust_remote_code": True,
    }
