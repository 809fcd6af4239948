"""One command at a time in a folder of results."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_mtl.config.explain import ConfigError


@contextmanager
def only_one(what: str, out: Path) -> Iterator[None]:
    """Keep a second command out of the folder: both would run the same.

    Args:
        what: the command, such as ``bench``.
        out: the folder; made where it is missing.

    Raises:
        ConfigError: another one is running there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                [f"another {what} is running in this folder; wait for it, or take another --out"], source=str(out)
            ) from None
        yield
