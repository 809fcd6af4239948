"""What a run logged over its steps: charts from ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from torchrec_mtl.report_page.html import folded
from torchrec_mtl.report_page.svg import COLOURS, Curve, figure

Line = Mapping[str, float]
_HOW_TO_READ = "Thin: training, over the rows since the line before or the window. With dots: evaluation data."
_PHASES = " Dotted line: a phase of training ended."
_PHASE = "train/phase"
_ALONE = "last"  # the name of a chart's only curve
_NOT_DRAWN = frozenset({"count", "loss"})


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a ``metrics.jsonl``; one that a kill cut short is left out."""
    return list(_objects(path))


def _objects(path: Path) -> Iterator[Line]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield {key: _number(value) for key, value in line.items()}


def _number(value: object) -> float:
    return value if isinstance(value, (int, float)) else math.nan


def curves_of(lines: Sequence[Line], tasks: Sequence[str]) -> str:
    """Return losses, metrics, what the head logged, and, closed at first, gradients and speed.

    Args:
        lines: of the run.
        tasks: their order gives the colours.
    """
    log = _Log(lines, tasks)
    return "".join(
        [
            f"<p class=soft>{_HOW_TO_READ}{_PHASES if log.phases else ''}</p>",
            _section("Losses", log.losses()),
            _section("Metrics", log.metrics()),
            _section("Logged by the head", log.of_head()),
            folded("Gradients and speed", _charts(others)) if (others := log.others()) else "",
        ]
    )


def _section(title: str, figures: Sequence[str]) -> str:
    return f"<h3>{title}</h3>{_charts(figures)}" if figures else ""


def _charts(figures: Sequence[str]) -> str:
    return f"<div class=curves>{''.join(figures)}</div>"


def phase_ends(lines: Sequence[Line]) -> list[int]:
    """Return the steps at which a phase ended.

    Only lines of training name their phase; lines between two phases belong to the first.

    Example:
        >>> phase_ends([{"step": 4, "train/phase": 0}, {"step": 7}, {"step": 8, "train/phase": 1}])
        [7]
    """
    ends, known = [], None
    for before, line in pairwise([{}, *lines]):
        phase = line.get(_PHASE, known)
        if known is not None and phase != known:
            ends.append(int(before["step"]))
        known = phase
    return ends


class _Log:
    """The lines of a run as charts; a name has one colour in all of them."""

    def __init__(self, lines: Sequence[Line], tasks: Sequence[str]) -> None:
        self.phases = phase_ends(lines)
        self._lines = lines
        self._names = [n for n in dict.fromkeys(key for line in lines for key in line) if "/" in n and n != _PHASE]
        self._last_step = max((int(line["step"]) for line in lines), default=0)
        self._colours = {name: i for i, name in enumerate(tasks)}

    def losses(self) -> list[str]:
        """Return a chart a loss, since losses of different tasks have different scales, and one of their sum."""
        drawn = []
        for name in self._below("train/loss"):
            training = self._curve(f"train/loss/{name}", "training", colour=COLOURS, faint=True)
            evaluated = self._curve(f"eval/{name}/loss", "evaluation", colour=1)
            drawn += self._figure(name, [training, evaluated])
        return drawn + self._figure("all tasks", [self._curve("eval/loss", "evaluation, weighted sum", colour=1)])

    def metrics(self) -> list[str]:
        """Return a chart a metric, with all tasks that have it."""
        keys = {f"train/window/{name}": name for name in self._below("train/window")}
        keys |= {f"eval/{name}": name for name in self._below("eval") if "/" in name}
        found = dict.fromkeys(name.rpartition("/")[2] for name in keys.values())
        return self._grouped(
            {metric: [k for k in keys if k.endswith(f"/{metric}")] for metric in found if metric not in _NOT_DRAWN},
            lambda key: keys[key].rpartition("/")[0],
        )

    def of_head(self) -> list[str]:
        """Return charts of what heads log when a phase ends, ``what/task/number``."""
        keys = {n: n.split("/") for n in self._names if not n.startswith(("train/", "eval/"))}
        groups: dict[str, list[str]] = {}
        for key, (what, *_, number) in keys.items():
            groups.setdefault(f"{what} {number}", []).append(key)
        return self._grouped(groups, lambda key: "/".join(keys[key][1:-1]) or _ALONE)

    def others(self) -> list[str]:
        """Return charts of speed, learning rate, and ``train/gradient/kind/task``."""
        groups: dict[str, list[str]] = {}
        for name in self._below("train"):
            kind, *rest = name.split("/", 2)
            if kind not in {"loss", "window"}:
                groups.setdefault(" ".join([kind, *rest[:-1]]), []).append(f"train/{name}")
        return self._grouped(groups, lambda key: key.split("/", 3)[3] if key.count("/") > 2 else _ALONE)

    def _below(self, prefix: str) -> list[str]:
        return [name.removeprefix(f"{prefix}/") for name in self._names if name.startswith(f"{prefix}/")]

    def _grouped(self, groups: Mapping[str, Sequence[str]], name_of: Callable[[str], str]) -> list[str]:
        """Return a chart a group of keys."""
        drawn = []
        for title, keys in groups.items():
            drawn += self._figure(title, [self._curve(key, name_of(key)) for key in keys])
        return drawn

    def _curve(self, key: str, name: str, *, colour: int | None = None, faint: bool = False) -> Curve:
        points = tuple((int(line["step"]), line[key]) for line in self._lines if key in line)
        if colour is None:
            colour = COLOURS if name == _ALONE else self._colours.setdefault(name, len(self._colours)) % COLOURS + 1
        return Curve(name, colour, points, faint or key.startswith("train/window/"))

    def _figure(self, title: str, curves: Sequence[Curve]) -> list[str]:
        drawn = figure(title, [curve for curve in curves if curve.points], self.phases, last_step=self._last_step)
        return [drawn] if drawn else []
