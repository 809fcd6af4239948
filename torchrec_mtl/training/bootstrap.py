"""How sure a metric of an evaluation is: an interval by resampling its rows."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from torchrec_mtl.training.metrics import Vector, as_columns


def bootstrap_interval(
    metric_fn: Callable[[Vector, Vector], float],
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a metric, rows resampled with replacement.

    Resamples where the metric is nan are left out (`scipy.stats.bootstrap` would make the whole interval nan, and
    holds all resamples in memory at once).

    Args:
        metric_fn: Maps labels [N] and predictions [N] to a number, for example `auc` or `gini`.
        labels: [N].
        predictions: [N].
        resamples: How many resamples to draw.
        level: The interval's coverage, between 0 and 1.
        seed: Seed of the resampling.

    Returns:
        The lower and the upper bound; nan where no resample defines the metric.
    """
    if resamples < 1:
        raise ValueError(f"a bootstrap needs resamples: found resamples={resamples}, pass at least 1")
    if not 0 < level < 1:
        raise ValueError(f"an interval's level is a fraction: found level={level}, pass a number between 0 and 1")
    y, p = as_columns(labels, predictions)
    if not y.size:
        return np.nan, np.nan
    generator = np.random.default_rng(seed)
    draws = (generator.integers(y.size, size=y.size) for _ in range(resamples))
    values = np.array([metric_fn(y[rows], p[rows]) for rows in draws], dtype=np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
