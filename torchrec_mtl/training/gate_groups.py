"""A gate's weights by how active users are: what a gate of users' preferences makes of heavy and of light ones."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from torchrec_mtl.findings import Finding, MatrixFinding, TableFinding

# Shapes: N rows, U users, E weights.

_MOST_GROUPS: Final = 10
_QUANTILES: Final = {"10 %": 0.1, "median": 0.5, "90 %": 0.9}


def by_activity(
    title: str, names: Sequence[str], users: NDArray[Any], weights: NDArray[Any], column: str
) -> tuple[Finding, ...]:
    """Return the mean weights of groups of users as a heat map, and how they spread among the users as a table.

    A user counts once, with the mean over its rows. Groups are of about as many users each, by their number of rows:
    the deciles, or fewer where many users have as many rows.

    Args:
        title: of the gate.
        names: E, of the weights.
        users: [N], who each row is of.
        weights: [N, E].
        column: where the users come from.
    """
    if not len(users):
        return ()
    _, user, rows = np.unique(users, return_inverse=True, return_counts=True)
    sums = np.zeros((len(rows), len(names)))
    np.add.at(sums, user, weights.astype(np.float64))
    means = sums / rows[:, None]
    firsts = np.unique(np.sort(rows)[np.arange(_MOST_GROUPS) * len(rows) // _MOST_GROUPS])
    group = np.searchsorted(firsts, rows, side="right") - 1
    members = [group == i for i in range(len(firsts))]
    labels = tuple(_label(rows[mine]) for mine in members)
    values = tuple(tuple(means[mine].mean(0).tolist()) for mine in members)
    spread = tuple(_spread(label, means[mine]) for label, mine in zip(labels, members, strict=True))
    note = f"Users are the values of {column}; groups by their number of rows evaluated. A user counts once."
    columns = ("users with", "users", *(f"{name} {q}" for name in names for q in _QUANTILES))
    return (
        MatrixFinding(f"{title} by activity of users", labels, tuple(names), values, note),
        TableFinding(f"{title}: spread among users", columns, spread, note),
    )


def _label(rows: NDArray[Any]) -> str:
    low, high = int(rows.min()), int(rows.max())
    return f"{low:,} to {high:,} rows" if low < high else f"{low:,} row{'' if low == 1 else 's'}"


def _spread(label: str, means: NDArray[Any]) -> tuple[str | int | float, ...]:
    quantiles = np.quantile(means, list(_QUANTILES.values()), axis=0).T
    return (label, len(means), *(float(value) for value in quantiles.ravel()))
