"""The report as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torchrec_mtl.planning.report import Attempt, Growth, Report
from torchrec_mtl.planning.result import GIB, Plan, RankPlan, Shortage, TablePlan
from torchrec_mtl.planning.words import ESTIMATES, gib, why

_SHOWN_TABLES = 20
_SHOWN_NAMES = 3
_LONGEST_NAME = 16


def render(report: Report) -> str:
    """Return all of a report; names are shortened, and of many tables the largest are shown."""
    lines = [f"{report.config} on {report.cluster}", ESTIMATES]
    if report.plan is not None:
        lines += _plan(report.plan)
    elif report.shortage is not None:
        lines += [*_shortage(report.shortage), *_attempts(report.attempts)]
        if report.changed is not None:
            lines += ["", f"with that change, on {report.changed.cluster}", *_plan(report.changed)]
    if report.growth:
        lines += ["", *_growth(report)]
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines) + "\n"


def shorten(name: str) -> str:
    """Return a name of at most 16 characters; both ends tell names apart.

    Example:
        >>> shorten("user_id"), shorten("user_last_watched_video")
        ('user_id', 'user_la.._video')
    """
    return name if len(name) <= _LONGEST_NAME else f"{name[:7]}..{name[-6:]}"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines; the first column to the left, the last as it is, others to the right."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    last = len(head) - 1

    def cell(text: str, i: int) -> str:
        return text if i == last else text.ljust(widths[i]) if i == 0 else text.rjust(widths[i])

    return ["  ".join(cell(text, i) for i, text in enumerate(line)).rstrip() for line in (head, *rows)]


def _plan(plan: Plan) -> Iterator[str]:
    yield f"fits: {plan.cluster.ranks} ranks, {plan.batch_per_rank} samples of a step each"
    yield f"the planner took {plan.seconds:.1f} s for {plan.proposals:,} proposals"
    yield ""
    yield from _tables(plan.tables)
    yield ""
    yield from _ranks(plan)
    yield ""
    summary = plan.summary
    yield (
        f"fullest rank over mean: GPU memory {summary.hbm_imbalance:.2f}, host memory {summary.ddr_imbalance:.2f}; "
        f"slowest rank over mean: {summary.time_imbalance:.2f}; a step of the tables: {_ms(summary.step_ms)} ms"
    )
    yield f"dense part, beside the tables on each rank: {gib(plan.dense_bytes)} (weights, gradients, optimizer)"


def _tables(tables: Sequence[TablePlan]) -> Iterator[str]:
    by_size = sorted(tables, key=lambda t: -t.rows * t.dim)
    rows = [
        (
            shorten(table.name),
            f"{table.rows:,}",
            str(table.dim),
            str(len(table.shards)),
            _gib(sum(s.hbm_bytes for s in table.shards)),
            _gib(sum(s.ddr_bytes for s in table.shards)),
            f"{table.sharding}, {table.kernel}",
        )
        for table in by_size[:_SHOWN_TABLES]
    ]
    yield from columns(("table", "rows", "dim", "parts", "HBM GiB", "host GiB", "how"), rows)
    if len(tables) > _SHOWN_TABLES:
        yield f"and {len(tables) - _SHOWN_TABLES} smaller tables (--json has all)"


def _ranks(plan: Plan) -> Iterator[str]:
    hbm, ddr = (f"of {size / GIB:.1f}" if size else "" for size in (plan.hbm_available, plan.ddr_available))
    units = ("", "", "", hbm, ddr, "a step", "ms", "ms", "ms", "ms", "ms", "ms", "")
    head = ("rank", "node", "parts", "HBM GiB", "host GiB", "lookups", "forward", "comms", "backward", "comms")
    yield from columns((*head, "prefetch", "all", "tables"), [units, *(_rank(rank) for rank in plan.ranks)])


def _rank(rank: RankPlan) -> tuple[str, ...]:
    cost = rank.cost
    parts = (cost.fwd_compute, cost.fwd_comms, cost.bwd_compute, cost.bwd_comms, cost.prefetch, cost.total)
    names = ", ".join(shorten(name) for name in rank.tables[:_SHOWN_NAMES])
    more = f" +{len(rank.tables) - _SHOWN_NAMES}" if len(rank.tables) > _SHOWN_NAMES else ""
    return (
        str(rank.rank),
        str(rank.node),
        str(rank.shards),
        _gib(rank.hbm_bytes),
        _gib(rank.ddr_bytes),
        f"{rank.lookups:,.0f}",
        *map(_ms, parts),
        names + more,
    )


def _shortage(shortage: Shortage) -> Iterator[str]:
    yield f"does not fit: {why(shortage)}"
    hbm, ddr = gib(shortage.hbm_available), gib(shortage.ddr_available)
    for table in shortage.too_large:
        needs = []
        if table.hbm_bytes is not None:
            needs.append(f"{gib(table.hbm_bytes)} of GPU memory (a rank has {hbm})")
        if table.ddr_bytes is not None:
            needs.append(f"{gib(table.ddr_bytes)} of host memory (a rank has {ddr})")
        yield f"  {table.table}: its largest part needs {' or '.join(needs)}; {', '.join(table.sharding)}"
    if not shortage.too_large:
        sizes = ", ".join(f"{name} {gib(size)}" for name, size in shortage.largest)
        yield f"  a rank has {hbm} of GPU memory and {ddr} of host memory for tables; the largest tables: {sizes}"


def _attempts(attempts: Sequence[Attempt]) -> Iterator[str]:
    if not attempts:
        return
    yield ""
    yield "changes tried, cheapest first"
    for attempt in attempts:
        yield f"  {'fits' if attempt.fits else 'does not fit'}: {attempt.what}"
        if attempt.reason:
            yield f"    {attempt.reason}"
    if attempts[-1].fits:
        yield f"the cheapest that fits: {attempts[-1].what}"
        yield from (f"  in the YAML, or after the config: {override}" for override in attempts[-1].overrides)
        yield from (f"  for plan, and when renting: {option}" for option in attempts[-1].options)
        return
    yield "none of them fits; take more nodes, fewer rows, or a smaller dim"


def _growth(report: Report) -> Iterator[str]:
    beside = ", and the change of the config" if report.changed is not None and report.attempts[-1].overrides else ""
    yield f"growth, with the global batch of {report.batch_size:,} throughout{beside}"
    head = ("nodes", "ranks", "samples", "all ms", "compute ms", "comms ms", "HBM GiB", "host GiB", "")
    yield from columns(head, [_grown(one) for one in report.growth])


def _grown(one: Growth) -> tuple[str, ...]:
    start = (str(one.nodes), str(one.ranks), str(one.batch_per_rank))
    if one.step_ms is None:
        return (*start, "", "", "", "", "", one.reason)
    times = (one.step_ms, one.compute_ms or 0.0, one.comms_ms or 0.0)
    return (*start, *map(_ms, times), _gib(one.hbm_bytes or 0), _gib(one.ddr_bytes or 0), "")


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}" if size else "-"


def _ms(value: float) -> str:
    return "-" if value == 0 else f"{value:,.1f}" if value >= 100 else f"{value:.3g}"
