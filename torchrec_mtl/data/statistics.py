"""What the training data look like: normalises dense features, standardises labels, saved with the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from torchrec_mtl.atomic import write_text
from torchrec_mtl.data.arrow import Doubles

_SMALLEST_RELATIVE_STD = 1e-12
_SAMPLE = 1_000_000
_BINS = 256


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DenseStatistics(_Record):
    """One dense feature, after its transform, nulls left out."""

    mean: float
    std: float
    """1 where all values are equal."""
    nulls: int


class LabelStatistics(_Record):
    """One task's label over the rows of its space and gate, weighted as in its loss."""

    rows: int
    """Rows with a positive weight."""
    weight: float
    """Sum of their weights."""
    mean: float
    std: float
    """1 where all labels are equal."""
    positive_rate: float
    """Weighted share of labels above 0."""
    # Of regressions only, and absent from files of older versions:
    target_mean: float = 0.0
    """Of what the loss regresses, such as the label's logarithm."""
    target_std: float = 1.0
    """1 where all are equal."""
    log_mean: float = 0.0
    """Of the logarithms of the labels above 0."""
    log_std: float = 1.0
    """1 where all are equal."""
    quantiles: tuple[float, ...] = ()
    """257, from the smallest label to the largest at even distances; like the next two, of a sample of 1,000,000 labels
    where there are more, and unweighted."""
    shares: tuple[float, ...] = ()
    """257 shares of the labels at or below each quantile."""
    bin_means: tuple[float, ...] = ()
    """256 means of the labels above each quantile up to the next; where there is none, the next."""


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
        write_text(Path(path), self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path} does not hold the statistics of a run: {where} {first['msg']}") from None


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


class Sample:
    """Uniform sample of a stream, all of it while it is short; it depends on the order of values alone.

    Every value draws a number, and those of the smallest numbers are kept, so that the blocks in which values come do
    not matter.

    Example:
        >>> sample = Sample(size=3)
        >>> sample.add(np.array([4.0, 2.0]))
        >>> sample.add(np.array([3.0]))
        >>> sample.sorted()
        array([2., 3., 4.])
    """

    def __init__(self, size: int = _SAMPLE) -> None:
        self._size = size
        self._random = np.random.default_rng(0)
        self._values, self._draws = np.empty(0), np.empty(0)

    def add(self, values: Doubles) -> None:
        """Offer a block of values [n]."""
        self._values = np.concatenate([self._values, values])
        self._draws = np.concatenate([self._draws, self._random.random(len(values))])
        if len(self._values) > 2 * self._size:
            self._cut()

    def sorted(self) -> Doubles:
        """Return the sample, smallest value first."""
        self._cut()
        return np.sort(self._values)

    def _cut(self) -> None:
        if len(self._values) > self._size:
            kept = np.argpartition(self._draws, self._size)[: self._size]
            self._values, self._draws = self._values[kept], self._draws[kept]


def to_bins(values: Doubles, num_bins: int = _BINS) -> tuple[Doubles, Doubles, Doubles]:
    """Describe a distribution by Q bins.

    Args:
        values: [n], sorted.
        num_bins: Q.

    Returns:
        Quantiles [Q + 1] that are values themselves, shares [Q + 1] of values at or below each, and means [Q] of the
        values above each up to the next (the next where there is none). The smallest quantile times its share, and the
        means times the shares between, add up to the mean. All empty where n = 0.

    Example:
        >>> to_bins(np.array([0.0, 0.0, 0.0, 6.0]), num_bins=2)
        (array([0., 0., 6.]), array([0.75, 0.75, 1.  ]), array([0., 6.]))
    """
    if not len(values):
        return np.empty(0), np.empty(0), np.empty(0)
    places = np.ceil(np.linspace(0, len(values), num_bins + 1)).astype(np.int64) - 1
    quantiles = values[places.clip(0)]
    below = np.searchsorted(values, quantiles, side="right")
    sums, counts = np.diff(np.concatenate([[0.0], np.cumsum(values)])[below]), np.diff(below)
    means = np.where(counts > 0, sums / counts.clip(1), quantiles[1:])
    return quantiles, below / len(values), means
