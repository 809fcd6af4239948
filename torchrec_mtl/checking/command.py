"""`torchrec-mtl check`: its options checked, the pass over the data, and what it found."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from torchrec_mtl.checking.days import MOST_DAYS, DayColumn, day_findings, find_day, read_days
from torchrec_mtl.checking.dense import drift_finding, nulls_finding
from torchrec_mtl.checking.findings import Finding, share, worst_first
from torchrec_mtl.checking.layout import layout_findings
from torchrec_mtl.checking.leaks import find_leaks, leak_findings
from torchrec_mtl.checking.overlap import overlap_findings
from torchrec_mtl.checking.report import DenseFigures, LabelFigures, LeakFigures, Report, TableFigures
from torchrec_mtl.checking.scan import Scan
from torchrec_mtl.checking.tables import table_figures, table_findings
from torchrec_mtl.config.checks import notes, refused_in_runs
from torchrec_mtl.config.load import ConfigError, load_config
from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.columns import config_columns
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.splits import find_data, missing_files

LEAK_AUC = 0.98
LEAK_ROWS = 100_000


@dataclass(frozen=True)
class Options:
    """How to check.

    Attributes:
        day: column that says the day; None: the config may know.
        leak_auc: a feature that alone has more is a leak.
        leak_rows: of train are looked at for leaks.
    """

    day: str | None = None
    leak_auc: float = LEAK_AUC
    leak_rows: int = LEAK_ROWS

    def __post_init__(self) -> None:
        if not 0.5 < self.leak_auc <= 1:
            raise ValueError(f"--leak-auc: expected more than 0.5, and at most 1 (found {self.leak_auc:g})")
        if self.leak_rows < 1:
            raise ValueError(f"--leak-rows: expected 1 or more rows (found {self.leak_rows})")


def check(
    config: Path,
    overrides: Sequence[str] = (),
    options: Options | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Read the data of a run once and report what is worth knowing before training.

    Args:
        config: the YAML file.
        overrides: ``key.path=value``.
        options: how to check.
        say: told what is read next.

    Raises:
        ValueError: the config is wrong, or an option.
    """
    run = load_config(config, overrides)
    if problems := refused_in_runs(run):
        raise ConfigError(problems, source=str(config))
    return check_run(run, str(config), options or Options(), say)


def check_run(run: RunConfig, name: str, options: Options, say: Callable[[str], None]) -> Report:
    """As ``check``, of a config that was read already and is called ``name``."""
    files, problems = find_data(run)
    found = [Finding("note", "config", "", "", note, "") for note in notes(run)]
    found += _unopened(run, problems)
    columns = config_columns(run.data, run.features, run.tasks)
    day = _day(run, options, files)
    scan = Scan(run, files, day, options.leak_rows)
    scan.read(say)
    damaged = {path for finding in scan.findings if finding.kind == "damaged" for path in finding.files}
    found += layout_findings(files, columns, problems, damaged)
    found += scan.findings
    trained = "train" in scan.splits
    ids = tuple(s.figures(trained=trained) for split in scan.splits.values() for s in split.ids.values())
    tables = tuple(
        table_figures(table, [f for f in ids if f.table == table.name], scan.seen[table.name])
        for table in run.features.tables
    )
    dense, labels = _dense(scan), _labels(scan)
    sampled, leaks = scan.sample.rows(), tuple[LeakFigures, ...]()
    if sampled is not None:
        say(f"looking for leaks in {len(sampled.labels):,} rows of train")
        leaks = find_leaks(sampled, run)
    found += leak_findings(leaks, run, options.leak_auc)
    found += overlap_findings(scan.keys, scan.columns) if trained else ()
    found += _of_rows(scan, run, tables, dense, labels)
    overlap = [*(scan.keys.figures() if scan.keys is not None else ()), *scan.columns.figures()]
    return Report(
        config=name,
        splits=tuple(scan.figures),
        tables=tables,
        features=ids,
        dense=dense,
        labels=labels,
        day_column=None if day is None else day.name,
        days=tuple(figures for split in scan.splits.values() for figures in split.labels.days.figures()),
        leaks=leaks,
        overlap=tuple(overlap) if trained else (),
        findings=worst_first(found),
    )


