"""What lies beside a checkpoint's tensors: ``notes.json``, with the format, the checksums of all files, and its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchrec_mtl import __version__, atomic

FORMAT = 1
"""Raised when an older version could not go on from what this one writes; all lower formats stay readable."""

NOTES = "notes.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used."""


@dataclass(frozen=True)
class Notes:
    """Beside the tensors of a checkpoint.

    Attributes:
        notes: JSON values of the run: position, phase, monitor.
        best: it was the best of its run so far.
        checksums: SHA-256 of every file of tensors, by name; empty where it was written before there were any.
    """

    notes: Mapping[str, Any]
    best: bool
    checksums: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write beside the tensors.

        Raises:
            OSError: it could not be written; what was there before still is.
        """
        stored = {
            "format": FORMAT,
            "torchrec_mtl": __version__,
            "is_best": self.best,
            "notes": dict(self.notes),
            "sha256": dict(self.checksums),
        }
        atomic.write_text(folder / NOTES, json.dumps({**stored, "self": _digest(stored)}, indent=2) + "\n")


def read_notes(folder: Path) -> Notes | None:
    """Return what was written beside a checkpoint, or None where it is not whole.

    Raises:
        CheckpointError: a later version wrote it, in a format that this one does not know.
    """
    if not (folder / ".metadata").is_file():
        return None
    try:
        stored = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):  # another must not pass for a torn checkpoint
        return None
    if not isinstance(stored, dict) or not _is_whole(stored):
        return None
    written = stored.get("format", 0)  # 0: of before there were formats and checksums
    if not isinstance(written, int) or written > FORMAT:
        raise CheckpointError(
            f"{folder} has format {written}, of torchrec_mtl {stored.get('torchrec_mtl')}; this version "
            f"({__version__}) reads formats up to {FORMAT}: use that version or a later one, or start over with --fresh"
        )
    if written and stored.pop("self", None) != _digest(stored):
        return None
    return Notes(stored["notes"], bool(stored["is_best"]), stored.get("sha256", {}))


def _is_whole(stored: Mapping[str, Any]) -> bool:
    notes, checksums = stored.get("notes"), stored.get("sha256", {})
    if "is_best" not in stored or not isinstance(notes, dict) or not isinstance(checksums, dict):
        return False
    return isinstance(notes.get("step", 0), int)


def _digest(stored: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()
