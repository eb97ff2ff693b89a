"""What pip installs for reprune, and for each of its extras, is enough for its purpose."""

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reprune.model.gguf import OLDEST
from tests.tiny import text

ROOT = Path(__file__).parent.parent


def _project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def _asked_for(extra: str) -> list[Requirement]:
    project = _project()
    lines = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    return [Requirement(line) for line in lines]


def _site(extra: str, folder: Path) -> Path:
    """The packages that pip installs for reprune with an extra, and no others, as links to those of this Python."""
    waiting, seen = _asked_for(extra), set()
    while waiting:
        asked = waiting.pop()
        extras = asked.extras or {""}
        key = (canonicalize_name(asked.name), *sorted(extras))
        if key in seen or not (asked.marker is None or asked.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        try:
            found = distribution(asked.name)
        except PackageNotFoundError:  # for another system or Python
            continue
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))).resolve())
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": one}) for one in {"", *extras}):
                needed.marker = None
                waiting.append(needed)
    return folder


def _run(site: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[:0] = [{str(ROOT / 'src')!r}, {str(site)!r}]; {code}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_extras_a_model_is_pruned(llama: Path, tmp_path: Path) -> None:
    (site := tmp_path / "site").mkdir()
    (source := tmp_path / "text.txt").write_text(text(), encoding="utf-8")
    how = ("--calibration", str(source), "--samples", "2", "--seqlen", "16", "--epochs", "1", "--device", "cpu")
    command = "from reprune.doors.command.cli import main; main()"
    done = _run(_site("", site), command, "prune", str(llama), "--out", str(tmp_path / "out"), *how)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "reprune.json").exists()


@pytest.mark.parametrize(
    ("extra", "imports"),
    [
        ("eval", "lm_eval.tasks, reprune.doors.zeroshot.likelihoods"),
        ("gguf", "gguf, transformers.modeling_gguf_pytorch_utils, accelerate"),
        ("report", "matplotlib.figure, jinja2"),
        ("generate", "py3langid.langid, datasketch"),
        ("endpoint", "openai, py3langid.langid, datasketch"),
    ],
)
def test_an_extra_brings_what_is_imported_for_it(extra: str, imports: str, tmp_path: Path) -> None:
    done = _run(_site(extra, tmp_path), f"import {imports}")
    assert done.returncode == 0, done.stderr


def test_the_extra_gguf_brings_a_transformers_that_reads_gguf_files() -> None:
    extras = _project()["optional-dependencies"]
    assert f"transformers>={'.'.join(map(str, OLDEST))}" in extras["gguf"]
    packages = [line for line in extras["dev"] if line.startswith(("gguf", "accelerate"))]
    assert packages == [line for line in extras["gguf"] if line.startswith(("gguf", "accelerate"))]
