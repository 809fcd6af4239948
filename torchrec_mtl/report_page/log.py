"""``metrics.jsonl`` by name of number: read once, in little memory, however long it is."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PHASE = "train/phase"
_LARGEST_STEP = 2**53
_MOST_POINTS = 8_000  # of a curve; a chart has a few hundred columns of pixels


@dataclass
class Series:
    """A number over steps, in the order of the lines."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def points(self) -> tuple[tuple[float, float], ...]:
        """Return (step, value); of very many, the lowest and the highest of neighbours."""
        steps, values = np.asarray(self.steps), np.asarray(self.values)
        kept = _extremes(values) if len(values) > _MOST_POINTS else np.arange(len(values))
        return tuple(zip(steps[kept].tolist(), values[kept].tolist(), strict=True))


@dataclass(frozen=True)
class Log:
    """What a run logged.

    Attributes:
        series: by name.
        phases: steps after which a phase of training ended; lines between two phases belong to the first.
        last_step: of all lines.
        damaged: lines that cannot be read, without one at the end that a kill cut short.
    """

    series: Mapping[str, Series]
    phases: tuple[int, ...] = ()
    last_step: int = 0
    damaged: int = 0

    def below(self, prefix: str) -> list[str]:
        """Return the names that begin with ``prefix/``, without it."""
        return [name.removeprefix(f"{prefix}/") for name in self.series if name.startswith(f"{prefix}/")]

    def points(self, name: str) -> tuple[tuple[float, float], ...]:
        """Return (step, value); none where there is no such name."""
        return self.series[name].points() if name in self.series else ()


def read_log(path: Path) -> Log:
    """Read a ``metrics.jsonl``.

    Raises:
        ValueError: not one of its lines can be read.
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        return log_of(file, path)


def log_of(texts: Iterable[str], path: Path) -> Log:
    """Return the log that lines of text make.

    Args:
        texts: a line each.
        path: of their file, for messages.

    Raises:
        ValueError: not one of them can be read.
    """
    series: dict[str, Series] = {}
    phases: list[int] = []
    known, before, last, damaged, read, cut = math.nan, 0, 0, 0, 0, False
    for text in texts:
        line = _object(text)
        cut = line is None and not text.endswith("\n")
        if line is None:
            damaged += bool(text.strip("\r\n"))
            continue
        step, read = line["step"], read + 1
        phase = _number(line.pop(_PHASE, known))
        if not math.isnan(known) and phase != known:
            phases.append(before)
        known, before, last = phase, step, max(last, step)
        for name, value in line.items():
            if name in series or "/" in name:
                found = series.get(name) or series.setdefault(name, Series())
                found.steps.append(step)
                found.values.append(value if type(value) is float else _number(value))
    damaged -= cut
    if damaged and not read:
        raise ValueError(
            f"{path} does not hold the log of a run: none of its {damaged:,} lines can be read; restore it"
        )
    return Log(series, tuple(phases), last, damaged)


def _object(text: str) -> dict[str, Any] | None:
    """Return what a line holds; None where it is no object with a step."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int or not 0 <= line["step"] < _LARGEST_STEP:
        return None
    return line


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.nan


def _extremes(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the places of the lowest and the highest of neighbours, and of the last value."""
    size = math.ceil(2 * len(values) / _MOST_POINTS)
    whole = len(values) // size * size
    rows = values[:whole].reshape(-1, size)
    first = np.arange(0, whole, size)
    low = first + np.where(np.isnan(rows), np.inf, rows).argmin(axis=1)
    high = first + np.where(np.isnan(rows), -np.inf, rows).argmax(axis=1)
    return np.unique(np.concatenate([low, high, np.arange(whole, len(values)), [len(values) - 1]]))
