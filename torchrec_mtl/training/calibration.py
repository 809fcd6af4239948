"""How labels follow predictions: rows in ten groups by prediction, kept in ``calibration.json``. Without torch."""

# mypy: disable-error-code="import-untyped,no-untyped-call"
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from torchrec_mtl.atomic import write_text
from torchrec_mtl.training.metrics import Vector, as_columns
from torchrec_mtl.training.versioned import load_versioned

FILE: Final = "calibration.json"
GROUPS: Final = 10
_VERSION: Final = 1
_NORMAL: Final = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Group:
    """Rows with predictions next to each other.

    Attributes:
        rows: number of them.
        prediction: their mean.
        label: its mean.
        half: half the width of the 95 % interval of the mean label, by the normal approximation.
    """

    rows: int
    prediction: float
    label: float
    half: float


@dataclass(frozen=True)
class Calibration:
    """Of an evaluation.

    Attributes:
        step: of the checkpoint evaluated.
        split: "test" or "eval".
        tasks: task -> groups of as many rows each, lowest predictions first; none where a prediction is not finite.
    """

    step: int
    split: str
    tasks: Mapping[str, Sequence[Group]]


def group_rows(labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike) -> tuple[Group, ...]:
    """Return up to ten groups of equal size, rows in the order of their predictions.

    A tied row has the mean label of its ties, which is the mean over all their orders: the groups do not depend on the
    order of the input, and so not on the number of ranks.

    Args:
        labels: [N]; may be nan where the weight is 0.
        predictions: [N], on the label's scale.
        weights: [N]; 0 marks padding and rows outside the task's space. Other weights all count as 1, as in metrics.
    """
    kept = np.asarray(weights) != 0
    y, p = as_columns(np.asarray(labels)[kept], np.asarray(predictions)[kept])
    if not p.size or not np.isfinite(p).all():
        return ()
    order = np.argsort(p, kind="stable")
    y, p = y[order], p[order]
    starts = np.flatnonzero(np.append(True, p[1:] != p[:-1]))
    sizes = np.diff(starts, append=p.size)
    mean = np.repeat(np.add.reduceat(y, starts) / sizes, sizes)
    spread = np.repeat(np.add.reduceat((y - mean) ** 2, starts) / sizes, sizes)
    cuts = np.arange(min(GROUPS, p.size) + 1) * p.size // min(GROUPS, p.size)
    return tuple(_group(p[a:b], mean[a:b], spread[a:b]) for a, b in pairwise(cuts.tolist()))


def _group(predictions: Vector, labels: Vector, spreads: Vector) -> Group:
    """Return the group of rows that have the mean label of their ties, and the variance within these."""
    variance = float(spreads.mean() + labels.var())  # within and between; E[y^2] - E[y]^2 cancels far from 0
    half = _NORMAL * math.sqrt(variance / labels.size)
    return Group(labels.size, float(predictions.mean()), float(labels.mean()), half)


def lifts(groups: Sequence[Group]) -> list[float]:
    """Return each group's mean label over that of all rows; nan where the latter is not above 0.

    Example:
        >>> lifts([Group(5, 0.1, 0.0, 0.0), Group(5, 0.9, 0.5, 0.0)])
        [0.0, 2.0]
    """
    rows = sum(group.rows for group in groups)
    mean = sum(group.rows * group.label for group in groups) / rows if rows else 0.0
    return [group.label / mean if mean > 0 else math.nan for group in groups]


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write ``{"version": 1, "step": ..., "split": ..., "tasks": {task: [{"rows": ..., ...}, ...]}}``."""
    write_text(path, json.dumps({"version": _VERSION, **asdict(calibration)}, indent=1, allow_nan=False) + "\n")


def load_calibration(path: Path) -> Calibration:
    """Return what `save_calibration` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    return load_versioned(path, _VERSION, _read, what="the calibration of a run")


def _read(plain: Mapping[str, Any]) -> Calibration:
    tasks = {str(task): tuple(map(_read_group, groups)) for task, groups in plain["tasks"].items()}
    return Calibration(int(plain["step"]), str(plain["split"]), tasks)


def _read_group(plain: Mapping[str, float]) -> Group:
    group = Group(int(plain["rows"]), *(float(plain[name]) for name in ("prediction", "label", "half")))
    if group.rows < 1 or not all(map(math.isfinite, (group.prediction, group.label, group.half))):
        raise ValueError(f"no group of rows: {plain!r}")
    return group
