"""What `check` found, by how bad it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torchrec_mtl.data.problems import Problem

Level = Literal["error", "warning", "note"]

LEVELS: tuple[Level, ...] = ("error", "warning", "note")
FILES_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        level: "error": the run would stop, or its results would mean nothing; "warning": probably a mistake; "note": to
            know.
        kind: short name of what it is, for programs.
        split: "train", "eval", or "test"; empty: of the run.
        column: of the data; empty: of none.
        what: was found, as a sentence without its end.
        advice: what to do.
        count: rows, ids, or values, where there is a count.
        files: that hold it, in order, where it helps.
    """

    level: Level
    kind: str
    split: str
    column: str
    what: str
    advice: str
    count: int | None = None
    files: tuple[str, ...] = ()


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort by level; within one, in the order in which they came."""
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def of_problems(
    problems: Iterable[Problem], split: str, kind: str, column: str, *, level: Level = "error"
) -> Iterator[Finding]:
    """Make findings of what the encoders refuse, in their words."""
    for problem in problems:
        found = "" if problem.low is None else f", {problem.low:g} to {problem.high:g}"
        what = f"{problem.where}: {problem.count:,} {problem.what}{found}"
        yield Finding(level, kind, split, column, what, problem.advice, problem.count, tuple(problem.files))


def share(part: float, whole: float) -> float:
    """Return a share; 0 of nothing."""
    return part / whole if whole else 0.0


def percent(value: float) -> str:
    """Return a share as text, with enough digits to tell it from none and from all.

    Example:
        >>> percent(0.5), percent(0.0321), percent(0.00001), percent(0.0), percent(1.0), percent(0.9999)
        ('50 %', '3.2 %', '<0.1 %', '0 %', '100 %', '>99.9 %')
    """
    if 0 < value < 0.001:
        return "<0.1 %"
    if 0.999 < value < 1:
        return ">99.9 %"
    text = f"{100 * value:.1f}"
    return f"{text.removesuffix('.0')} %"
