"""Objective against objective, and how the front grew over the trials."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import io
import itertools
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchrec_mtl.bench import pareto
from torchrec_mtl.bench.report import Plot
from torchrec_mtl.tuning.geometry import hypervolumes
from torchrec_mtl.tuning.objectives import Objective
from torchrec_mtl.tuning.results import Point, Result

_MARKS = "diamond: chosen; square: untuned; circles: other points; dots: trials, one seed each; dashed: not beaten"


def plots_of(result: Result) -> list[Plot]:
    """Return a plot for every two objectives, and one of the hypervolume where there is one."""
    found = [_pair(result, x, y) for x, y in itertools.combinations(result.study.objectives, 2)]
    volumes = hypervolumes([trial.gains for trial in result.trials])
    if volumes is not None:
        found.append(Plot("front-hypervolume.svg", "Hypervolume", _curve(volumes), _VOLUME))
    return found


_VOLUME = (
    "what the front of the trials so far covers, as a part of what it covers at the end; the reference point lies a "
    "tenth of the last front's range below its worst values"
)


def _pair(result: Result, x: Objective, y: Objective) -> Plot:
    shown = [point for point in result.points if point.complete]
    points = [
        pareto.Point(p.name, _role(result, p), p.estimate(x, "validation"), p.estimate(y, "validation")) for p in shown
    ]
    values = [(x.of(trial.row.validation), y.of(trial.row.validation)) for trial in result.trials]
    faint = [(a, b) for a, b in values if a is not None and b is not None]
    labels = {(o.task, o.metric): _label(o) for o in (x, y)}
    drawn = pareto.draw(points, (x.task, x.metric), (y.task, y.metric), title=_MARKS, faint=faint, labels=labels)
    name = f"front-{x.name}-{y.name}.svg".replace("/", "_")
    return Plot(name, f"{x.name} against {y.name}, validation rows", drawn)


def _role(result: Result, point: Point) -> str:
    if point is result.chosen:
        return "chosen"
    return "system" if point.trial.words else "baseline"


def _label(objective: Objective) -> str:
    return f"{objective.task} {objective.metric} ({'higher' if objective.sign > 0 else 'lower'} is better)"


def _curve(volumes: Sequence[float]) -> str:
    with mpl.rc_context(pareto.STYLE):
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        numbers = range(1, len(volumes) + 1)
        axes.step(numbers, volumes, where="post", color="#2b7de0", lw=1.2)
        axes.plot(numbers, volumes, ".", color="#2b7de0", ms=4)
        axes.set_xlabel("trials")
        axes.set_ylabel("hypervolume, part of the last")
        axes.set_ylim(-0.03, 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, color=pareto.INK, alpha=0.12, lw=0.5)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
