"""What one run logged over its steps, as charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torchrec_mtl.report_page.html import charts, folded
from torchrec_mtl.report_page.log import Log
from torchrec_mtl.report_page.svg import COLOURS, Curve, Look, figure

HOW_TO_READ = "Thin: training, over the rows since the line before or the window. With dots: evaluation data."
PHASES = "Dotted line across: a phase of training ended."
NOT_DRAWN = frozenset({"count", "loss", "queries"})
LEVELS: Mapping[str, tuple[float, ...]] = {"cosine": (0.0,), "norm": (1.0,), "ne": (1.0,), "calibration": (1.0,)}
"""Values that stand out, marked by a line: of kinds of gradient numbers, and of metrics."""
_ALONE = "last"  # the name of a chart's only curve


def curves_of(log: Log, tasks: Sequence[str]) -> str:
    """Return losses, metrics, what the head logged, and, closed at first, speed.

    Args:
        log: of the run.
        tasks: their order gives the colours.
    """
    drawing = _Drawing(log, tasks)
    return "".join(
        [
            f"<p class=soft>{HOW_TO_READ} {PHASES if log.phases else ''}</p>",
            _section("Losses", drawing.losses()),
            _section("Metrics", drawing.metrics()),
            _section("Logged by the head", drawing.of_head()),
            folded("Speed and learning rate", charts(others)) if (others := drawing.others()) else "",
        ]
    )


def gradients_of(log: Log, tasks: Sequence[str]) -> str:
    """Return a chart each of cosines, norm ratios, conflicts, and weights; "" where none were logged."""
    drawn = _Drawing(log, tasks).gradients()
    return charts(drawn) if drawn else ""


def _section(title: str, figures: Sequence[str]) -> str:
    return f"<h3>{title}</h3>{charts(figures)}" if figures else ""


class _Drawing:
    """A log as charts; a name has one colour in all of them."""

    def __init__(self, log: Log, tasks: Sequence[str]) -> None:
        self._log = log
        self._colours = {name: i for i, name in enumerate(tasks)}

    def losses(self) -> list[str]:
        """Return a chart a loss, since losses of different tasks have different scales, and one of their sum."""
        drawn = []
        for name in self._log.below("train/loss"):
            training = self._curve(f"train/loss/{name}", "training", colour=COLOURS, faint=True)
            evaluated = self._curve(f"eval/{name}/loss", "evaluation", colour=1)
            drawn += self._figure(name, [training, evaluated])
        return drawn + self._figure("all tasks", [self._curve("eval/loss", "evaluation, weighted sum", colour=1)])

    def metrics(self) -> list[str]:
        """Return a chart a metric, with all tasks that have it."""
        keys = {f"train/window/{name}": name for name in self._log.below("train/window")}
        keys |= {f"eval/{name}": name for name in self._log.below("eval") if "/" in name}
        found = dict.fromkeys(name.rpartition("/")[2] for name in keys.values())
        return self._grouped(
            {metric: [k for k in keys if k.endswith(f"/{metric}")] for metric in found if metric not in NOT_DRAWN},
            lambda key: keys[key].rpartition("/")[0],
        )

    def of_head(self) -> list[str]:
        """Return charts of what heads log when a phase ends, ``what/task/number``."""
        keys = {n: n.split("/") for n in self._log.series if not n.startswith(("train/", "eval/"))}
        groups: dict[str, list[str]] = {}
        for key, (what, *_, number) in keys.items():
            groups.setdefault(f"{what} {number}", []).append(key)
        return self._grouped(groups, lambda key: "/".join(keys[key][1:-1]) or _ALONE)

    def gradients(self) -> list[str]:
        """Return charts of ``train/gradient/kind/task``."""
        groups: dict[str, list[str]] = {}
        for name in self._log.below("train/gradient"):
            groups.setdefault(name.partition("/")[0], []).append(f"train/gradient/{name}")
        drawn = []
        for kind, words in KINDS.items():
            curves = [self._curve(key, key.split("/", 3)[3]) for key in groups.get(kind, []) if key.count("/") > 2]
            drawn += self._figure(words, curves, levels=LEVELS.get(kind, ()))
        return drawn

    def others(self) -> list[str]:
        """Return charts of speed and learning rate."""
        names = [name for name in self._log.below("train") if name.split("/")[0] not in {"loss", "window", "gradient"}]
        return self._grouped({name.replace("/", " "): [f"train/{name}"] for name in names}, lambda _: _ALONE)

    def _grouped(self, groups: Mapping[str, Sequence[str]], name_of: Callable[[str], str]) -> list[str]:
        """Return a chart a group of keys."""
        drawn = []
        for title, keys in groups.items():
            levels = LEVELS.get(title, ())
            drawn += self._figure(title, [self._curve(key, name_of(key)) for key in keys], levels=levels)
        return drawn

    def _curve(self, key: str, name: str, *, colour: int | None = None, faint: bool = False) -> Curve:
        if colour is None:
            colour = COLOURS if name == _ALONE else self._colours.setdefault(name, len(self._colours)) % COLOURS + 1
        return Curve(name, colour, self._log.points(key), faint or key.startswith("train/window/"))

    def _figure(self, title: str, curves: Sequence[Curve], *, levels: tuple[float, ...] = ()) -> list[str]:
        log = self._log
        there = [curve for curve in curves if curve.points]
        drawn = figure(title, there, log.phases, last_step=log.last_step, look=Look(levels=levels))
        return [drawn] if drawn else []


KINDS: Mapping[str, str] = {
    "cosine": "cosine of two tasks' gradients",
    "norm": "norm of a task's gradient, relative",
    "conflict": "share of steps in conflict",
    "weight": "weight of a task's gradient",
}
"""Kinds of gradient numbers, and what they are called."""
