"""Exact evaluation metrics on whole arrays: one pass over all rows, nothing averaged over batches or ranks.

A metric that its rows do not define (no rows, one class only, a constant label) is nan, and so is every metric of
predictions that are not all finite: a diverged task shows in the table and stops nothing. Everything is float64.
"""

# mypy: disable-error-code="import-untyped,no-untyped-call"
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

CLIP: Final = 1e-7
_ECE_BINS: Final = 15
_BINARY: Final = ("auc", "logloss", "ne", "calibration", "ece")
_REGRESSION: Final = ("rmse", "mae", "nrmse", "nmae", "spearman", "gini", "calibration")


def task_metrics(
    kind: Literal["binary", "regression"],
    labels: ArrayLike,
    predictions: ArrayLike,
    weights: ArrayLike,
    groups: ArrayLike | None = None,
) -> dict[str, float]:
    """Computes the metrics of one task on the rows that belong to its space.

    Args:
        kind: The task's kind.
        labels: [N]; may be nan where the weight is 0.
        predictions: [N], on the label's scale (a probability for a binary task).
        weights: [N]; 0 marks padding and rows outside the task's space. Other weights all count as 1.
        groups: [N], the group of each row for `gauc`, of any sortable type. Only binary tasks use it.

    Returns:
        `count`, the number of rows kept, and the metrics of `binary_metrics` or `regression_metrics`.

    Example:
        >>> task_metrics("regression", [1, 3, 9], [2, 3, 0], [1, 1, 0])["rmse"] ** 2
        0.5000000000000001
    """
    kept = np.asarray(weights) != 0
    y, p = as_columns(labels, predictions)
    _check_length("weights", kept, y)
    y, p = y[kept], p[kept]
    count = {"count": float(y.size)}
    if kind == "regression":
        return count | regression_metrics(y, p)
    if kind != "binary":
        raise ValueError(f"unknown task kind: found {kind!r}, expected 'binary' or 'regression'")
    if groups is None:
        return count | binary_metrics(y, p)
    group = np.asarray(groups)
    _check_length("groups", group, kept)
    return count | binary_metrics(y, p, groups=group[kept])


def binary_metrics(labels: ArrayLike, predictions: ArrayLike, *, groups: ArrayLike | None = None) -> dict[str, float]:
    """Computes the metrics of a binary task.

    Args:
        labels: [N], 0 or 1.
        predictions: [N], probabilities.
        groups: [N], of any sortable type; adds `gauc`.

    Returns:
        `auc`; `logloss`, with probabilities clipped to [1e-7, 1 - 1e-7]; `ne`, the logloss divided by the entropy of
        the base rate; `calibration`, the sum of predictions over the sum of labels; `ece`; and `gauc` with groups.
    """
    y, p = as_columns(labels, predictions)
    names = _BINARY if groups is None else (*_BINARY, "gauc")
    if _undefined(p):
        return dict.fromkeys(names, np.nan)
    _check_binary(y)
    _check_probabilities(p)
    logloss = -float(np.log(np.clip(np.where(y == 1, p, 1 - p), CLIP, 1 - CLIP)).mean())
    base_rate = y.mean()
    metrics = {
        "auc": auc(y, p),
        "logloss": logloss,
        "ne": ratio(logloss, entropy(base_rate)),
        "calibration": ratio(p.sum(), y.sum()),
        "ece": ece(y, p),
    }
    return metrics if groups is None else metrics | {"gauc": gauc(y, p, groups)}


