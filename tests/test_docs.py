"""Every command and every script in the docs runs, as a reader would run it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from types import CodeType
from typing import Any

import markdown
import pytest
import torch
import transformers as tf
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import reprune
from reprune.doors.command.cli import main
from reprune.doors.evaluation.against import AgainstDense
from reprune.doors.evaluation.perplexity import Perplexity
from reprune.doors.planned import Plan
from reprune.doors.status import Status
from reprune.doors.verify import Check, Verification
from reprune.doors.zeroshot.accuracy import TaskScore, ZeroShot
from reprune.doors.zeroshot.rows import LAYOUTS
from reprune.engine.compare import BlockError
from reprune.engine.forecast import Forecast
from reprune.planning.layers import resolve_recipe
from reprune.planning.recipe import Recipe
from tests import tiny
from tests.doors.conftest import record_of
from tests.engine import together
from tests.packages import install
from tests.prose import write_as_if_prose

ROOT = Path(__file__).parent.parent
PAGES = (
    "docs/pruning.md",
    "docs/coming.md",
    "docs/checking.md",
    "docs/using.md",
    "docs/recipe.md",
    "docs/generation.md",
    "docs/study.md",
    "docs/adding.md",
    "docs/extending.md",
    "docs/distributed.md",
    "docs/python.md",
    "README.md",
)
"""In the order in which a reader meets them."""
_BY_NAME = {"recipe", "versions", "model.files", "files", "self_generation.peak_memory_bytes"}
_PAIRS = ({"before", "after"}, {"last", "kept"})
_FILE = re.compile(r"# (\S+\.(?:py|toml))\n")
_BLOCK = re.compile(r"^```(console|python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    tiny.save("llama", folder / "my-model")
    _save_xlm(folder / "my-xlm")
    (folder / "calibration.txt").write_text(tiny.text())
    (folder / "test.txt").write_text(tiny.text(120_000)[60_000:])
    _add_chats(folder / "my-model", folder / "chats.jsonl")
    return folder


def _add_chats(model: Path, file: Path) -> None:
    """Write chats, and a template for them to the model's tokenizer."""
    tokenizer = tf.AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ bos_token }}{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}"
    tokenizer.save_pretrained(model)
    pairs = pairwise(tiny.text(6_000).split("\n\n"))
    chats = ([{"role": "user", "content": one}, {"role": "assistant", "content": other}] for one, other in pairs)
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))


