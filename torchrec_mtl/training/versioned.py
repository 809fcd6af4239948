"""Files of a run that say which version of their format they are of. Without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def load_versioned(path: Path, version: int, read: Callable[[Any], T], *, what: str) -> T:
    """Return what ``read`` makes of a JSON object with ``version``.

    Args:
        path: of the file.
        version: of the format, that this release reads.
        read: from the object; it may raise what comes of an object of another shape.
        what: the file holds, for messages.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["version"] != version:
            raise ValueError(f"version {plain['version']!r}, this release reads {version}")
        return read(plain)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} does not hold {what}: {error!r}. Delete it, or restore it") from error
