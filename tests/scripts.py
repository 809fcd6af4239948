"""Scripts of the examples, loaded as they run: with their own folder on the path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load_script(script: Path) -> tuple[ModuleType, ModuleType]:
    """A script, and the ``prepare`` beside it that it imports, under names of this test."""
    modules = []
    name_of_script = f"{script.parent.name}_{script.stem}"
    for name, path in (("prepare", script.with_name("prepare.py")), (name_of_script, script)):
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        modules.append(importlib.util.module_from_spec(spec))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "prepare", modules[0])  # as for a script
            spec.loader.exec_module(modules[-1])
    return modules[1], modules[0]
