"""One row a run, appended to ``runs.jsonl`` as it ends, so that a suite can be stopped and started again at will."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from textwrap import shorten
from typing import Any, Generic, Literal, TypeVar

Phase = Literal["trial", "seed"]
Key = tuple[str, int, str]  # hash of the merged config, seed, split


@dataclass(frozen=True)
class Row:
    """What one training came to.

    Attributes:
        data: name of the data set.
        model: name of the model.
        role: of the model.
        phase: trial (scored on validation rows) or seed (scored on test rows).
        seed: of the training.
        overrides: on the data set's YAML.
        config: hash of the merged config and of the data files' layout.
        split: rows that were scored: validation or test.
        status: ok or failed.
        error: of a failed run.
        metrics: task -> metric -> value; None where a metric is not defined.
        score: what tuning maximises.
        step: of the checkpoint that was scored.
        steps: trained in all.
        epochs: the same in passes over the training rows.
        seconds: of the whole run, with reading statistics, evaluation, and saving; without imports.
        train_seconds: of the training steps alone.
        samples_per_s: rows trained over ``train_seconds``.
        dense_parameters: of everything but the tables.
        table_parameters: of the tables.
        peak_memory_mib: largest resident memory of the run's process, libraries included.
        device: the run's.
        machine: that it ran on.
        versions: that it ran with.
    """

    data: str
    model: str
    role: str
    phase: Phase
    seed: int
    overrides: tuple[str, ...]
    config: str
    split: str
    status: Literal["ok", "failed"]
    error: str | None = None
    metrics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    score: float | None = None
    step: int | None = None
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    train_seconds: float | None = None
    samples_per_s: float | None = None
    dense_parameters: int | None = None
    table_parameters: int | None = None
    peak_memory_mib: float | None = None
    device: str = ""
    machine: str = ""
    versions: str = ""

    @property
    def key(self) -> Key:
        """What makes two runs the same."""
        return self.config, self.seed, self.split

    @property
    def summary(self) -> str:
        """What progress says of it."""
        if self.status == "failed":
            return f"FAILED: {shorten(str(self.error), 200)}"
        score = "undefined" if self.score is None else f"{self.score:.4f}"
        return f"score {score}, {self.seconds:.1f} s"

    def flat(self) -> dict[str, Any]:
        """Return one value a column; metrics are ``task/metric``."""
        values = {**asdict(self), "overrides": " ".join(self.overrides)}
        metrics = values.pop("metrics")
        return values | {f"{task}/{name}": v for task, found in metrics.items() for name, v in found.items()}


R = TypeVar("R", bound=Row)


class LogOf(Generic[R]):
    """Rows, in memory and on disk.

    Args:
        path: of the file; made with the first row.
        kind: class of the rows.
        forget_failed: take failed runs as not run.
    """

    def __init__(self, path: Path, kind: type[R], *, forget_failed: bool = False) -> None:
        self.path = path
        self._rows: dict[Key, R] = {}
        for row in _read(path, kind):
            self._rows[row.key] = row  # of two, the later: the first failed and was retried
        self._failed_before = {k for k, row in self._rows.items() if row.status == "failed"} if forget_failed else set()

    @property
    def rows(self) -> list[R]:
        """All rows, the latest of each run, those to be retried too."""
        return list(self._rows.values())

    def find(self, key: Key) -> R | None:
        """Return the row of a run that need not be repeated."""
        return None if key in self._failed_before else self._rows.get(key)

    def append(self, row: R) -> None:
        """Add a row, at once on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._failed_before.discard(row.key)
        self._rows[row.key] = row
        with self.path.open("ab+") as file:
            if file.tell() and not _ends_line(file.fileno()):
                file.write(b"\n")  # a kill cut the last line short
            file.write(json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n")


class Log(LogOf[Row]):
    """The rows of a suite, in memory and on disk.

    Args:
        path: of the file; made with the first row.
        forget_failed: take failed runs as not run.
    """

    def __init__(self, path: Path, *, forget_failed: bool = False) -> None:
        super().__init__(path, Row, forget_failed=forget_failed)


def _ends_line(descriptor: int) -> bool:
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1) == b"\n"


def _read(path: Path, kind: type[R]) -> Iterator[R]:
    if not path.exists():
        return
    known = {f.name for f in fields(kind)}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # cut short by a kill
        values = {name: value for name, value in values.items() if name in known}
        yield kind(**{**values, "overrides": tuple(values["overrides"])})


def write_parquet(rows: list[Row], path: Path) -> None:
    """Write all rows as one table of flat columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [row.flat() for row in rows]
    columns = list(dict.fromkeys(name for values in flat for name in values))
    pq.write_table(pa.table({name: [values.get(name) for values in flat] for name in columns}), path)
