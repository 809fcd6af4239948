"""Where numbers lie in a chart, and the round numbers beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 352, 14, 178
_SPLIT = (1, 2, 2.5, 5, 10)
_LARGEST = 1e150  # that has a place in a chart; sums and powers of ten of larger ones overflow


@dataclass(frozen=True)
class Axes:
    """A drawing's scales.

    Attributes:
        across: first and last number of the horizontal axis; of their logarithms where ``log``.
        up: of the vertical axis.
        log: both axes are logarithmic.
    """

    across: tuple[float, float]
    up: tuple[float, float]
    log: bool = False

    @classmethod
    def around(cls, across: Sequence[float], up: Sequence[float], *, first: float | None, log: bool) -> Axes:
        """Return axes with room around the numbers.

        Args:
            across: finite numbers of the horizontal axis.
            up: finite numbers of the vertical axis.
            first: where the horizontal axis begins, without room before or after; None: around its numbers.
            log: both axes are logarithmic; all numbers are above 0.
        """
        x, y = ([math.log10(v) for v in values] if log else values for values in (across, up))
        return cls(
            _padded(min(x), max(x)) if first is None else (first, max(first + 1, max(x))), _padded(min(y), max(y)), log
        )

    def x(self, number: float) -> float:
        """Return the place on the horizontal axis."""
        low, high = self.across
        return LEFT + (self._scaled(number) - low) / (high - low) * (RIGHT - LEFT)

    def y(self, number: float) -> float:
        """Return the place on the vertical axis."""
        low, high = self.up
        return BOTTOM - (self._scaled(number) - low) / (high - low) * (BOTTOM - TOP)

    def grid(self) -> str:
        """Return lines and numbers of the vertical axis, and numbers of the horizontal one."""
        parts = []
        for value in self._ticks(self.up, 4):
            y = self.y(value)
            parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
        parts += [
            f'<text x="{self.x(value):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{short(value)}</text>'
            for value in self._ticks(self.across, 5)
        ]
        return "".join(parts)

    def _scaled(self, number: float) -> float:
        return math.log10(number) if self.log else number

    def _ticks(self, ends: tuple[float, float], count: int) -> list[float]:
        return _log_ticks(*ends) if self.log else ticks(*ends, count)


def drawable(number: float) -> bool:
    """A chart has a place for the number."""
    return abs(number) <= _LARGEST  # not for nan


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about so many round numbers between two numbers.

    Example:
        >>> ticks(0.53, 0.69), ticks(0, 1470)
        ([0.55, 0.6, 0.65], [0.0, 500.0, 1000.0])
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s for s in _SPLIT if s * power >= rough * 0.999) * power
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, and where there are few of them numbers between."""
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [s * 10.0**p for p in powers for s in steps if low <= math.log10(s * 10.0**p) <= high]


def short(value: float) -> str:
    """Write a tick in a few letters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room
