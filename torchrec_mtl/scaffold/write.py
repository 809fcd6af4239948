"""Writes the skeleton, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template

from torchrec_mtl.scaffold.names import Names

# Kind -> the line of the YAML that names the plug-in, and what it has where another kind is new.
_LINES = {
    "bottom": "{type: concat}",
    "head": "{type: shared_bottom, shared: [64], tower: [32]}",
    "loss": "{type: mse, minimum: 0}",
    "rule": "{type: sum}",
}
_OF_ALL = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "train.yaml": "train.yaml",
    "prepare.py": "prepare.py",
    "{package}/__init__.py": "__init__.py",
}


def write_skeleton(names: Names, folder: Path) -> list[Path]:
    """Write an installable package with one plug-in, its test, and a config that trains it.

    Args:
        names: from ``check_name``.
        folder: made, with its parents; may be there if it is empty.

    Returns:
        The files, relative to the folder.

    Raises:
        ValueError: the folder holds something, or is a file.
        OSError: it cannot be written; nothing is left of it then.
    """
    _check_folder(folder)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        made = half / "whole"
        for path, template in _templates(names).items():
            target = made / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_filled(template, names), encoding="utf-8")
        if folder.exists():  # not replaced: a shell may stand in it
            for part in made.iterdir():
                os.replace(part, folder / part.name)
        else:
            os.replace(made, folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return sorted(Path(path) for path in _templates(names))


def _check_folder(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} is no folder; name another one with --out")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is there, and not empty; nothing was written. Name another folder with --out")


def _templates(names: Names) -> dict[str, str]:
    """Return path -> template."""
    own = {f"{{package}}/{names.kind}.py": f"{names.kind}.py", f"tests/test_{names.kind}.py": f"test_{names.kind}.py"}
    return {path.format(package=names.package): template for path, template in {**_OF_ALL, **own}.items()}


def _filled(template: str, names: Names) -> str:
    text = files("torchrec_mtl.scaffold").joinpath("templates", f"{template}.tmpl").read_text(encoding="utf-8")
    lines = {f"{kind}_line": line for kind, line in (_LINES | {names.kind: f"{{type: {names.name}}}"}).items()}
    return Template(text).substitute(
        lines,
        kind=names.kind,
        plural="losses" if names.kind == "loss" else f"{names.kind}s",
        key="gradient" if names.kind == "rule" else names.kind,
        name=names.name,
        package=names.package,
        distribution=names.distribution,
        class_name=names.class_name,
    )
