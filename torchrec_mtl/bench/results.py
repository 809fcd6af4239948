"""From the log to files: ``runs.parquet``, ``table.md``, ``table.html``, and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchrec_mtl.bench import tables
from torchrec_mtl.bench.markdown import to_markdown
from torchrec_mtl.bench.page import to_html
from torchrec_mtl.bench.pairs import Pair
from torchrec_mtl.bench.pareto import plots
from torchrec_mtl.bench.report import Report, Section
from torchrec_mtl.bench.rows import Log, Row, write_parquet
from torchrec_mtl.bench.suite import Suite
from torchrec_mtl.bench.tuning import Outcome, replay


def write(suite: Suite, pairs: Sequence[Pair], log: Log, out: Path) -> list[str]:
    """Write everything; return which pairs are not finished.

    Args:
        suite: the suite.
        pairs: of the suite.
        log: of finished runs. Rows of settings that are no longer in the suite go to the Parquet file only.
        out: folder.
    """
    outcomes = [Outcome(pair) for pair in pairs]
    for outcome in outcomes:
        replay(suite, outcome, log)
    report = make_report(suite, outcomes)
    write_parquet(log.rows, out / "runs.parquet")
    (out / "table.md").write_text(to_markdown(report), encoding="utf-8")
    (out / "table.html").write_text(to_html(report), encoding="utf-8")
    for plot in (plot for section in report.sections for plot in section.plots):
        (out / plot.name).write_text(plot.svg, encoding="utf-8")
    return [f"{o.pair.model.name} on {o.pair.data.name}" for o in outcomes if not o.finished]


def make_report(suite: Suite, outcomes: Sequence[Outcome]) -> Report:
    """Return the report of what is known; data sets and models in the suite's order."""
    sections = []
    for data in suite.data:
        here = [o for o in outcomes if o.pair.data.name == data.name]
        if any(o.trials for o in here):
            sections.append(_section(suite, data.name, here))
    rows = [row for outcome in outcomes for row in (*outcome.trials, *outcome.seeds)]
    return Report(f"Suite {suite.name}", _head(suite, rows), tuple(sections))


def _section(suite: Suite, data: str, outcomes: Sequence[Outcome]) -> Section:
    transfer = tables.transfer_table(outcomes)
    found = [
        tables.main_table(suite, outcomes),
        *([transfer] if transfer is not None else []),
        tables.more_table(outcomes),
        tables.settings_table(outcomes),
    ]
    return Section(data, tuple(found), tuple(plots(data, outcomes)), tuple(tables.failures(outcomes)))


def _head(suite: Suite, rows: Sequence[Row]) -> tuple[str, ...]:
    """Say how the figures came about; no dates, so that the same runs give the same files."""
    return (
        f"Models: {len(suite.models)}. Data sets: {len(suite.data)}. Seeds: {' '.join(map(str, suite.seeds))}.",
        f"Each model on each data set: {suite.trials} trials with seed {suite.tuning_seed} (one where nothing is "
        "searched), scored on the validation rows; the best settings then trained with every seed, and scored once on "
        "the test rows.",
        f"Machine: {several([row.machine for row in rows])}. Device: {several([row.device for row in rows])}.",
        f"Versions: {several([row.versions for row in rows])}.",
    )


def several(texts: Sequence[str]) -> str:
    """Return each text once."""
    return " / ".join(dict.fromkeys(text for text in texts if text))
