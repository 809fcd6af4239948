"""Which data a run was trained on: saved with checkpoints, so that a resume on other data is refused."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Self

from torchrec_mtl.config.base import Config
from torchrec_mtl.data.files import DataFile


class FileMark(Config):
    """What tells one file from another."""

    name: str
    """Path below the folder that all files share, so that the data may move."""
    size: int
    """Bytes."""
    rows: int
    row_groups: int
    layout: str
    """Hash of the row groups' row counts."""


class Fingerprint(Config):
    """Names, sizes, and row groups of all files, in order; two are equal when the order of samples is the same."""

    files: tuple[FileMark, ...]

    @classmethod
    def of(cls, files: Sequence[DataFile]) -> Self:
        """Take the fingerprint of opened files."""
        paths = [file.path.split("/") for file in files]
        folders = zip(*(path[:-1] for path in paths))
        shared = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, folders))
        return cls(files=tuple(_mark(file, "/".join(path[shared:])) for file, path in zip(files, paths)))

    def difference(self, other: Fingerprint) -> str | None:
        """Describe the first difference to ``other``, the data found now; None where they are equal."""
        if len(self.files) != len(other.files):
            before, now = {f.name for f in self.files}, {f.name for f in other.files}
            changed = [f"without {name}" for name in sorted(before - now)] + [f"with {n}" for n in sorted(now - before)]
            return f"{len(self.files)} files before, {len(other.files)} now ({', '.join(changed[:3])})"
        for mine, theirs in zip(self.files, other.files):
            for field in FileMark.model_fields:
                before, now = getattr(mine, field), getattr(theirs, field)
                if before != now:
                    return f"{mine.name}: {field} {before} before, {now} now"
        return None


def _mark(file: DataFile, name: str) -> FileMark:
    groups = file.row_groups
    return FileMark(
        name=name,
        size=file.size,
        rows=sum(groups),
        row_groups=len(groups),
        layout=_digest(",".join(map(str, groups))),
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
