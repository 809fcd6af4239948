"""A plan as a picture: memory and time of every rank, and both over the number of nodes."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from torchrec_mtl.planning.report import Growth, Report
from torchrec_mtl.planning.result import GIB, Plan

_COLOURS = {
    "GPU memory": "#2b7de0",
    "host memory": "#e08a2b",
    "forward": "#2b7de0",
    "forward comms": "#9cc3f2",
    "backward": "#c2453d",
    "backward comms": "#eba9a4",
    "prefetch": "#8a8f98",
    "compute": "#2b7de0",
    "comms": "#e08a2b",
    "all": "#1b1c1d",
}
_GREY = "#8a8f98"


def draw(report: Report, path: Path) -> None:
    """Write a PNG, or what the name's ending says matplotlib can write.

    Args:
        report: with a plan, or with numbers of nodes for which there is one.
        path: file to write.

    Raises:
        ValueError: there is nothing to draw, or the file cannot be written.
    """
    plan = report.plan or report.changed
    grown = [one for one in report.growth if one.step_ms is not None]
    if plan is None and not grown:
        raise ValueError("--plot: nothing fits, so there is nothing to draw; see the changes above")
    rows = (plan is not None) + bool(grown)
    figure = Figure(figsize=(11, 3.9 * rows + 0.5), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False)
    if plan is not None:
        _memory(axes[0][0], plan)
        _time(axes[0][1], plan)
    if grown:
        _grown_time(axes[-1][0], grown)
        _grown_memory(axes[-1][1], grown, plan)
    cluster = plan.cluster if plan is not None else report.cluster
    figure.suptitle(f"{Path(report.config).name} on {cluster}: TorchRec's estimates, not measured", fontsize=10)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"--plot: cannot write {path}: {error}; give a .png in a folder that exists") from None


def _memory(axes: Axes, plan: Plan) -> None:
    parts = {
        "GPU memory": [r.hbm_bytes / GIB for r in plan.ranks],
        "host memory": [r.ddr_bytes / GIB for r in plan.ranks],
    }
    limits = {"GPU memory": plan.hbm_available / GIB, "host memory": plan.ddr_available / GIB}
    used = {name: values for name, values in parts.items() if any(values)}
    width = _width(plan) / max(len(used), 1)
    for i, (name, values) in enumerate(used.items()):
        middles = [rank - _width(plan) / 2 + width * (i + 0.5) for rank in range(len(values))]
        axes.bar(middles, values, width=width, color=_COLOURS[name], label=name)
        axes.axhline(limits[name], color=_COLOURS[name], ls="--", lw=1, label=f"{name}: {limits[name]:.1f} GiB to use")
    _finish(axes, "GiB of tables", "memory of a rank", plan)


def _time(axes: Axes, plan: Plan) -> None:
    costs = [r.cost for r in plan.ranks]
    parts = {
        "forward": [c.fwd_compute for c in costs],
        "forward comms": [c.fwd_comms for c in costs],
        "backward": [c.bwd_compute for c in costs],
        "backward comms": [c.bwd_comms for c in costs],
        "prefetch": [c.prefetch for c in costs],
    }
    below = [0.0] * len(costs)
    for name, values in parts.items():
        if any(values):
            axes.bar(range(len(values)), values, width=_width(plan), bottom=below, color=_COLOURS[name], label=name)
            below = [b + v for b, v in zip(below, values, strict=True)]
    _finish(axes, "ms of a step", "time of a rank for the tables", plan)


def _width(plan: Plan) -> float:
    return 0.9 if len(plan.ranks) <= 32 else 1.0  # thin gaps would shimmer


def _finish(axes: Axes, unit: str, title: str, plan: Plan) -> None:
    axes.set_xlabel("rank")
    axes.set_ylabel(unit)
    axes.set_xlim(-0.6, len(plan.ranks) - 0.4)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)  # room for the legend
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if plan.cluster.nodes <= 32:
        for node in range(1, plan.cluster.nodes):
            axes.axvline(node * plan.cluster.gpus - 0.5, color=_GREY, lw=0.4, alpha=0.6)
    _label(axes, title)


def _grown_time(axes: Axes, grown: Sequence[Growth]) -> None:
    nodes = [one.nodes for one in grown]
    for name, values in (
        ("all", [one.step_ms or 0.0 for one in grown]),
        ("compute", [one.compute_ms or 0.0 for one in grown]),
        ("comms", [one.comms_ms or 0.0 for one in grown]),
    ):
        axes.plot(nodes, values, marker="o", ms=4, color=_COLOURS[name], label=name)
    axes.set_yscale("log")
    for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        ticks(FuncFormatter(lambda value, _: f"{value:g}"))  # plain digits need no fonts of formulas
    axes.set_ylabel("ms of a step, slowest rank")
    _over_nodes(axes, nodes, "time over nodes, same global batch")


def _grown_memory(axes: Axes, grown: Sequence[Growth], plan: Plan | None) -> None:
    nodes = [one.nodes for one in grown]
    memory = {
        "GPU memory": [(one.hbm_bytes or 0) / GIB for one in grown],
        "host memory": [(one.ddr_bytes or 0) / GIB for one in grown],
    }
    for name, values in memory.items():
        if any(values):
            axes.plot(nodes, values, marker="o", ms=4, color=_COLOURS[name], label=name)
    if plan is not None and plan.hbm_available:
        axes.axhline(plan.hbm_available / GIB, color=_COLOURS["GPU memory"], ls="--", lw=1, label="GPU memory to use")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    axes.set_ylabel("GiB of tables, fullest rank")
    _over_nodes(axes, nodes, "memory over nodes")


def _over_nodes(axes: Axes, nodes: Sequence[int], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(nodes, [str(n) for n in nodes])
    axes.minorticks_off()
    axes.set_xlabel("nodes")
    _label(axes, title)


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(visible=True, axis="y", color=_GREY, alpha=0.3, lw=0.5)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=3, loc="upper right", framealpha=0.9)
