"""The whole main job on a model and texts of the Hub, by the libraries that ask it, beside a server of that form."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it ships no types

from tests import tiny
from tests.hub import COMMIT, serving

JOB = """
import reprune
plan = reprune.plan("owner/tiny")
assert plan.undownloaded_bytes and plan.unread == ("c4",) and not plan.refusals
record = reprune.prune("owner/tiny", "out", samples=8, seqlen=32, epochs=1)
source = record["data"]["sources"][0]
print(record["model"]["commit"], source["name"], source["commit"])
for text in ("c4", "wikitext2", "ptb", "owner/rows", "owner/rows@main:default:test:text"):
    print(text, reprune.evaluate("out", text, seqlen=32).perplexity > 1)
"""


def rows(file: Path, column: str, texts: Sequence[str]) -> None:
    """A file of rows, as the Hub has them: Parquet, or gzipped JSON Lines with further columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.table({column: texts}), file)
    else:
        lines = (json.dumps({column: text, "timestamp": "2019-04-25T12:57:54Z", "url": "http://a.b"}) for text in texts)
        file.write_bytes(gzip.compress("\n".join(lines).encode()))


def test_a_model_of_the_hub_is_pruned_and_evaluated_on_the_texts_of_the_field(tmp_path: Path) -> None:
    """C4 is in more shards than are read, WikiText-2 beside other configurations, and PTB on its branch of Parquet."""
    models, sets = tmp_path / "hub" / "models", tmp_path / "hub" / "datasets"
    tiny.save("llama", models / "owner" / "tiny")
    text = tiny.text(12_000)
    half = len(text) // 2
    learned, other = ([part[place : place + 400] for place in range(0, half, 400)] for part in (text, text[half:]))
    for shard in range(2):
        rows(sets / "allenai" / "c4" / "en" / f"c4-train.0000{shard}-of-01024.json.gz", "text", learned)
        rows(sets / "allenai" / "c4" / "en" / f"c4-validation.0000{shard}-of-00008.json.gz", "text", other)
    wikitext, configs = sets / "Salesforce" / "wikitext", []
    for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1"):
        for split in ("test", "train"):
            rows(wikitext / config / f"{split}-00000-of-00001.parquet", "text", [f"{line}\n" for line in other])
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in ("test", "train")]
        configs.append({"config_name": config, "data_files": files})
    (wikitext / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    for split in ("test", "train"):
        rows(sets / "ptb-text-only/ptb_text_only/penn_treebank" / split / "0000.parquet", "sentence", other)
    rows(sets / "owner" / "rows" / "data" / "test-00000-of-00001.parquet", "text", other)
    home = str(tmp_path / "home")
    with serving(tmp_path / "hub") as hub:
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": home, "HF_HUB_OFFLINE": "0", "REPRUNE_CACHE": home}
        done = subprocess.run(
            [sys.executable, "-c", JOB],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    evaluated = ("c4", "wikitext2", "ptb", "owner/rows", "owner/rows@main:default:test:text")
    assert done.stdout.splitlines() == [f"{COMMIT} c4 {COMMIT}", *(f"{text} True" for text in evaluated)]
    read = {"c4-train.00000-of-01024.json.gz", "c4-validation.00000-of-00008.json.gz"}
    assert {name for name in hub.sent if name.endswith(".gz")} == read
