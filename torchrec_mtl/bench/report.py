"""The parts of a report, whatever it is written as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Mark = Literal["", "better", "worse", "failed"]
MARKS: Final[Mapping[Mark, str]] = {"": "", "better": "▲ ", "worse": "▼ ", "failed": ""}
"""What stands before a marked line."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: its first line.
        small: its second line, if any.
        mark: better and worse than what it is compared with, beyond chance; or failed.
        number: whether it is set as a number, to the right.
    """

    text: str
    small: str = ""
    mark: Mark = ""
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it.
        columns: their heads.
        rows: cells, one a column.
        notes: lines below it, plain text.
        folded: closed at first where the format can.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Plot:
    """A drawing.

    Attributes:
        name: of its file.
        title: what it shows.
        svg: the drawing.
        points: what a point is.
    """

    name: str
    title: str
    svg: str
    points: str = "mean over seeds with its 95 % interval"


@dataclass(frozen=True)
class Section:
    """One data set."""

    title: str
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The whole."""

    title: str
    head: tuple[str, ...]
    sections: tuple[Section, ...]
