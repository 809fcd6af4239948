"""One row a training of a study, in the study's ``runs.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torchrec_mtl.bench.rows import LogOf, Row

FILE = "runs.jsonl"


@dataclass(frozen=True)
class TuneRow(Row):
    """What one training came to.

    Attributes:
        validation: task -> metric -> value on the rows of ``data.eval``; of a trial the same as ``metrics``.
        said: the objectives in words, for progress.
        number: of the trial that it was made for, from 1; later trials of the same config have no row. 0: unknown.
    """

    validation: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    said: str = ""
    number: int = 0

    @property
    def summary(self) -> str:
        """What progress says of it."""
        return super().summary if self.status == "failed" else f"{self.said}; {self.seconds:.1f} s"


def open_log(folder: Path, *, forget_failed: bool = False) -> LogOf[TuneRow]:
    """Return the log of a study."""
    return LogOf(folder / FILE, TuneRow, forget_failed=forget_failed)
