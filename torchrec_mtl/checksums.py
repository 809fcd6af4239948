"""Whether a file is what was written."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torchrec_mtl.whereabouts import whereabouts

_READ_AT_ONCE = 1 << 24  # bytes


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_AT_ONCE):
            digest.update(block)
            whereabouts.reads(str(path))  # a large file is no standstill
    return digest.hexdigest()


def damage(path: Path, expected: object) -> str | None:
    """Return what is wrong with a file, None where its SHA-256 is the one that was noted."""
    try:
        return None if sha256(path) == expected else f"{path.name} is not what was written"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
