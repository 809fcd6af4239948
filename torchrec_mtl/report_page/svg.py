"""Charts as SVG, in a page's colours; a few lines of our own, since matplotlib may be absent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

from torchrec_mtl.findings import shown
from torchrec_mtl.report_page.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes, drawable, ticks

__all__ = ["COLOURS", "DASHES", "Curve", "Look", "figure", "ticks"]

COLOURS = 8  # that a page has for curves
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "4 2", "12 4", "1 3", "6 2 2 2 2 2")
_MOST_POINTS = 2 * (RIGHT - LEFT)
_MOST_DOTS = 40
_LEGEND = ("key", '"key dashed"')  # classes

Point = tuple[float, float]
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Curve:
    """A number over steps, or over another number.

    Attributes:
        name: in the legend; curves of one name share its line.
        colour: 1 to ``COLOURS``.
        points: (step, value) by step; a value that is not finite, or beyond 1e150, is a gap.
        faint: drawn thin, without dots.
        band: (step, low, high) by step, shaded; bars where there are dots.
        dash: lengths of strokes and gaps, for who cannot tell the colours apart; "": no gaps.
    """

    name: str
    colour: int
    points: tuple[Point, ...]
    faint: bool = False
    band: tuple[Interval, ...] = ()
    dash: str = ""


@dataclass(frozen=True)
class Look:
    """How a chart is laid out; by default over steps.

    Attributes:
        over: what the horizontal axis is of, in words.
        first: where it begins; None: near the first point.
        levels: values that a dotted line marks.
        diagonal: a dotted line marks where both axes have the same number.
        log: both axes are logarithmic, if all numbers are above 0.
        last: the legend tells each curve's last value.
        unit: what the horizontal axis counts, in the titles of dots.
    """

    over: str = "steps"
    first: float | None = 0
    levels: tuple[float, ...] = ()
    diagonal: bool = False
    log: bool = False
    last: bool = True
    unit: str = "step"


def figure(
    title: str, curves: Sequence[Curve], phases: Sequence[int] = (), *, last_step: int = 0, look: Look | None = None
) -> str:
    """Return a ``<figure>`` of the curves with a legend of their last values; "" where there is nothing to draw.

    Args:
        title: what the numbers are.
        curves: all on the same axes.
        phases: steps after which a phase of training ended, drawn as vertical lines that no curve crosses.
        last_step: the horizontal axis goes to this at least.
        look: see `Look`.
    """
    look = look or Look()
    finite = [point for curve in curves for point in curve.points if all(map(drawable, point))]
    if not finite:
        return ""
    axes = _axes(finite, [b for curve in curves for b in curve.band], look, last_step)
    lines = "".join(_curve(curve, axes, phases, look) for curve in curves)
    return (
        f"<figure><figcaption><strong>{escape(title)}</strong></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title} over {look.over}")}">'
        f"{axes.grid()}{_marks(axes, phases, look)}{lines}</svg>"
        f"<figcaption>{_legend(curves, look)}</figcaption></figure>"
    )


def _axes(points: Sequence[Point], bands: Sequence[Interval], look: Look, last_step: int) -> Axes:
    across = [s for s, _ in points]
    up = [*(v for _, v in points), *(end for _, *ends in bands for end in ends if drawable(end)), *look.levels]
    log = look.log and min(*across, *up) > 0
    if look.diagonal:
        across = up = [*across, *up]
    return Axes.around([*across, last_step] if last_step else across, up, first=None if log else look.first, log=log)


def _marks(axes: Axes, phases: Sequence[int], look: Look) -> str:
    lines: list[tuple[float, float, float, float]] = [(axes.x(step), axes.x(step), TOP, BOTTOM) for step in phases]
    lines += [(LEFT, RIGHT, axes.y(level), axes.y(level)) for level in look.levels]
    lines += [(LEFT, RIGHT, BOTTOM, TOP)] if look.diagonal else []
    return "".join(
        f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="var(--soft)" stroke-dasharray="2 3" '
        f'opacity="{0.5 if x1 == x2 else 0.9}"/>'
        for x1, x2, y1, y2 in lines
    )


def _curve(curve: Curve, axes: Axes, phases: Sequence[int], look: Look) -> str:
    colour = f"var(--c{curve.colour})"
    line = f'stroke="{colour}" stroke-width="{1.3 if curve.faint else 1.8}"'
    line += f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
    opacity = ' opacity="0.65"' if curve.faint else ""
    dotted = not curve.faint and len(curve.points) <= _MOST_DOTS
    drawn = [_band(curve, axes, colour, bars=dotted)] if curve.band else []
    for points in _stretches(curve.points, phases):
        path = " ".join(f"{axes.x(s):.1f},{axes.y(v):.1f}" for s, v in _thinned(points))
        drawn.append(f'<polyline points="{path}" fill="none" {line} stroke-linejoin="round"{opacity}/>')
        if len(points) == 1 or dotted:
            drawn += [
                f'<circle cx="{axes.x(s):.1f}" cy="{axes.y(v):.1f}" r="2.6" fill="{colour}"{opacity}>'
                f"<title>{escape(curve.name)}, {look.unit} {shown(s)}: {shown(v)}</title></circle>"
                for s, v in points
            ]
    return "".join(drawn)


def _band(curve: Curve, axes: Axes, colour: str, *, bars: bool) -> str:
    """Return the intervals as a bar a point, or as an area that has the gaps of the curve."""
    areas = [[_clipped(end, axes) for end in area] for there, area in groupby(curve.band, _drawn(axes)) if there]
    if bars:
        return "".join(
            f'<line x1="{axes.x(s):.1f}" x2="{axes.x(s):.1f}" y1="{axes.y(low):.1f}" y2="{axes.y(high):.1f}" '
            f'stroke="{colour}" opacity="0.55"/>'
            for area in areas
            for s, low, high in area
        )
    every = max(1, sum(map(len, areas)) // (_MOST_POINTS // 4))
    drawn = []
    for area in areas:
        kept = area[::-every][::-1]  # with the last
        there = [f"{axes.x(s):.1f},{axes.y(high):.1f}" for s, _, high in kept]
        back = [f"{axes.x(s):.1f},{axes.y(low):.1f}" for s, low, _ in reversed(kept)]
        drawn.append(f'<polygon points="{" ".join([*there, *back])}" fill="{colour}" opacity="0.18"/>')
    return "".join(drawn)


def _drawn(axes: Axes) -> Callable[[Interval], bool]:
    """Return whether an interval has a place."""
    return lambda end: all(map(drawable, end)) and (not axes.log or end[2] > 0)


def _clipped(end: Interval, axes: Axes) -> Interval:
    step, low, high = end
    return (step, max(low, 10 ** axes.up[0]), high) if axes.log else end  # of what is not above 0 there is no place


def _stretches(points: Sequence[Point], phases: Sequence[int]) -> list[list[Point]]:
    """Cut where a value is missing and where a phase ended."""
    found: list[list[Point]] = [[]]
    for before, point in pairwise([(0.0, math.nan), *points]):
        there = all(map(drawable, point))
        if any(before[0] <= end < point[0] for end in phases) or not there:
            found.append([])
        if there:
            found[-1].append(point)
    return [stretch for stretch in found if stretch]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Keep the lowest and the highest of neighbours that would share a column of pixels."""
    size = math.ceil(len(points) * 2 / _MOST_POINTS)
    if size <= 2:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    extremes = [{min(g, key=lambda p: p[1]), max(g, key=lambda p: p[1])} for g in groups]
    return [point for pair in extremes for point in sorted(pair)]


def _legend(curves: Sequence[Curve], look: Look) -> str:
    """Name each curve once, with the last value of the one that is not faint."""
    by_name = {c.name: c for c in sorted(curves, key=lambda c: not c.faint)}
    return "".join(
        f'<span class={_LEGEND[bool(curve.dash)]} style="--of: var(--c{curve.colour})">{escape(name)}'
        f"{f' {shown(_last(curve))}' if look.last else ''}</span>"
        for name, curve in ((c.name, by_name[c.name]) for c in {c.name: c for c in curves}.values())
    )


def _last(curve: Curve) -> float:
    return next((v for _, v in reversed(curve.points) if math.isfinite(v)), math.nan)
