"""The command: check everything, run what is missing, write the tables of all that is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from torchrec_mtl.bench.folder import only_one
from torchrec_mtl.bench.requirements import require_extra
from torchrec_mtl.config.explain import ConfigError

if TYPE_CHECKING:
    from torchrec_mtl.bench.pairs import Pair
    from torchrec_mtl.bench.rows import Log, Row
    from torchrec_mtl.bench.suite import Suite


@dataclass(frozen=True)
class Options:
    """Of the command line.

    Attributes:
        suite: the YAML.
        out: folder of the results; None: ``runs/bench-NAME``.
        data: data sets to run; empty: all.
        models: models to run; empty: all.
        processes: runs at once; None: as the suite says, or the cores.
        dry_run: check and count only.
        report_only: write the tables of what is there.
        retry_failed: run again what failed before.
    """

    suite: Path
    out: Path | None = None
    data: Sequence[str] = ()
    models: Sequence[str] = ()
    processes: int | None = None
    dry_run: bool = False
    report_only: bool = False
    retry_failed: bool = False


class InterruptedBenchError(Exception):
    """The user asked to stop; finished runs are in the log."""


def bench(options: Options, console: Console) -> None:
    """Run a suite, or what is missing of it.

    Raises:
        ConfigError: the suite, or a run of it, is wrong; nothing was trained.
        InterruptedBenchError: the user asked to stop.
    """
    require_extra("bench")
    from torchrec_mtl.bench.pairs import check_pairs, require, selected
    from torchrec_mtl.bench.rows import Log
    from torchrec_mtl.bench.suite import load_suite

    suite, source = load_suite(options.suite), str(options.suite)
    wanted = selected(suite, options.data, options.models, source)
    checked = check_pairs(suite, console, prepare=not (options.dry_run or options.report_only))
    require(checked, wanted, source)
    pairs = [pair for pair in checked.pairs if (pair.data.name, pair.model.name) in wanted]
    out = options.out or Path("runs") / f"bench-{suite.name}"
    if options.dry_run:
        _show_counts(suite, pairs, Log(out / "runs.jsonl", forget_failed=options.retry_failed), console)
        return
    with only_one("bench", out):
        if not options.report_only:
            _run(suite, pairs, Log(out / "runs.jsonl", forget_failed=options.retry_failed), out, options, console)
        _report(suite, checked.pairs, Log(out / "runs.jsonl"), out, console)


def _show_counts(suite: Suite, pairs: Sequence[Pair], log: Log, console: Console) -> None:
    from torchrec_mtl.bench.tuning import Outcome, num_runs, replay

    total = sum(num_runs(suite, pair) for pair in pairs)
    done = failed = 0
    for pair in pairs:
        outcome = Outcome(pair)
        replay(suite, outcome, log)
        rows = (*outcome.trials, *outcome.seeds)
        done, failed = done + len(rows), failed + sum(row.status == "failed" for row in rows)
    counted = (
        f"{len(pairs)} pairs of model and data set, {total} runs ({suite.trials} trials, {len(suite.seeds)} seeds)"
    )
    console.print(
        f"configs are fine; {counted}: {done} in {log.path}, {failed} of them failed, {total - done} to do",
        highlight=False,
        soft_wrap=True,
    )


def _run(suite: Suite, pairs: Sequence[Pair], log: Log, out: Path, options: Options, console: Console) -> None:
    from torchrec_mtl.bench.schedule import Logged, run_missing
    from torchrec_mtl.bench.workers import Workers

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    count = options.processes or suite.processes or os.cpu_count() or 1
    workers: Workers[Logged[Row]] = Workers(count, out / "work", failed=out / "failed", timeout_s=suite.timeout_s)
    try:
        run_missing(suite, pairs, log, workers, say)
    except KeyboardInterrupt:
        raise InterruptedBenchError(f"stopped; {len(log.rows)} finished runs are in {log.path}") from None


def _report(suite: Suite, pairs: Sequence[Pair], log: Log, out: Path, console: Console) -> None:
    """Write what the log has of all pairs, also of those that were not asked for now."""
    from torchrec_mtl.bench.results import write

    if not log.rows:
        raise ConfigError(["no finished runs there; run the suite first"], source=str(log.path))
    unfinished = write(suite, pairs, log, out)
    if unfinished:
        console.print(f"not finished: {', '.join(unfinished)}", highlight=False, soft_wrap=True)
    console.print(
        f"{out / 'table.md'}, table.html, runs.parquet, and plots are written", highlight=False, soft_wrap=True
    )
