"""What a row was measured on and with."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

from torchrec_mtl import __version__


@cache
def machine() -> str:
    """Return processor, cores, and system."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, one thread a run"


@cache
def versions() -> str:
    """Return the versions that matter for figures."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec", "optuna"))
    return f"torchrec_mtl {__version__}, Python {platform.python_version()}, {packages}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
