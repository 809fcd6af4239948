"""The columns of a model, as a server checks and describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torchrec_mtl.serving.columns import InputColumn
from torchrec_mtl.serving.predictor import Predictor


@dataclass(frozen=True)
class ServedColumn:
    """A column that requests may have.

    Attributes:
        name: the column.
        kind: ``id`` (one, or a list), ``sequence``, ``number``, ``times``, or ``moment``.
        sides: whose features read it: user, item, context.
        default: what null, or leaving it out, stands for.
        elements: what its ids were in training, integers or strings; None for others, and where there were none.
        rows: integer ids are 0 .. rows - 1; None where any is taken.
    """

    name: str
    kind: str
    sides: tuple[str, ...]
    default: str
    elements: Literal["integers", "strings"] | None = None
    rows: int | None = None


def served_columns(predictor: Predictor) -> tuple[ServedColumn, ...]:
    """Return the columns of a predictor."""
    about = predictor.about
    return tuple(_served(column, about.elements.get(column.name), about.bad_ids) for column in predictor.columns)


def _served(column: InputColumn, elements: Literal["integers", "strings"] | None, bad_ids: str) -> ServedColumn:
    # Strings are hashed, and other ids than a table has are the predictor's to leave out where the run says so.
    rows = column.rows if bad_ids == "error" and elements != "strings" else None
    return ServedColumn(column.name, column.kind, column.sides, column.default, elements, rows)
