"""Packages that tests install as pip would, without its network: a folder with a pyproject.toml and a module."""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

import pytest


def install(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a package's module and entry points be found in its folder."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    for older in package.glob("*.dist-info"):
        shutil.rmtree(older)
    about = package / f"{project['name']}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = ((group, "\n".join(map(" = ".join, named.items()))) for group, named in project["entry-points"].items())
    (about / "entry_points.txt").write_text("".join(f"[{group}]\n{named}\n" for group, named in groups))
    for module in package.glob("*.py"):
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
    monkeypatch.syspath_prepend(package.resolve())


def write_pruner(package: Path, code: str, *, version: str = "1.0", **names: str) -> Path:
    """Write a package with `code` as its module, which brings pruners: by name, their names in the code.

    The package and its module have the folder's name.
    """
    package.mkdir(exist_ok=True)
    (package / f"{package.name}.py").write_text(code)
    pruners = "".join(f'{name} = "{package.name}:{made}"\n' for name, made in names.items())
    project = f'[project]\nname = "{package.name}"\nversion = "{version}"\n'
    (package / "pyproject.toml").write_text(f'{project}[project.entry-points."reprune.pruners"]\n{pruners}')
    return package
