"""Which points no other one beats; pure geometry, in any number of objectives."""

from __future__ import annotations

from collections.abc import Sequence


def unbeaten(points: Sequence[Sequence[float]]) -> list[int]:
    """Return which points no other one beats; a twin of a point does not beat it.

    Args:
        points: all of one length; higher is better in each objective.

    Example:
        >>> unbeaten([(0.7, 0.5), (0.8, 0.4), (0.6, 0.4)])
        [0, 1]
    """
    return [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether a point is nowhere below the other and somewhere above it."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
