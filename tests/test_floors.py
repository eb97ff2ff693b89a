"""Each floor of the code imports only itself and those below, and importing reprune costs nothing."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import reprune

_ROOT = Path(reprune.__file__).parent
_FLOORS = ["math", "files", "model", "planning", "engine", "doors"]
_ROOMS = [
    "printable",
    "formats",
    "records",
    "rates",
    "groups",
    "threads",
    "devices",
    "memory",
    "status",
    "found",
    "given",
    "processes",
    "prepare",
    "generation",
    "api",
    "planned",
    "verify",
    "progress",
    "drawing",
    "evaluation",
    "zeroshot",
    "study",
    "report",
    "demo",
    "command",
]
"""The parts of the last floor; each imports only those before it."""
_FOR_ALL = {"reprune", "reprune.errors"}
_BANNED = {"utils", "util", "helpers", "helper", "manager", "managers", "misc", "common"}


@cache
def _trees() -> dict[Path, ast.Module]:
    """All modules."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(_ROOT.rglob("*.py"))}


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The absolute names of all modules of reprune that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            # `from reprune import math` names a module, `from reprune.errors import X` does not
            yield from (f"{base}.{alias.name}" if base == "reprune" else base for alias in node.names)


def _floor(name: str) -> int | None:
    """The floor of reprune.FLOOR.module; None for what belongs to no floor."""
    parts = name.split(".")
    return _FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in _FLOORS else None


def _dotted(path: Path) -> str:
    parts = path.relative_to(_ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_a_module_imports_only_its_own_floor_and_those_below() -> None:
    for path, tree in _trees().items():
        name = _dotted(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        own = _floor(name)
        for imported in _imports(tree, package):
            if imported.split(".")[0] != "reprune" or imported in _FOR_ALL:
                continue
            floor = _floor(imported)
            assert floor is not None or imported == "reprune.__version__", f"{name} imports {imported}, of no floor"
            assert name != "reprune.errors", f"errors.py imports {imported}"
            if own is not None and floor is not None:  # reprune/__init__.py may import from every floor
                assert floor <= own, f"{name} imports {imported}, of a floor above"


def test_a_room_of_the_doors_imports_only_those_before_it() -> None:
    for path in (path for path in _trees() if path.is_relative_to(_ROOT / "doors") and _dotted(path).count(".") > 1):
        room = _dotted(path).split(".")[2]
        imported = {name.split(".")[2] for name in _imports(_trees()[path], "") if "doors." in name}
        assert imported <= {*_ROOMS[: _ROOMS.index(room) + 1]}, path


def test_every_part_of_the_doors_has_a_place_in_their_order() -> None:
    there = {path.stem for path in (_ROOT / "doors").iterdir() if not path.name.startswith("__")}
    assert there == set(_ROOMS)


def test_a_module_begins_with_what_it_does() -> None:
    assert [path for path, tree in _trees().items() if not ast.get_docstring(tree)] == []


def test_the_models_floor_says_what_each_of_its_modules_is_about() -> None:
    folder = _ROOT / "model"
    named = re.findall(r"`(\w+)`", str(ast.get_docstring(_trees()[folder / "__init__.py"])))
    assert sorted(named) == sorted({path.stem for path in folder.glob("*.py")} - {"__init__"})


def test_a_module_is_named_for_what_it_is() -> None:
    assert [path for path in _trees() if _BANNED & {*path.relative_to(_ROOT).with_suffix("").parts}] == []


def test_the_math_floor_knows_no_models() -> None:
    foreign = {"transformers", "safetensors", "datasets", "accelerate", "huggingface_hub", "tokenizers"}
    for path in (_ROOT / "math").glob("*.py"):
        names = {name.split(".")[0] for name in _imports(_trees()[path], "")}
        assert not names & foreign, path.name


def test_every_package_is_a_floor() -> None:
    packages = {path.parent.name for path in _ROOT.glob("*/__init__.py")}
    assert packages == set(_FLOORS)


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_reprune_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "datasets", "numpy", "pydantic")
    found = _python(f"import sys, reprune; print([name for name in {heavy} if name in sys.modules])")
    assert found.strip() == "[]"


def test_what_is_on_record_is_read_and_brought_together_without_pytorch() -> None:
    found = _python("import sys, reprune.doors.records.rows; print('torch' in sys.modules)")
    assert found.strip() == "False"


def test_the_names_of_the_api_are_there_to_be_called_whatever_was_imported_before() -> None:
    # In a separate process with a fresh import: modules that are already imported would hide mistakes.
    names = sorted({*reprune.__all__, "prune", "plan", "resume", "status", "evaluate", "study", "report"})
    code = f"""
import importlib, sys
for first in ("reprune", "reprune.doors.api"):
    for name in [name for name in sys.modules if name.partition(".")[0] == "reprune"]:
        del sys.modules[name]
    importlib.import_module(first)
    print([name for name in 2 * {names} if not callable(getattr(sys.modules["reprune"], name, None))])
"""
    assert _python(code).split() == ["[]", "[]"]


def test_the_names_of_the_api_are_listed_before_any_is_imported() -> None:
    found = _python("import sys, reprune; print({*reprune.__all__} <= {*dir(reprune)}, 'torch' in sys.modules)")
    assert found.strip() == "True False"


def test_the_packages_docstring_names_all_of_the_api() -> None:
    assert {name for name in reprune.__all__ if name not in str(reprune.__doc__)} == set()


def test_a_name_that_the_api_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'reprune' has no attribute 'prun'"):
        _ = reprune.prun


def test_on_windows_no_door_is_imported_and_the_error_can_be_caught() -> None:
    code = "import sys, reprune; sys.platform = 'win32'\ntry: reprune.plan\nexcept reprune.InputError as error: "
    assert _python(f"{code}print(error, 'torch' in sys.modules)").endswith("on Windows, run it in WSL. False\n")


def test_without_docstrings_no_door_is_imported_as_transformers_needs_them() -> None:
    command = [sys.executable, "-OO", "-m", "reprune", "status", "nowhere"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("error: Transformers needs docstrings, which -OO and PYTHONOPTIMIZE=2 strip;")


def test_how_far_a_run_is_is_told_without_waiting_for_pytorch(tmp_path: Path) -> None:
    """It is asked again and again, on a machine that the run keeps busy."""
    recipe = {"model": "m", "pruner": {"name": "wanda"}, "sparsity": "0.5", "reconstruct": "LR"}
    error = {"after": 0.25}
    window = {"blocks": [0], "loss": "squared", "relative_calibration_error": error, "relative_heldout_error": error}
    (tmp_path / "reprune.json").write_text(json.dumps({"recipe": recipe, "windows": [window]}))
    code = (
        "import sys; from reprune.doors.command.cli import main\ntry: main(['status', {!r}])\nexcept SystemExit: pass"
    )
    for folder, said in ((tmp_path, "1 of 1 windows finished"), (tmp_path / "none", "")):
        found = _python(
            f"{code.format(str(folder))}\nprint([name for name in ('torch', 'transformers') if name in sys.modules])"
        )
        assert said in found
        assert found.endswith("[]\n")


def test_type_checkers_are_told_that_the_package_has_types() -> None:
    assert (_ROOT / "py.typed").is_file()


def test_the_version_is_that_of_the_project() -> None:
    project = _ROOT.parent.parent / "pyproject.toml"
    if project.exists():
        assert f'version = "{reprune.__version__}"' in project.read_text(encoding="utf-8")
