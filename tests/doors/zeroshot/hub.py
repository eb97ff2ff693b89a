"""Rows of each task, as local lines and as on the Hub, and what a model is asked about the first one."""

from __future__ import annotations

from typing import Any

from datasets import ClassLabel, Features, Sequence, Value

TEXT = Value("string")
CHOICES = {"text": Sequence(TEXT), "label": Sequence(TEXT)}

_ROOF = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "endings": ["is using wrap.", "is ripping  tiles [substeps] off.", "sings.", "starts pulling."],
}
_EGGS = {
    "ind": 25,
    "activity_label": "Home and Garden",
    "ctx_a": "[header] How to boil eggs [title] Take a pot. [step] Fill it.",
    "ctx_b": "",
    "ctx": "[header] How to boil eggs [title] Take a pot. [step] Fill it.",
    "endings": ["Wait. [title] Eat.", "Run.", "Sleep.", "Sing."],
}
"""The fields of HellaSwag that are the same in local lines and on the Hub."""

# For each task: its place on the Hub, its split, the Hub's features, and rows (in local lines, on the Hub).
HUB: dict[str, tuple[tuple[str, str | None], str, Features, list[tuple[dict[str, Any], dict[str, Any]]]]] = {
    "boolq": (
        ("aps/super_glue", "boolq"),
        "validation",
        Features(
            {"question": TEXT, "passage": TEXT, "idx": Value("int32"), "label": ClassLabel(names=["False", "True"])}
        ),
        [
            (
                {"question": "is a tomato a fruit", "passage": "Tomato -- It is a berry.", "idx": 0, "label": True},
                {"question": "is a tomato a fruit", "passage": "Tomato -- It is a berry.", "idx": 0, "label": 1},
            ),
            (
                {"question": "do {{ stones }} float", "passage": "A “stone”\nsinks.", "idx": 1, "label": False},
                {"question": "do {{ stones }} float", "passage": "A “stone”\nsinks.", "idx": 1, "label": 0},
            ),
        ],
    ),
    "rte": (
        ("nyu-mll/glue", "rte"),
        "validation",
        Features(
            {
                "sentence1": TEXT,
                "sentence2": TEXT,
                "label": ClassLabel(names=["entailment", "not_entailment"]),
                "idx": Value("int32"),
            }
        ),
        [
            (
                {"premise": "It rains in Rome.", "hypothesis": "Rome is dry.", "label": "not_entailment", "idx": 7},
                {"sentence1": "It rains in Rome.", "sentence2": "Rome is dry.", "label": 1, "idx": 7},
            ),
            (
                {"premise": 'He said "no".', "hypothesis": "He spoke.", "label": "entailment", "idx": 8},
                {"sentence1": 'He said "no".', "sentence2": "He spoke.", "label": 0, "idx": 8},
            ),
        ],
    ),
    "hellaswag": (
        ("Rowan/hellaswag", None),
        "validation",
        Features(
            {
                "ind": Value("int32"),
                "activity_label": TEXT,
                "ctx_a": TEXT,
                "ctx_b": TEXT,
                "ctx": TEXT,
                "endings": Sequence(TEXT),
                "source_id": TEXT,
                "split": TEXT,
                "split_type": TEXT,
                "label": TEXT,
            }
        ),
        [
            (
                {
                    **_ROOF,
                    "label": 3,
                },
                {
                    **_ROOF,
                    "source_id": "activitynet~v_-JhWjGDPHMY",
                    "split": "val",
                    "split_type": "indomain",
                    "label": "3",
                },
            ),
            (
                {
                    **_EGGS,
                    "label": 0,
                },
                {
                    **_EGGS,
                    "source_id": "wikihow~1",
                    "split": "val",
                    "split_type": "zeroshot",
                    "label": "0",
                },
            ),
        ],
    ),
    "winogrande": (
        ("allenai/winogrande", "winogrande_xl"),
        "validation",
        Features({"sentence": TEXT, "option1": TEXT, "option2": TEXT, "answer": TEXT}),
        [
            (
                {
                    "qID": "3-2",
                    "sentence": "Ann beat Bea, so _ won.",
                    "option1": "Ann",
                    "option2": "Bea",
                    "answer": "1",
                },
                {"sentence": "Ann beat Bea, so _ won.", "option1": "Ann", "option2": "Bea", "answer": "1"},
            ),
            (
                {"qID": "3-1", "sentence": "_ 's hat fell.", "option1": "the man", "option2": "a tree", "answer": "2"},
                {"sentence": "_ 's hat fell.", "option1": "the man", "option2": "a tree", "answer": "2"},
            ),
        ],
    ),
    **{
        name: (
            ("allenai/ai2_arc", config),
            "test",
            Features({"id": TEXT, "question": TEXT, "choices": CHOICES, "answerKey": TEXT}),
            [
                (
                    {"id": "M_1", "question": "What falls?", "choices": ["Rain.", "The sun.", "Both."], "gold": 0},
                    {
                        "id": "M_1",
                        "question": "What falls?",
                        "choices": {"text": ["Rain.", "The sun.", "Both."], "label": ["A", "B", "C"]},
                        "answerKey": "A",
                    },
                ),
                (
                    {"id": "N_2", "question": "How many\nlegs?", "choices": ["1", "2", "4", "6", "None"], "gold": 3},
                    {
                        "id": "N_2",
                        "question": "How many\nlegs?",
                        "choices": {"text": ["1", "2", "4", "6", "None"], "label": ["1", "2", "3", "4", "5"]},
                        "answerKey": "4",
                    },
                ),
            ],
        )
        for name, config in (("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge"))
    },
    "openbookqa": (
        ("allenai/openbookqa", "main"),
        "test",
        Features({"id": TEXT, "question_stem": TEXT, "choices": CHOICES, "answerKey": TEXT}),
        [
            (
                {"query": "Predators eat", "choices": ["lions", "humans", "bunnies", "grass"], "gold": 2},
                {
                    "id": "8-343",
                    "question_stem": "Predators eat",
                    "choices": {"text": ["lions", "humans", "bunnies", "grass"], "label": ["A", "B", "C", "D"]},
                    "answerKey": "C",
                },
            ),
            (
                {
                    "query": "Fog is likely around: ",
                    "choices": ["a marsh", "a tundra", "plains", "a desert"],
                    "gold": 0,
                },
                {
                    "id": "1129",
                    "question_stem": "Fog is likely around: ",
                    "choices": {"text": ["a marsh", "a tundra", "plains", "a desert"], "label": ["A", "B", "C", "D"]},
                    "answerKey": "A",
                },
            ),
        ],
    ),
}

