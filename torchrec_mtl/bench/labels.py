"""Where labels of points go so that none covers another, a point, or a bar; pure geometry in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_RADII = (7.0, 14.0, 24.0, 36.0, 52.0, 72.0, 96.0, 128.0)
_ANGLES = 16


@dataclass(frozen=True)
class Box:
    """A rectangle: left, bottom, right, top."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    def outside(self, bounds: Box) -> float:
        """Return the area that sticks out of the bounds."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(bounds)


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], obstacles: Sequence[Box], bounds: Box
) -> list[Box]:
    """Return a box a label, as near its point as room allows; where there is none, the box that covers least.

    Args:
        points: what is labelled.
        sizes: width and height of each label.
        obstacles: what labels must not cover, such as points and bars.
        bounds: labels stay inside.
    """
    placed: list[Box] = []
    for point, size in zip(points, sizes, strict=True):
        best, least = None, math.inf
        for box in _candidates(point, size):
            cost = sum(box.overlap(other) for other in (*placed, *obstacles)) + 10 * box.outside(bounds)
            if cost < least:
                best, least = box, cost
            if cost == 0:
                break
        assert best is not None
        placed.append(best)
    return placed


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> Iterator[Box]:
    """Yield boxes around a point, the nearest first, to the right before the left."""
    (x, y), (width, height) = point, size
    for radius in _RADII:
        for i in range(_ANGLES):
            turn = (i + 1) // 2 * (1 if i % 2 else -1) * 2 * math.pi / _ANGLES  # 0, 1, -1, 2, -2, ...
            across, up = math.cos(turn), math.sin(turn)
            left = x + radius * across + (across - 1) / 2 * width
            bottom = y + radius * up + (up - 1) / 2 * height
            yield Box(left, bottom, left + width, bottom + height)
