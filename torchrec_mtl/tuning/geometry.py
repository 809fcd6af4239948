"""Points of several objectives, higher better in each: how much they cover, and which of many to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torchrec_mtl.bench.fronts import unbeaten

Point = Sequence[float]
MOST_GOALS = 4  # that a hypervolume is computed for: its cost grows with their number


def spread(points: Sequence[Point], most: int) -> list[int]:
    """Return which points to keep of many: the best in each objective, then always the one farthest from those kept.

    Distances are between objectives scaled to 0..1 over the points.

    Args:
        points: all of one length.
        most: how many to keep.

    Example:
        >>> spread([(0, 10), (1, 9.9), (5, 5), (10, 0)], 3)
        [0, 2, 3]
    """
    if len(points) <= most:
        return list(range(len(points)))
    scaled = scaled_to_one(points)
    everyone = range(len(points))
    kept = list(dict.fromkeys(max(everyone, key=lambda i: scaled[i][k]) for k in range(len(points[0]))))[:most]
    while len(kept) < most:
        left = [i for i in everyone if i not in kept]
        kept.append(max(left, key=lambda i: min(math.dist(scaled[i], scaled[j]) for j in kept)))
    return sorted(kept)


def scaled_to_one(points: Sequence[Point]) -> list[tuple[float, ...]]:
    """Return the points, each objective scaled so that the worst is 0 and the best 1; 1 where all are equal."""
    columns = list(zip(*points, strict=True))
    lows, highs = [min(c) for c in columns], [max(c) for c in columns]
    return [
        tuple(1.0 if low == high else (x - low) / (high - low) for x, low, high in zip(p, lows, highs, strict=True))
        for p in points
    ]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the volume that is below some point and above the reference.

    Slices along the last objective, from the highest point down; each slice is a volume of one objective fewer.

    Args:
        points: all of one length; those that are not above the reference add nothing.
        reference: lower corner.

    Example:
        >>> hypervolume([(1, 3), (2, 2), (3, 1)], (0, 0))
        6.0
    """
    above = [p for p in points if all(x > r for x, r in zip(p, reference, strict=True))]
    above = [above[i] for i in unbeaten(above)]
    if not above:
        return 0.0
    if len(reference) == 1:
        return float(max(p[0] for p in above) - reference[0])
    above.sort(key=lambda p: -p[-1])
    floors = [*(p[-1] for p in above[1:]), reference[-1]]
    total = 0.0
    for i, floor in enumerate(floors):
        height = above[i][-1] - floor
        if height > 0:
            total += height * hypervolume([p[:-1] for p in above[: i + 1]], reference[:-1])
    return total


def hypervolumes(points: Sequence[Point | None]) -> list[float] | None:
    """Return after each trial the hypervolume so far as a part of that at the end.

    The reference lies a tenth of the range of all trials' front below its worst values, so that the ends of the front
    count, too.

    Args:
        points: one a trial; None: it failed.

    Returns:
        One number a trial, 0 to 1; None where there is no such volume: one objective, more than ``MOST_GOALS``, a
        front of one point, or one whose points lie too close for a volume.
    """
    done = [p for p in points if p is not None]
    front = [done[i] for i in unbeaten(done)]
    columns = list(zip(*front, strict=True))
    if not 1 < len(columns) <= MOST_GOALS or any(min(c) == max(c) for c in columns):
        return None
    reference = [min(c) - 0.1 * (max(c) - min(c)) for c in columns]
    whole = hypervolume(front, reference)
    if not whole > 0:
        return None
    found: list[float] = []
    best: list[Point] = []
    for point in points:
        if point is not None and not any(all(a >= b for a, b in zip(old, point, strict=True)) for old in best):
            best = [*best, point]
            best = [best[i] for i in unbeaten(best)]
            found.append(hypervolume(best, reference) / whole)
        else:
            found.append(found[-1] if found else 0.0)
    return found