# Written by hand: what is asked about the first row of each task, and the right answer.
ASKED: dict[str, tuple[list[tuple[str, str]], int]] = {
    "boolq": (
        [
            ("Tomato -- It is a berry.\nQuestion: is a tomato a fruit?\nAnswer:", " no"),
            ("Tomato -- It is a berry.\nQuestion: is a tomato a fruit?\nAnswer:", " yes"),
        ],
        1,
    ),
    "rte": (
        [
            ("It rains in Rome.\nQuestion: Rome is dry. True or False?\nAnswer:", " True"),
            ("It rains in Rome.\nQuestion: Rome is dry. True or False?\nAnswer:", " False"),
        ],
        1,
    ),
    "hellaswag": (
        [
            ("Roof shingle removal: A man is sitting on a roof. He", " is using wrap."),
            ("Roof shingle removal: A man is sitting on a roof. He", " is ripping tiles off."),
            ("Roof shingle removal: A man is sitting on a roof. He", " sings."),
            ("Roof shingle removal: A man is sitting on a roof. He", " starts pulling."),
        ],
        3,
    ),
    "winogrande": ([("Ann beat Bea, so Ann", " won."), ("Ann beat Bea, so Bea", " won.")], 0),
    "arc_easy": ([("Question: What falls?\nAnswer:", f" {each}") for each in ("Rain.", "The sun.", "Both.")], 0),
    "arc_challenge": ([("Question: What falls?\nAnswer:", f" {each}") for each in ("Rain.", "The sun.", "Both.")], 0),
    "openbookqa": ([("Predators eat", f" {each}") for each in ("lions", "humans", "bunnies", "grass")], 2),
}