def regression_metrics(labels: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """Computes the metrics of a regression task.

    Args:
        labels: [N].
        predictions: [N], on the label's scale.

    Returns:
        `rmse`; `mae`; `nrmse`, the rmse over the labels' standard deviation (1 for their mean); `nmae`, the mae over
        the size of the labels' mean; `spearman`, with average ranks; `gini`; `calibration`, the sum of predictions
        over the sum of labels.
    """
    y, p = as_columns(labels, predictions)
    if _undefined(p):
        return dict.fromkeys(_REGRESSION, np.nan)
    _check_finite(y)
    rmse = float(np.sqrt(np.square(p - y).mean()))
    mae = float(np.abs(p - y).mean())
    return {
        "rmse": rmse,
        "mae": mae,
        "nrmse": np.nan if _constant(y) else ratio(rmse, y.std()),
        "nmae": ratio(mae, abs(y.mean())),
        "spearman": np.nan if _constant(y) or _constant(p) else _spearman(y, p),
        "gini": gini(y, p),
        "calibration": ratio(p.sum(), y.sum()),
    }


def auc(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Returns the chance that a positive row scores above a negative one, ties counting half; nan with one class."""
    y, p = as_columns(labels, predictions)
    _check_binary(y)
    num_positives = y.sum()
    num_pairs = num_positives * (y.size - num_positives)
    if num_pairs == 0 or _undefined(p):
        return np.nan
    rank_sum = ranks(p)[y == 1].sum()
    return float((rank_sum - num_positives * (num_positives + 1) / 2) / num_pairs)


def gauc(labels: ArrayLike, predictions: ArrayLike, groups: ArrayLike) -> float:
    """Returns the mean AUC within groups, weighted by their rows, over the groups that have both classes.

    Args:
        labels: [N], 0 or 1.
        predictions: [N].
        groups: [N], of any sortable type.

    Returns:
        The grouped AUC; nan where no group has both classes.
    """
    y, p = as_columns(labels, predictions)
    group = np.asarray(groups)
    _check_length("groups", group, y)
    _check_binary(y)
    if _undefined(p):
        return np.nan
    group = np.unique(group, return_inverse=True)[1]
    order = np.lexsort((p, group))
    y, p, group = y[order], p[order], group[order]

    is_group_start = np.diff(group, prepend=-1) != 0
    is_tie_start = is_group_start | np.append(True, p[1:] != p[:-1])
    group_starts, tie_starts = np.flatnonzero(is_group_start), np.flatnonzero(is_tie_start)
    tie_sizes = np.diff(tie_starts, append=y.size)
    in_order = np.repeat(tie_starts + (tie_sizes + 1) / 2, tie_sizes)  # from 1, over all groups laid end to end

    num_rows = np.diff(group_starts, append=y.size)
    num_positives = np.add.reduceat(y, group_starts)
    rank_sums = np.add.reduceat(y * in_order, group_starts) - num_positives * group_starts
    num_pairs = num_positives * (num_rows - num_positives)
    mixed = num_pairs > 0
    if not mixed.any():
        return np.nan
    wins = (rank_sums - num_positives * (num_positives + 1) / 2)[mixed]
    return float(np.average(wins / num_pairs[mixed], weights=num_rows[mixed]))


def ece(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Returns the expected calibration error: mean |mean prediction - mean label| over 15 bins of equal width.

    Bins are weighted by their rows, empty ones count for nothing. With rare positives nearly all rows fall into the
    first bin, and the figure says little more than `calibration` does.
    """
    y, p = as_columns(labels, predictions)
    if _undefined(p):
        return np.nan
    _check_binary(y)
    _check_probabilities(p)
    bins = np.minimum((p * _ECE_BINS).astype(np.int64), _ECE_BINS - 1)
    return float(np.abs(np.bincount(bins, weights=p - y)).sum() / y.size)


def gini(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Returns the normalised Gini coefficient: 1 for the labels' order, 0 for constant predictions, -1 reversed.

    With rows sorted by prediction, largest first, and `c_i` the cumulative share of the label, it is the area between
    `c` and the diagonal over the same area in the labels' own order. The area of one ranking is linear in the ranks,
    so it is computed as a ratio of covariances of label and rank. Tied predictions take their average rank, which is
    the mean over all orders of the tied rows: the value does not depend on the order of the input. The areas are
    trapezoids; the cruder `2 * mean(c) - 1` adds 1 / N to both, and gives constant predictions a little credit.

    Args:
        labels: [N], of any sign.
        predictions: [N].

    Returns:
        The coefficient; nan where all labels are equal.
    """
    y, p = as_columns(labels, predictions)
    if _undefined(p) or _constant(y):
        return np.nan
    deviation = y - y.mean()
    return ratio(ranks(p) @ deviation, ranks(y) @ deviation)


def as_columns(labels: ArrayLike, predictions: ArrayLike) -> tuple[Vector, Vector]:
    """Returns both as float64 [N]; a ValueError says where they are not one column each."""
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if y.ndim != 1:
        raise ValueError(f"labels must be one column: found shape {y.shape}, pass one task's labels as [N]")
    _check_length("predictions", p, y)
    return y, p


def _check_length(name: str, column: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
    if column.shape != reference.shape:
        raise ValueError(
            f"{name} must go row by row with the labels: found shapes {column.shape} and {reference.shape}"
        )


def _check_binary(y: Vector) -> None:
    wrong = y[(y != 0) & (y != 1)]
    if wrong.size:
        raise ValueError(
            f"labels of a binary task must be 0 or 1: found {wrong[0]:g} ({wrong.size} of {y.size} rows); "
            "give rows outside the task's space weight 0, or make it a regression task"
        )


def _check_probabilities(p: Vector) -> None:
    if p.min() < 0 or p.max() > 1:
        raise ValueError(
            f"predictions of a binary task must be probabilities: found {p.min():g} to {p.max():g}, apply the sigmoid"
        )


def _check_finite(y: Vector) -> None:
    num_wrong = int((~np.isfinite(y)).sum())
    if num_wrong:
        raise ValueError(f"labels must be finite: found {num_wrong} nan or inf of {y.size} rows, give them weight 0")


def _undefined(p: Vector) -> bool:
    return p.size == 0 or not bool(np.isfinite(p).all())


def _constant(values: Vector) -> bool:
    return bool(values.min() == values.max())


def entropy(rate: float) -> float:
    """Returns the entropy of a binary label in nats; 0 where it is always the same."""
    return -sum(float(share * np.log(share)) for share in (rate, 1 - rate) if share > 0)


def ratio(numerator: float, denominator: float) -> float:
    """Returns the ratio; nan where nothing divides."""
    return float(numerator / denominator) if denominator != 0 else np.nan


# Not scipy's: it takes a second to import, as long as many a whole evaluation.


def ranks(x: Vector) -> Vector:
    """Returns the ranks from 1, ties with their average."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    average: Vector = np.cumsum(counts) - (counts - 1) / 2
    return average[place]


def _spearman(x: Vector, y: Vector) -> float:
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])
