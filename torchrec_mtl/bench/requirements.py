"""What the commands that tune need beyond the package's own dependencies."""

from __future__ import annotations

import importlib.util

from torchrec_mtl.config.explain import ConfigError


def require_extra(command: str) -> None:
    """Make sure of the packages of the extra ``bench``.

    Raises:
        ConfigError: one is missing.
    """
    missing = [name for name in ("optuna", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            [f'{" and ".join(missing)} missing; run: pip install "torchrec_mtl[bench]"'],
            source=f"torchrec-mtl {command}",
        )
