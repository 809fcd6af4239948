"""What the training data look like: normalises dense features, standardises labels, saved with the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from torchrec_mtl.data.arrow import Doubles

_SMALLEST_RELATIVE_STD = 1e-12


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DenseStatistics(_Record):
    """One dense feature, after its transform, nulls left out."""

    mean: float
    std: float
    """1 where all values are equal."""
    nulls: int


class LabelStatistics(_Record):
    """One task's label over the rows of its space, weighted as in its loss."""

    rows: int
    """Rows with a positive weight."""
    weight: float
    """Sum of their weights."""
    mean: float
    std: float
    """1 where all labels are equal."""
    positive_rate: float
    """Weighted share of labels above 0."""


class IdStatistics(_Record):
    """One feature of ids."""

    ids: int
    """Ids of all rows."""
    empty: int
    """Rows without any id."""
    largest: int | None
    """Largest id; None where there is none."""
    distinct: int | None
    """Different ids; None where the table is too large to count them."""


class Statistics(_Record):
    """Statistics of the training data, by the names of features and tasks."""

    rows: int
    """Rows read."""
    dense: dict[str, DenseStatistics]
    labels: dict[str, LabelStatistics]
    features: dict[str, IdStatistics]
    tolerated: dict[str, int] = {}
    """Bad ids and null labels that the config lets pass, by feature or task, in the rows read."""

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote."""
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))


class Moments:
    """Weighted mean and variance of a stream, merged block by block (Chan et al. 1983), in float64.

    Example:
        >>> moments = Moments()
        >>> moments.add(np.array([1.0, 3.0]))
        >>> moments.add(np.array([5.0]), np.array([2.0]))
        >>> moments.mean, moments.weight
        (3.5, 4.0)
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, values: Doubles, weights: Doubles | None = None) -> None:
        """Merge a block of values [n], finite, with positive weights [n]."""
        weight = float(len(values) if weights is None else weights.sum())
        if not weight:
            return
        mean = float(np.average(values, weights=weights))
        squared = (values - mean) ** 2
        squares = float(squared.sum() if weights is None else squared @ weights)
        total, shift = self.weight + weight, mean - self.mean
        self._squares += squares + shift**2 * self.weight * weight / total
        self.mean += shift * weight / total
        self.weight = total

    @property
    def std(self) -> float:
        """Standard deviation of the population; 1 where all values are equal, to rounding."""
        if not self.weight:
            return 1.0
        std = math.sqrt(self._squares / self.weight)
        return std if std > _SMALLEST_RELATIVE_STD * abs(self.mean) else 1.0
