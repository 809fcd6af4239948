"""Figures of a benchmark: medians of an interleaved run, ratios within a repeat, aims; as Markdown and JSON lines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Sides = Mapping[str, Callable[[], float]]
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """Median and range of repeated measurements.

    Example:
        >>> print(Spread.of([1.0, 3.0, 2.0]))
        2 (1 to 3)
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.low == self.high:
            return _number(self.median)
        return f"{_number(self.median)} ({_number(self.low)} to {_number(self.high)})"


@dataclass(frozen=True)
class Aim:
    """What a median should be, of the ratio or of the value itself.

    Example:
        >>> print(Aim("at most", 1.3), Aim("at most", 1.3).is_met(1.4))
        at most 1.3 False
    """

    relation: str
    """"at most" or "at least"."""
    bound: float
    of: str = "ratio"
    """"ratio" or "value"."""

    def is_met(self, found: float) -> bool:
        """Whether ``found`` keeps to the bound."""
        return found <= self.bound if self.relation == "at most" else found >= self.bound

    def __str__(self) -> str:
        return f"{self.relation} {_number(self.bound)}" + (" (measured)" if self.of == "value" else "")


@dataclass(frozen=True)
class Figure:
    """One line of a table.

    Attributes:
        case: what was measured.
        value: how much.
        unit: of the value.
        ratio: to ``against``, repeat by repeat.
        against: what the ratio is to, measured in the same run.
        aim: what the ratio, or the value, should be.
        note: anything else, such as the share of the machine's limits.
    """

    case: str
    value: Spread
    unit: str
    ratio: Spread | None = None
    against: str = ""
    aim: Aim | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        if self.aim is None:
            return None
        judged = self.value if self.aim.of == "value" else self.ratio
        assert judged is not None, "an aim for a ratio needs one"
        return self.aim.is_met(judged.median)


def interleave(sides: Sides, repeats: int, *, warm_up: bool = True) -> Times:
    """Run all sides in turn, again and again: on a shared machine seconds apart are already another machine.

    Args:
        sides: name -> a function that does its work and returns what it measured.
        repeats: how often.
        warm_up: run each side once before, and forget what it measured.
    """
    found: Times = {name: [] for name in sides}
    for side in sides.values() if warm_up else ():
        side()
    for _ in range(repeats):
        for name, side in sides.items():
            found[name].append(side())
    return found


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Return ``values / base`` repeat by repeat, summarised: what slows both down cancels."""
    return Spread.of([v / b for v, b in zip(values, base, strict=True)])


def as_markdown(title: str, figures: Sequence[Figure]) -> str:
    """Return a table with its title; columns that are empty everywhere are left out."""
    columns = ["case", "measured", "ratio", "to", "aim", "", "note"]
    lines = [
        [
            f.case,
            f"{f.value} {f.unit}",
            str(f.ratio or ""),
            f.against,
            str(f.aim or ""),
            {None: "", True: "met", False: "**not met**"}[f.met],
            f.note,
        ]
        for f in figures
    ]
    used = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    table = [columns, ["---"] * len(columns), *lines]
    return f"\n### {title}\n\n" + "\n".join("| " + " | ".join(line[i] for i in used) + " |" for line in table)


def append(path: Path, part: str, figures: Sequence[Figure], setting: Mapping[str, Any]) -> None:
    """Append a JSON line a figure, each with the setting it was measured in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for figure in figures:
            file.write(json.dumps({"part": part, **asdict(figure), "met": figure.met, "setting": setting}) + "\n")


def _number(value: float) -> str:
    """Return three digits or so."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
