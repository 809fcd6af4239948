"""Which point of a front to take, by a rule that is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torchrec_mtl.bench.fronts import unbeaten
from torchrec_mtl.tuning.geometry import scaled_to_one

RULES = ("ideal", "rank")
Rule = Literal["ideal", "rank"]


@dataclass(frozen=True)
class Choice:
    """How to choose.

    Attributes:
        rule: ``ideal``: the point nearest to the one that has the best of every objective; ``rank``: the best mean
            rank; or the number of a trial.
        prefer: ``task/metric`` -> weight of its distance, or of its rank; 1 where it is not named.
    """

    rule: Rule | int = "ideal"
    prefer: Mapping[str, float] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """The rule in words."""
        if isinstance(self.rule, int):
            return "asked for by --choose"
        what = "nearest to the ideal point" if self.rule == "ideal" else "best mean rank"
        preferred = ", ".join(f"{name} {weight:g}" for name, weight in self.prefer.items())
        return f"{what}, weights: {preferred}" if preferred else what


def choose(points: Sequence[Sequence[float]], rule: Rule, weights: Sequence[float]) -> int:
    """Return which point a rule takes among those that no other beats; the first of equals.

    ``ideal`` scales each objective to 0..1 over these points and takes the one nearest to (1, 1, ...), squares
    weighted. ``rank`` counts in each objective how many of these points are better, and takes the lowest weighted mean.

    Args:
        points: higher is better in each objective.
        rule: see above.
        weights: one an objective.

    Example:
        >>> choose([(0, 10), (8, 8), (10, 0)], "ideal", (1, 1)), choose([(0, 10), (8, 8), (10, 0)], "ideal", (9, 1))
        (1, 1)
    """
    kept = unbeaten(points)
    front = [points[i] for i in kept]
    if rule == "rank":
        losses = [_mean_rank(front, point, weights) for point in front]
    else:
        scaled = scaled_to_one(front)
        losses = [math.fsum(w * (1 - x) ** 2 for w, x in zip(weights, p, strict=True)) for p in scaled]
    return kept[min(range(len(front)), key=lambda i: losses[i])]


def _mean_rank(front: Sequence[Sequence[float]], point: Sequence[float], weights: Sequence[float]) -> float:
    ranks = [sum(other[k] > x for other in front) for k, x in enumerate(point)]
    return math.fsum(w * rank for w, rank in zip(weights, ranks, strict=True))
