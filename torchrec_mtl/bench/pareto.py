"""Task against task: one point a model with its intervals, and a line through those that no other model beats."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from torchrec_mtl.bench.fronts import unbeaten
from torchrec_mtl.bench.labels import Box, place_labels
from torchrec_mtl.bench.report import Plot
from torchrec_mtl.bench.scores import PRIMARY, direction
from torchrec_mtl.bench.statistics import Estimate, estimate
from torchrec_mtl.bench.tables import Column, by_seed, tasks_of
from torchrec_mtl.bench.tuning import Outcome

INK = "#1b1c1d"  # of all lines and letters, so that a page can put its own in its place
PAPER = "#fefefe"  # behind them, likewise
_COLOURS = {"baseline": "#8a8f98", "system": "#2b7de0", "chosen": "#c2570c"}
_MARKERS = {"baseline": "s", "system": "o", "chosen": "D"}
_LEGEND = "squares: baselines; circles: systems; dashed: not beaten by another"
STYLE: Any = {
    "svg.hashsalt": "torchrec_mtl",  # the same drawing is the same file
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9.0,
}


@dataclass(frozen=True)
class Point:
    """One model."""

    name: str
    role: str
    x: Estimate
    y: Estimate


def plots(data: str, outcomes: Sequence[Outcome]) -> list[Plot]:
    """Return a plot for every two tasks of a data set, AUC of binary ones and Gini of regressions."""
    columns: list[Column] = [(task.name, PRIMARY[task.kind]) for task in tasks_of(outcomes)]
    found = []
    for x, y in itertools.combinations(columns, 2):
        points = [
            Point(o.pair.model.name, o.pair.model.role, *(estimate(list(by_seed(o, c).values())) for c in (x, y)))
            for o in outcomes
        ]
        points = [p for p in points if p.x.count and p.y.count]
        if points:
            title = f"{' '.join(x)} against {' '.join(y)}"
            found.append(Plot(f"{data}-{x[0]}-{y[0]}.svg", title, draw(points, x, y, title=_LEGEND)))
    return found


def front(points: Sequence[tuple[float, float]], *, signs: tuple[int, int] = (1, 1)) -> list[int]:
    """Return which points no other one beats, by the first coordinate; a twin of a point does not beat it.

    Args:
        points: one a model.
        signs: 1 where higher is better, -1 where lower is.

    Example:
        >>> front([(0.7, 0.5), (0.8, 0.4), (0.6, 0.4)])
        [0, 1]
    """
    better = [(x * signs[0], y * signs[1]) for x, y in points]
    return sorted(unbeaten(better), key=lambda i: points[i])


def draw(
    points: Sequence[Point],
    x: Column,
    y: Column,
    *,
    title: str,
    faint: Sequence[tuple[float, float]] = (),
    labels: Mapping[Column, str] | None = None,
) -> str:
    """Return a drawing of points with their names and intervals, and of faint dots as far as they lie near the points.

    Args:
        points: what is compared.
        x: task and metric across.
        y: task and metric upwards.
        title: what marks and lines mean.
        faint: where to put the dots.
        labels: of the axes; by default task and metric.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _points(axes, points)
        best = front([(p.x.mean, p.y.mean) for p in points], signs=(direction(x[1]), direction(y[1])))
        axes.plot(
            [points[i].x.mean for i in best], [points[i].y.mean for i in best], color=INK, lw=0.8, ls="--", zorder=1
        )
        axes.set_xlabel((labels or {}).get(x, " ".join(x)))
        axes.set_ylabel((labels or {}).get(y, " ".join(y)))
        axes.set_title(title, fontsize=7, loc="left")
        axes.grid(visible=True, color=INK, alpha=0.12, lw=0.5)
        axes.margins(0.12)
        _faint(axes, faint)
        canvas.draw()  # lays the axes out; from here on they stay, so that pixels are final
        figure.set_layout_engine("none")
        _labels(axes, canvas, points, best)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _points(axes: Axes, points: Sequence[Point]) -> None:
    for point in points:
        colour = _COLOURS[point.role]
        bars = [0.0 if math.isnan(e.half) else e.half for e in (point.x, point.y)]
        axes.errorbar(
            point.x.mean,
            point.y.mean,
            xerr=bars[0],
            yerr=bars[1],
            fmt=_MARKERS[point.role],
            color=colour,
            ms=5,
            elinewidth=0.8,
            capsize=2,
            zorder=2,
        )


def _faint(axes: Axes, places: Sequence[tuple[float, float]]) -> None:
    """Draw dots without widening the axes: one bad run must not squash what is compared."""
    if places:
        limits = axes.get_xlim(), axes.get_ylim()
        axes.plot(*zip(*places, strict=True), ".", color=INK, alpha=0.45, ms=5, mew=0, zorder=0)
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])


def _labels(axes: Axes, canvas: FigureCanvasAgg, points: Sequence[Point], best: Sequence[int]) -> None:
    """Write the models' names where they cover nothing, tied to far points by a thin line."""
    centres = axes.transData.transform([(p.x.mean, p.y.mean) for p in points])
    pixels = [(float(x), float(y)) for x, y in centres]
    texts = [axes.text(0, 0, p.name, fontsize=8, va="bottom") for p in points]
    extents = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    sizes = [(float(e.width) + 2, float(e.height)) for e in extents]
    obstacles = [bar for point, (x, y) in zip(points, pixels, strict=True) for bar in _bars(axes, point, x, y)]
    obstacles += [box for i, j in itertools.pairwise(best) for box in _line(pixels[i], pixels[j])]
    boxes = place_labels(pixels, sizes, obstacles, _box(axes.get_window_extent()))
    back = axes.transData.inverted()
    for text, box, (x, y) in zip(texts, boxes, pixels, strict=True):
        text.set_position(tuple(back.transform((box.left, box.bottom))))
        near = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
        if math.dist(near, (x, y)) > 16:
            ends = back.transform([near, (x, y)])
            axes.plot(ends[:, 0], ends[:, 1], color=INK, lw=0.4, alpha=0.6, zorder=1)


def _bars(axes: Axes, point: Point, x: float, y: float) -> list[Box]:
    ends = [0.0 if math.isnan(e.half) else e.half for e in (point.x, point.y)]
    right, top = axes.transData.transform((point.x.mean + ends[0], point.y.mean + ends[1]))
    across, up = float(right) - x, float(top) - y
    return [
        Box(x - 4, y - 4, x + 4, y + 4),
        Box(x - across, y - 1, x + across, y + 1),
        Box(x - 1, y - up, x + 1, y + up),
    ]


def _line(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Cover a line with small boxes."""
    count = max(1, int(math.dist(start, end) / 5))
    middles = [tuple(a + (b - a) * i / count for a, b in zip(start, end, strict=True)) for i in range(count + 1)]
    return [Box(x - 2, y - 2, x + 2, y + 2) for x, y in middles]


def _box(extent: Bbox) -> Box:
    return Box(*map(float, extent.extents))
