"""Means over seeds with their intervals, paired differences, and Holm's correction; pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        mean: nan of no values.
        half: half the width of its interval; nan of fewer than two values.
        count: number of values.
    """

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference of pairs.

    Attributes:
        p: of the paired t-test, two-sided; nan of fewer than two pairs.
    """

    p: float


def estimate(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Return the mean and its interval by Student's t: ``mean +- t(n-1) s / sqrt(n)``.

    Args:
        values: one a run.
        level: coverage of the interval.

    Example:
        >>> round(estimate([1.0, 2.0, 3.0]).half, 4)
        2.4841
    """
    count = len(values)
    if not count:
        return Estimate(math.nan, math.nan, 0)
    if len(set(values)) == 1 and math.isfinite(values[0]):  # numpy would round their mean and spread
        return Estimate(float(values[0]), 0.0 if count > 1 else math.nan, count)
    with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverged
        half = interval_factor(count, level) * float(np.std(values, ddof=1))
        return Estimate(float(np.mean(values)), half, count)


@cache
def interval_factor(count: int, level: float = 0.95) -> float:
    """Return what half an interval of a mean is, in standard deviations of its ``count`` values, 2 or more."""
    from scipy.stats import t as student  # slow to import

    return float(student.ppf(0.5 + level / 2, count - 1)) / math.sqrt(count)


def paired_difference(ours: Sequence[float], theirs: Sequence[float], *, level: float = 0.95) -> Difference:
    """Return the mean of ``ours - theirs`` with its interval and the p of a two-sided paired t-test.

    Where all differences are the same number there is no spread to test against: p is 1 for 0, and 0 for any other.

    Args:
        ours: one a seed.
        theirs: of the same seeds.
        level: coverage of the interval.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = estimate(differences, level=level)
    p = math.nan
    if found.count > 1:
        error = float(np.std(differences, ddof=1)) / math.sqrt(found.count)
        p = _two_sided(found.mean, error, found.count - 1)
    return Difference(found.mean, found.half, found.count, p)


def _two_sided(mean: float, error: float, freedom: int) -> float:
    from scipy.stats import t as student  # slow to import

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * student.sf(abs(mean / error), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down method; nan stays nan and is not counted.

    Example:
        >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[i] = largest
    return corrected
