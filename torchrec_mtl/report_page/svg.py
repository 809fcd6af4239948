"""Charts of numbers over steps as SVG, in a page's colours; a few lines of our own, since matplotlib may be absent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from torchrec_mtl.findings import shown

COLOURS = 8  # that a page has for curves
_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 352, 14, 178
_MOST_POINTS = 2 * (_RIGHT - _LEFT)
_MOST_DOTS = 40
_SPLIT = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Curve:
    """A number over steps.

    Attributes:
        name: in the legend; curves of one name share its line.
        colour: 1 to ``COLOURS``.
        points: (step, value) by step; a value that is not finite is a gap.
        faint: drawn thin, without dots.
    """

    name: str
    colour: int
    points: tuple[tuple[int, float], ...]
    faint: bool = False


@dataclass(frozen=True)
class _Axes:
    """Where numbers lie in the drawing."""

    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        low, high = self.steps
        return _LEFT + (step - low) / (high - low) * (_RIGHT - _LEFT)

    def y(self, value: float) -> float:
        low, high = self.values
        return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)


def figure(title: str, curves: Sequence[Curve], phases: Sequence[int] = (), *, last_step: int = 0) -> str:
    """Return a ``<figure>`` of the curves with a legend of their last values; "" where there is nothing to draw.

    Args:
        title: what the numbers are.
        curves: all on the same axes.
        phases: steps after which a phase of training ended, drawn as vertical lines that no curve crosses.
        last_step: the horizontal axis goes to this at least.
    """
    finite = [(s, v) for curve in curves for s, v in curve.points if math.isfinite(v)]
    if not finite:
        return ""
    values = [v for _, v in finite]
    axes = _Axes((0, max(1, last_step, *(s for s, _ in finite))), _padded(min(values), max(values)))
    lines = "".join(_curve(curve, axes, phases) for curve in curves)
    return (
        f"<figure><figcaption><strong>{escape(title)}</strong></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} over steps">'
        f"{_grid(axes)}{_phase_lines(axes, phases)}{lines}</svg><figcaption>{_legend(curves)}</figcaption></figure>"
    )


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


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _grid(axes: _Axes) -> str:
    parts = []
    for value in ticks(*axes.values):
        y = axes.y(value)
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for step in ticks(*axes.steps, count=5):
        x = axes.x(step)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{_short(step)}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    """Write a tick in a few letters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _phase_lines(axes: _Axes, phases: Sequence[int]) -> str:
    return "".join(
        f'<line x1="{axes.x(step):.1f}" x2="{axes.x(step):.1f}" y1="{_TOP}" y2="{_BOTTOM}" stroke="var(--soft)" '
        'stroke-dasharray="2 3" opacity="0.5"/>'
        for step in phases
    )


def _curve(curve: Curve, axes: _Axes, phases: Sequence[int]) -> str:
    look = f'stroke="var(--c{curve.colour})" stroke-width="{1.3 if curve.faint else 1.8}"'
    opacity = ' opacity="0.65"' if curve.faint else ""
    drawn = []
    for points in _stretches(curve.points, phases):
        path = " ".join(f"{axes.x(s):.1f},{axes.y(v):.1f}" for s, v in _thinned(points))
        drawn.append(f'<polyline points="{path}" fill="none" {look} stroke-linejoin="round"{opacity}/>')
        if len(points) == 1 or (not curve.faint and len(curve.points) <= _MOST_DOTS):
            drawn += [
                f'<circle cx="{axes.x(s):.1f}" cy="{axes.y(v):.1f}" r="2.6" fill="var(--c{curve.colour})"{opacity}>'
                f"<title>{escape(curve.name)}, step {s:,}: {shown(v)}</title></circle>"
                for s, v in points
            ]
    return "".join(drawn)


def _stretches(points: Sequence[tuple[int, float]], phases: Sequence[int]) -> list[list[tuple[int, float]]]:
    """Cut where a value is missing and where a phase ended."""
    found: list[list[tuple[int, float]]] = [[]]
    for before, point in pairwise([(0, math.nan), *points]):
        if any(before[0] <= end < point[0] for end in phases) or not math.isfinite(point[1]):
            found.append([])
        if math.isfinite(point[1]):
            found[-1].append(point)
    return [stretch for stretch in found if stretch]


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Keep the lowest and the highest of neighbours that would share a column of pixels."""
    size = math.ceil(len(points) * 2 / _MOST_POINTS)
    if size <= 2:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    extremes = [{min(g, key=lambda p: p[1]), max(g, key=lambda p: p[1])} for g in groups]
    return [point for pair in extremes for point in sorted(pair)]


def _legend(curves: Sequence[Curve]) -> str:
    """Name each curve once, with the last value of the one that is not faint."""
    by_name = {c.name: c for c in sorted(curves, key=lambda c: not c.faint)}
    return "".join(
        f'<span class=key style="--of: var(--c{curve.colour})">{escape(name)} {shown(_last(curve))}</span>'
        for name, curve in ((c.name, by_name[c.name]) for c in {c.name: c for c in curves}.values())
    )


def _last(curve: Curve) -> float:
    return next((v for _, v in reversed(curve.points) if math.isfinite(v)), math.nan)
