"""Paths in sources are found, whatever follows them, and written so that a result can be published."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import pyarrow.parquet  # type: ignore[import-untyped]  # it ships no types
import pytest

from reprune.planning.layers import read_recipe, resolve_recipe
from reprune.planning.paths import absolute, beside, last_part, local_name, on_record, with_path, with_paths
from reprune.planning.sources import find_source, load_documents


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "texts").mkdir()
    for name in ("a.jsonl", "b=2.txt"):
        (tmp_path / "texts" / name).write_text("{}")
    (tmp_path / "texts" / "year=2024").mkdir()
    (tmp_path / "manual").write_text("not the known source of that name")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("texts/a.jsonl", "X"),
        ("texts/a.jsonl=64", "X=64"),
        ("texts/a.jsonl:body", "X:body"),
        ("texts/a.jsonl:body=64", "X:body=64"),
        ("texts/b=2.txt", "X"),
        ("texts/year=2024", "X"),
        ("texts/year=2024=8", "X=8"),
        ("texts/a.jsonl=+8", "X=+8"),
        ("texts", "X"),
        ("texts:config:train:body=8", "X:config:train:body=8"),
        ("texts::test", "X::test"),
        ("~nobody-has-this-name/a.txt", "~nobody-has-this-name/a.txt"),
        (f"{'long' * 99}.txt", f"{'long' * 99}.txt"),
        ("manual=3", "manual=3"),
        ("c4", "c4"),
        ("owner/name:config=8", "owner/name:config=8"),
        ("texts/missing.txt", "texts/missing.txt"),
    ],
)
def test_the_path_of_a_source_is_changed_and_the_rest_kept(source: str, expected: str) -> None:
    assert with_path(source, lambda path: "X") == expected


def test_a_recipe_beside_a_result_names_no_folder_above_what_they_share(here: Path) -> None:
    recipe = absolute(resolve_recipe(str(here / "model"), {}, {"calibration": ["texts/a.jsonl=4", "manual"]}))
    assert recipe.calibration == [f"{here}/texts/a.jsonl=4", "manual"]
    written = beside(recipe, here / "results" / "one", here / "model")
    assert written.calibration == ["../../texts/a.jsonl=4", "manual"]
    assert written.model == "model"


@pytest.mark.parametrize(
    ("folder", "text", "written"),
    [
        ("/a/b/out", "/a/b/t.txt", "../t.txt"),
        ("/a/b/out", "/a/b/texts/t.txt", "../texts/t.txt"),
        ("/a/b/study/cells/one", "/a/b/texts/t.txt", "../../../texts/t.txt"),
        ("/a/b/results/study/cells/one", "/a/t.txt", "../../../../../t.txt"),
        ("/out", "/t.txt", "../t.txt"),
        ("/a/b/results/study/cells/one", "/a/b/texts/t.txt", "./t.txt"),
        ("/out", "/home/alice/t.txt", "./t.txt"),
        ("/disk/out", "/home/alice/t.txt", "./t.txt"),
        ("/disk/out", "/home/alice/c4", "./c4"),
    ],
)
def test_folders_that_are_not_near_a_result_are_not_named(
    folder: str, text: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in (text, "/"))
    recipe = resolve_recipe("model", {}, {"calibration": [f"{text}=4"], "heldout": [text]})
    found = beside(recipe, Path(folder), Path("/models/model"))
    assert (found.calibration, found.heldout) == ([f"{written}=4"], [written])


@pytest.mark.parametrize("source", ["/home/alice/gone.jsonl", "/home/alice/gone.jsonl:body=4", "/home/al:ice/gone.txt"])
def test_folders_of_a_text_that_is_gone_are_not_named(source: str, here: Path) -> None:
    recipe = resolve_recipe("model", {}, {"calibration": [source, f"{here}/gone.txt:body=4"], "heldout": [source]})
    found = beside(recipe, here / "out", here / "model")
    kept = f"./{source.rpartition('/')[2]}"
    assert (found.calibration, found.heldout) == ([kept, "../gone.txt:body=4"], [kept])
    assert with_paths(recipe, last_part).calibration == [kept, "./gone.txt:body=4"]


def test_a_recipe_file_is_read_from_any_folder(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (here / "one" / "c4").mkdir(parents=True)
    sources = ["../texts/a.jsonl:body=4", "../texts/a.jsonl=+4", "../texts:config:train:body=4", "../texts/year=2024"]
    (here / "one" / "recipe.yaml").write_text(f"calibration: {[*sources, 'c4', 'manual', '~/a.txt']}")
    monkeypatch.chdir(here / "texts")
    found = read_recipe(Path("../one/recipe.yaml"))["calibration"]
    assert found == [*(f"../one/{source}" for source in sources), "c4", "manual", "~/a.txt"]


@pytest.mark.parametrize("key", ["calibration", "heldout"])
def test_one_path_in_a_recipe_file_is_found_as_a_list_of_one_is(here: Path, key: str) -> None:
    file = here / "texts" / "recipe.yaml"
    for text in ("a.jsonl=4", "[a.jsonl=4]"):
        file.write_text(f"{key}: {text}")
        assert read_recipe(file) == {key: [f"{here}/texts/a.jsonl=4"]}


def test_a_model_has_the_same_name_in_every_working_folder(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--meta-llama--Llama-3.2-1B" / "snapshots" / (40 * "a")
    for folder in (here, here / "texts"):
        monkeypatch.chdir(folder)
        assert local_name("meta-llama/Llama-3.2-1B", cached) == "meta-llama/Llama-3.2-1B"
        assert local_name("meta-llama/Llama-3.2-1B", here / "models" / "Llama") == "Llama-3.2-1B", "a local folder"
        assert local_name("../models/llama", here / "models" / "llama") == "llama"
        assert local_name("texts/a.gguf", here / "cache" / "gguf") == "a.gguf"
        assert local_name("/models/llama", Path("/models/llama")) == "llama"
        for dots in (".", "..", "../.."):
            assert local_name(dots, Path("/models/llama")) == "llama"


def test_a_commit_is_on_record_of_a_model_that_is_given_by_its_hub_id(tmp_path: Path) -> None:
    commit = 40 * "a"
    found = tmp_path / "models--owner--tiny" / "snapshots" / commit
    assert on_record("owner/tiny@main", found) == {"name": "owner/tiny@main", "commit": commit}
    found.mkdir(parents=True)
    Path("link").symlink_to(found)
    assert on_record("link", found) == {"name": "link"}, "link@commit is no model"
    assert on_record(str(found), found) == {"name": commit}
    assert on_record("owner/tiny", tmp_path) == {"name": "tiny"}, "what is not in the cache was a local folder"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "b.jsonl", "b.jsonl.gz", "b.parquet"])
def test_a_link_tells_the_kind_of_a_file_whose_own_name_does_not(name: str, here: Path) -> None:
    """As in the Hub's cache, whose files are named by their content."""
    link, file = here / "texts" / name, here / "blob"
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pa.table({"text": ["one"]}), file)
    else:
        data = b"one" if ".txt" in name else b'{"text": "one"}\n'
        file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    link.unlink(missing_ok=True)
    link.symlink_to(file)
    documents = load_documents(f"texts/{name}", "train")
    assert (list(documents), documents.name) == (["one"], name)
    assert find_source(f"texts/{name}") == find_source(str(link))
    recipe = absolute(resolve_recipe("model", {}, {"calibration": [f"texts/{name}=4"]}))
    assert recipe.calibration == [f"{link}=4"]
    assert beside(recipe, here / "out", here / "model").calibration == [f"../texts/{name}=4"]