def _save_xlm(folder: Path) -> None:
    """Write a tiny model of random weights whose blocks are in four lists."""
    config = tf.XLMConfig(vocab_size=tiny.VOCABULARY, emb_dim=32, n_layers=3, n_heads=4, causal=True)
    torch.manual_seed(0)
    tf.XLMWithLMHeadModel(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def commands(block: str) -> list[str]:
    """The lines that a reader types, each with its continuation lines."""
    joined = block.replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def _pruned(name: str, folder: Path, *settings: str, reconstruct: str = "LR") -> Path:
    """A tiny model, pruned to 2:4 unless the settings say otherwise."""
    tiny.save(name, folder / name)
    flags: dict[str, Any] = {"pruner": "magnitude", "sparsity": "2:4", "samples": 4, "seqlen": 16}
    flags |= {"calibration": "manual", "reconstruct": reconstruct, "settings": settings}
    reprune.prune(folder / name, folder / "out", **flags)
    return folder / "out"


def _check(out: Path) -> None:
    """Run the script of the page on checking against a result."""
    page = (ROOT / "docs/checking.md").read_text(encoding="utf-8")
    [script] = [block for kind, block in _BLOCK.findall(page) if kind == "python" and "safe_open" in block]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", str(out)])
        exec(compile(script, "docs/checking.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_script_of_the_page_runs(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("REPRUNE_CACHE", str(folder.parent / "cache"))
    monkeypatch.setattr(sys, "argv", ["script"])
    write_as_if_prose(monkeypatch)
    found = _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert found
    for kind, block in found:
        if named := _FILE.match(block):
            Path(named[1]).parent.mkdir(exist_ok=True)
            Path(named[1]).write_text(block, encoding="utf-8")
            continue
        if kind == "python":
            exec(compile(block, page, "exec"), {"__name__": "__main__"})  # the page's own script
            continue
        for command in commands(block):
            words = shlex.split(command)
            if words[:2] == ["pip", "install"]:
                install(Path(words[2]), monkeypatch)
                continue
            if words[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "reprune"]:  # test_launchers.py starts torchrun
                ranks = together.start(2, together.command, *words[5:])
                assert [rank.wait(300).code for rank in ranks] == [0, 0], command
                continue
            if words[0] == "accelerate":  # in separate processes
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                launched = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words[1:]]
                assert subprocess.run(launched, env=environment, check=False).returncode == 0, command
                continue
            assert words[0] == "reprune", command
            if "--ray" in words:  # in a process of its own, whose cluster ends with it
                ended = together.start_alone(together.command, *words[1:]).wait(300)
                assert ended.code == 0, (command, ended.err)
                continue
            with pytest.raises(SystemExit) as exited:
                main(words[1:])
            assert exited.value.code == 0, command


@pytest.mark.parametrize(
    ("name", "settings"),
    [("llama", ()), ("gpt2", ()), ("llama", ("sparsity_by_name={down_proj: 0.3, '0.*': 0.4}",))],
)
def test_the_script_that_checks_a_result_passes_a_right_one_and_no_other(
    name: str, settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2's matrices are square or not, and transposed in the file; some have another pattern, given by name."""
    out = _pruned(name, tmp_path, *settings)
    _check(out)
    matrices = [matrix for block in record_of(out)["blocks"] for matrix in block["matrices"]]
    assert capsys.readouterr().out.count("\n") == len(matrices)
    file = min(out.glob("*.safetensors"))  # the first block's
    tensors = load_file(file)
    weights = next(tensor for key, tensor in tensors.items() if key.endswith(("o_proj.weight", "attn.c_proj.weight")))
    weights[weights == 0] = 1.0
    save_file(tensors, file)
    with pytest.raises(AssertionError):
        _check(out)


def test_the_script_that_checks_a_result_says_what_it_does_not_cover(tmp_path: Path) -> None:
    """Experts have other names in the checkpoint than in the model."""
    with pytest.raises(SystemExit, match=r"lists of blocks with these names: .*; expected one"):
        _check(_pruned("mixtral", tmp_path))


def _scripts_on_using() -> list[CodeType]:
    """The scripts that write a model card, that tune, and that set to zero again what merging has filled."""
    page = (ROOT / "docs/using.md").read_text(encoding="utf-8")
    return [compile(block, "docs/using.md", "exec") for kind, block in _BLOCK.findall(page) if kind == "python"]


def test_the_model_card_says_what_the_hub_reads_and_leaves_the_result_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    _pruned("llama", tmp_path).rename(tmp_path / "sparse")
    monkeypatch.chdir(tmp_path)
    record = json.loads(Path("sparse/reprune.json").read_text(encoding="utf-8"))
    record["model"]["name"] = "owner/llama@main"  # no id that the Hub takes as a base model
    Path("sparse/reprune.json").write_text(json.dumps(record), encoding="utf-8")
    exec(_scripts_on_using()[0], {"__name__": "__main__"})
    card = ModelCard.load("sparse/README.md")
    assert (card.data.base_model, card.data.license) == ("owner/llama", "apache-2.0")
    assert card.data.tags == ["pruned", "sparse", "magnitude"]
    assert "# owner/llama, 50% sparse" in card.text and "(pattern 2:4, magnitude,\nLR) on manual." in card.text
    assert reprune.verify("sparse")


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_scripts_that_tune_a_result_keep_its_zeros(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the zeros of experts, which are one parameter for a whole layer."""
    _, train, merge = _scripts_on_using()
    monkeypatch.chdir(tmp_path)
    model = tiny.build(name)
    with torch.no_grad():
        zeros = {key: torch.rand_like(weight) < 0.5 for key, weight in model.named_parameters() if weight.dim() > 1}
        for key, zero in zeros.items():
            model.get_parameter(key).masked_fill_(zero, 0)
    model.save_pretrained("sparse")
    tiny.tokenizer().save_pretrained("sparse")
    exec(train, {"__name__": "__main__"})
    tuned = tf.AutoModelForCausalLM.from_pretrained("tuned")
    assert all((tuned.get_parameter(key)[zero] == 0).all() for key, zero in zeros.items())
    assert all((tuned.get_parameter(key) != model.get_parameter(key)).any() for key in zeros)
    for weight in tuned.parameters():
        weight.data += 1  # as merging does
    tuned.save_pretrained("tuned")
    exec(merge, {"__name__": "__main__"})
    assert {*re.findall(r"^(?!lm_head)\S+ (\d+) of \d+ zeros kept$", capsys.readouterr().out, re.MULTILINE)} == {"0"}
    for key, weight in tf.AutoModelForCausalLM.from_pretrained("tuned-sparse").named_parameters():
        filled = tuned.get_parameter(key)
        assert torch.equal(weight, filled.masked_fill(zeros[key], 0) if key in zeros else filled), key


def test_what_was_added_by_code_loads_without_it(folder: Path) -> None:
    """Runs after the pages."""
    ids = torch.arange(3, 35).unsqueeze(0)
    plain = tf.XLMWithLMHeadModel.from_pretrained(folder / "sparse-xlm").eval()
    by_code = tf.AutoModelForCausalLM.from_pretrained(folder / "sparse-xlm", trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.allclose(plain(ids, use_cache=False).logits, by_code(ids).logits, atol=1e-5)
    assert (plain.transformer.ffns[1].lin1.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_the_recipe_page_names_every_key_with_its_default() -> None:
    def keys(content: dict[str, object], prefix: str = "") -> set[str]:
        return {
            key
            for name, value in content.items()
            for key in (keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name})
        }

    known = keys(Recipe(model="x", sparsity_by_name={"": "0.5"}).model_dump()) - {"sparsity_by_name."}
    known |= {"sparsity_by_name", "pruner.settings"}  # their keys are patterns, and a package's own
    page = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", page, re.MULTILINE))
    assert known == told.keys()
    default = resolve_recipe("x")
    for key, said in told.items():
        in_words = said in ("(required)", "by the rung", "all five") or attrgetter(key)(default) is None
        value = said.replace("`", "").removesuffix(" (all)")
        assert in_words or resolve_recipe("x", settings=[f"{key}={value}"]) == default, key


def test_the_page_on_python_names_all_there_is() -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in page for name in reprune.__all__)
    functions = {name for name in reprune.__all__ if name.islower()}
    methods = {name for name in vars(reprune.Watcher) if not name.startswith("_")}
    assert functions | methods == set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE))
    flags = inspect.signature(reprune.prune).parameters
    taken = {name for function in functions for name in inspect.signature(getattr(reprune, function)).parameters}
    assert {name for name in {*taken} - {*flags} if not re.search(rf"\b{name}\b", page)} == set()


@pytest.mark.parametrize(
    "returned", [Plan, Forecast, Status, Verification, Check, Perplexity, AgainstDense, BlockError, ZeroShot, TaskScore]
)
def test_what_the_page_on_python_says_of_what_is_returned_is_there(returned: type) -> None:
    """Names in brackets after a name are fields of its entries."""
    inner = {"Forecast": "forecast", "Check": "checks", "BlockError": "blocks", "TaskScore": "tasks"}
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    if returned.__name__ in inner:
        [said] = re.findall(rf"`{inner[returned.__name__]}` \(([^)]*)\)", page)
    else:
        [said] = re.findall(rf"`{returned.__name__}`(?:: |, true if it )(.*) \|$", page, re.MULTILINE)
        said = re.sub(r"\([^)]*`[^)]*\)", "", said)
    named = set(re.findall(r"`(\w+)(?:\(\))?`", said))
    assert named
    assert named <= {*dir(returned), *inspect.get_annotations(returned)}


def test_the_page_on_the_record_names_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked on a run with everything on record but what only several processes or machines or a Hub model have."""
    monkeypatch.setenv("REPRUNE_CACHE", str(tmp_path / "cache"))
    write_as_if_prose(monkeypatch)
    everything = ("solver.start=least-squares", "distill=1", "solver.epochs=1", "sparsity_by_name={self_attn.*: 0.3}")
    everything += ("self_generate=2", "self_generate.filters=[]")
    record = record_of(_pruned("mixtral", tmp_path, *everything, reconstruct="BR+GP"))
    elsewhere = {f"{step}.exchange.{what}" for step in ("windows[]", "distillation") for what in ("bytes", "seconds")}
    elsewhere |= {"ranks", "peak_memory_bytes_by_rank", "model.commit"}
    elsewhere |= {"windows[].machine", "distillation.machine"}  # of a run that was resumed on another
    page = (ROOT / "docs/record.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([a-z0-9_.\[\]]+)`", page, re.MULTILINE))
    assert _keys(record) | elsewhere == named - {"windows[].guard", "distillation", "self_generation"}


def _keys(entry: object, path: str = "") -> set[str]:
    """The keys of a record, and of all entries of its lists; a mapping by names, or a pair, counts as one key."""
    if isinstance(entry, list) and entry and isinstance(entry[0], dict):
        return {key for each in entry for key in _keys(each, f"{path}[]")}
    if not isinstance(entry, dict) or path in _BY_NAME or entry.keys() in _PAIRS:
        return {path}
    return {key for name, value in entry.items() for key in _keys(value, f"{path}.{name}".removeprefix("."))}


def test_the_page_on_checking_shows_the_form_of_each_tasks_rows() -> None:
    page = (ROOT / "docs/checking.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+\.jsonl)` \| (?:`(\{.*?\})`|the same)", page, re.MULTILINE)
    lines = {task: (file, example or LAYOUTS["arc_easy"].example) for task, file, example in rows}
    assert lines == {task: (layout.file, layout.example) for task, layout in LAYOUTS.items()}


def test_every_page_is_in_the_navigation() -> None:
    pages = set(_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert pages == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def _pages(entries: list[dict[str, Any]]) -> Iterator[str]:
    for entry in entries:
        for under in entry.values():
            yield from _pages(under) if isinstance(under, list) else [under]


def test_every_link_to_a_page_or_a_heading_leads_there() -> None:
    pages = [path for path in (ROOT / "docs").rglob("*.md")] + [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    headings = {page: set(_anchors(page)) for page in pages}
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if ":" in link:  # on another site
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), (page.name, link)
            assert not anchor or anchor in headings[target], (page.name, link)


def _anchors(page: Path) -> Iterator[str]:
    built = markdown.markdown(page.read_text(encoding="utf-8"), extensions=["toc", "fenced_code"])
    yield from re.findall(r'<h\d id="([^"]+)"', built)


def test_items_and_tables_of_each_page_are_built_as_such() -> None:
    """An item that goes on after a table is indented by four spaces, and a blank line comes before the next."""
    extensions = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["markdown_extensions"]
    for page in (ROOT / "docs").rglob("*.md"):
        built = markdown.markdown(page.read_text(encoding="utf-8"), extensions=extensions)
        assert re.findall(r"^(?:- |\|).*|<code>\|.*", built, re.MULTILINE) == [], page.name


def test_the_source_distribution_holds_what_tests_read_and_call_for() -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    included = hatch["sdist"]["include"]
    assert {"src", "tests", "benchmarks", "docs", "mkdocs.yml", "Makefile", "README.md", "LICENSE"} <= {*included}
    assert all((ROOT / name).exists() for name in included)