def _unopened(run: RunConfig, problems: Sequence[str]) -> Iterator[Finding]:
    """Yield what is wrong with files and columns; of files that a script would make, that it would."""
    missing = missing_files(run)
    if missing and run.data.prepare is not None:
        out = Path(missing[0]).parent
        what = f"{', '.join(missing)}: no such file; data.prepare would make it, and this command runs nothing"
        advice = f"Run: {Path(sys.executable).name} {run.data.prepare} --out {out}"
        yield Finding("error", "missing", "", "", what, advice, len(missing), tuple(missing))
        problems = [p for p in problems if not any(f": {name}: no Parquet file found" in p for name in missing)]
    for problem in problems:
        where, _, message = problem.partition(": ")
        split = where.removeprefix("data.")
        kind = "missing" if "no Parquet file found" in message else "schema"
        yield Finding("error", "damaged" if _is_damaged(message) else kind, split, "", message, "")


def _is_damaged(message: str) -> bool:
    return "not a whole Parquet file" in message or "empty file" in message


def _day(run: RunConfig, options: Options, files: dict[str, tuple[DataFile, ...]]) -> DayColumn | None:
    """Find the column of the day, and see that all files have it."""
    schemas = [(file.path, file.schema) for opened in files.values() for file in opened]
    day = find_day(run, options.day, schemas[0][1] if schemas else None)
    if day is None:
        return None
    for path, schema in schemas:
        problem = _day_problem(day.name, schema)
        if problem and options.day is not None:
            raise ValueError(f"--day: column '{day.name}' of {path} {problem}")
        if problem:
            return None
    return day


def _day_problem(name: str, schema: pa.Schema) -> str:
    if len(schema.get_all_field_indices(name)) > 1:
        return "is there more than once; rename all but one"
    if name not in schema.names:
        return f"does not exist.{did_you_mean(name, schema.names)}"
    try:
        read_days(pa.array([], schema.field(name).type))
    except ValueError as error:
        return str(error)
    return ""


def _dense(scan: Scan) -> tuple[DenseFigures, ...]:
    found: list[DenseFigures] = []
    train: dict[str, DenseFigures] = {}
    for split, added in scan.splits.items():
        for name, dense in added.dense.items():
            figures = dense.figures(train.get(name))
            found.append(figures)
            if split == "train":
                train[name] = figures
    return tuple(found)


def _null_shares(scan: Scan, split: str) -> dict[str, float]:
    """Return the share of rows without a value by column."""
    added = scan.splits.get(split)
    if added is None:
        return {}
    ids = [one.figures(trained=False) for one in added.ids.values()]
    dense = [one.figures(None) for one in added.dense.values()]
    shares = {f.column: share(f.nulls, f.rows) for f in ids if f.rows}
    return shares | {f.column: share(f.nulls + f.nans, f.rows) for f in dense if f.rows}


def _labels(scan: Scan) -> tuple[LabelFigures, ...]:
    return tuple(figures for split in scan.splits.values() for figures in split.labels.figures())


def _of_rows(
    scan: Scan,
    run: RunConfig,
    tables: Sequence[TableFigures],
    dense: Sequence[DenseFigures],
    labels: Sequence[LabelFigures],
) -> Iterator[Finding]:
    """Judge what was counted, split by split."""
    trained = "train" in scan.splits
    suggested = {table.table: table.suggested for table in tables}
    train_dense = {figures.feature: figures for figures in dense if figures.split == "train"}
    train_labels = [figures for figures in labels if figures.split == "train"]
    for split, added in scan.splits.items():
        for feature in (*run.features.pooled, *run.features.unpooled):
            yield from added.ids[feature.name].findings(run.data, suggested[feature.table], trained=trained)
        for name, one in added.dense.items():
            yield from one.findings(train_dense.get(name) if split != "train" else None)
        yield from nulls_finding(split, _null_shares(scan, split), _null_shares(scan, "train"))
        yield from drift_finding(split, [figures for figures in dense if figures.split == split], train_dense)
        # Rows that judge a search of a corpus are chosen for it: their rates need not be those of train.
        shifts = run.retrieval is None
        yield from added.labels.findings(train_labels if split != "train" else (), shifts=shifts)
    for table in tables:
        yield from table_findings(table)
    scans = [added.labels.days for added in scan.splits.values()]
    if any(days.too_many for days in scans):
        what = f"more than {MOST_DAYS:,} different days; no figures by day"
        yield Finding("warning", "day", "", "", what, "Is it the column of the day? Name another with --day.")
    else:
        yield from day_findings(scans, [task.name for task in run.tasks], [task.label for task in run.tasks])
