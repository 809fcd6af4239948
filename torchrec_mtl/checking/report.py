"""All figures of a check in one value, and that value as JSON and back."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter

from torchrec_mtl.checking.findings import Finding


@dataclass(frozen=True)
class SplitFigures:
    """One split: its files, their row groups and rows, and how many rows could be read."""

    split: str
    files: int
    row_groups: int
    rows: int
    rows_read: int
    bytes: int


@dataclass(frozen=True)
class TableFigures:
    """One embedding table.

    Attributes:
        table: its name.
        rows: it has.
        features: that read it.
        hashed: some feature hashes into it; ids then say nothing of the size.
        used: rows that the training data look up.
        used_share: the same, of all rows.
        exact: whether ``used`` is counted (else estimated).
        needed: largest id of all splits + 1, where no feature hashes; None: no id, or hashed.
        suggested: ``needed`` with a tenth of head-room, rounded up to two digits.
        values: estimated number of different values hashed into it.
        sharing: estimated share of these that share their row with another.
    """

    table: str
    rows: int
    features: tuple[str, ...]
    hashed: bool
    used: int
    used_share: float
    exact: bool
    needed: int | None
    suggested: int | None
    values: int | None
    sharing: float | None


@dataclass(frozen=True)
class LengthFigures:
    """How long the lists are, null ids left out: before ``max_length`` cuts them."""

    mean: float
    p50: int
    p95: int
    max: int
    cut_rows: int
    cut_ids: int


@dataclass(frozen=True)
class AgeFigures:
    """How long before its row an event of a sequence with ``times`` was.

    Attributes:
        events: with a time, among the ids that are kept.
        median_s: at least so many seconds, and less than twice as many + 1.
        under_1s: share of events less than a second before the row.
    """

    events: int
    median_s: int
    under_1s: float


@dataclass(frozen=True)
class IdFigures:
    """One feature of ids in one split.

    Attributes:
        feature: its name.
        column: it reads.
        table: it looks up.
        kind: "sparse" or "sequence".
        encode: "id" or "hash", as the column's type makes it.
        split: of the data.
        rows: read.
        nulls: rows without a value.
        null_ids: nulls inside lists.
        empty: rows without an id, null ones among them.
        lookups: ids that are kept of all rows.
        negative: of these, below 0.
        too_large: of these, beyond the table.
        smallest: id; None where hashed, or without ids.
        largest: id.
        distinct: different ids inside the table.
        exact: whether ``distinct`` is counted (else estimated).
        cold: share of the lookups of rows of the table that training looks up through no feature; None for train.
        lengths: of lists.
        ages: of a sequence with ``times``.
    """

    feature: str
    column: str
    table: str
    kind: str
    encode: str
    split: str
    rows: int
    nulls: int
    null_ids: int
    empty: int
    lookups: int
    negative: int
    too_large: int
    smallest: int | None
    largest: int | None
    distinct: int
    exact: bool
    cold: float | None
    lengths: LengthFigures | None
    ages: AgeFigures | None


@dataclass(frozen=True)
class DenseFigures:
    """One dense feature in one split, after its transform and before it is normalised.

    Attributes:
        feature: its name.
        column: it reads.
        split: of the data.
        rows: read.
        nulls: without a value.
        nans: that are no number.
        infinite: beyond float32.
        smallest: value; None without any.
        largest: value.
        mean: of the values.
        std: of the values.
        drift: mean minus that of train, in train's standard deviations; None for train, or where train has none.
    """

    feature: str
    column: str
    split: str
    rows: int
    nulls: int
    nans: int
    infinite: int
    smallest: float | None
    largest: float | None
    mean: float | None
    std: float | None
    drift: float | None


@dataclass(frozen=True)
class LabelFigures:
    """One task's label in one split; the last five are of the rows that count.

    Attributes:
        task: its name.
        kind: "binary" or "regression".
        column: of the label.
        split: of the data.
        rows: read.
        inside: rows in the task's space, of positive weight.
        nulls: labels that are null there.
        bad: labels that are no 0 or 1 (binary) or no finite number (regression) there.
        outside_positive: rows outside the space with a label above 0.
        mean: for a binary task the rate.
        std: standard deviation.
        zeros: share of labels that are 0.
        smallest: label.
        largest: label.
    """

    task: str
    kind: str
    column: str
    split: str
    rows: int
    inside: int
    nulls: int
    bad: int
    outside_positive: int
    mean: float | None
    std: float | None
    zeros: float | None
    smallest: float | None
    largest: float | None


@dataclass(frozen=True)
class DayFigures:
    """The rows of one day of one split: how many, and by task how many count and the mean of their labels."""

    split: str
    day: str
    rows: int
    counts: dict[str, int]
    means: dict[str, float | None]


@dataclass(frozen=True)
class LeakFigures:
    """What one feature alone tells of one task.

    Attributes:
        task: its name.
        feature: its name.
        by: "ids", "values", "bins", "length", or "target".
        measure: "auc", or "spearman" (its size).
        target: "label", or "label > 0".
        value: of the measure.
        rows: it was judged on.
    """

    task: str
    feature: str
    by: str
    measure: str
    target: str
    value: float
    rows: int


@dataclass(frozen=True)
class OverlapFigures:
    """Rows that are found again.

    Attributes:
        split: of the rows; "train": rows that repeat an earlier one of train; else rows that train has, too.
        by: "keys" (``data.keys``), or "columns" (all that is read).
        rows: compared.
        found: of these.
        share: the same.
        sampled: whether only a sample by hash was compared; ``share`` is then an estimate.
    """

    split: str
    by: str
    rows: int
    found: int
    share: float
    sampled: bool


@dataclass(frozen=True)
class Report:
    """All that the command found.

    Attributes:
        config: the file.
        splits: what was read.
        tables: embedding tables.
        features: features of ids by split.
        dense: dense features by split.
        labels: labels by split.
        day_column: what says the day; None: nothing does.
        days: rows and labels by day.
        leaks: the strongest figure of every feature for every task, strongest first.
        overlap: rows found again.
        findings: errors, warnings, notes, in this order.
    """

    config: str
    splits: tuple[SplitFigures, ...] = ()
    tables: tuple[TableFigures, ...] = ()
    features: tuple[IdFigures, ...] = ()
    dense: tuple[DenseFigures, ...] = ()
    labels: tuple[LabelFigures, ...] = ()
    day_column: str | None = None
    days: tuple[DayFigures, ...] = ()
    leaks: tuple[LeakFigures, ...] = ()
    overlap: tuple[OverlapFigures, ...] = ()
    findings: tuple[Finding, ...] = ()

    def failed(self, *, strict: bool = False) -> bool:
        """Whether there is an error; with ``strict`` a warning is enough."""
        return any(f.level == "error" or (strict and f.level == "warning") for f in self.findings)


def to_json(report: Report) -> str:
    """Return everything as JSON."""
    return TypeAdapter(Report).dump_json(report, indent=1).decode() + "\n"


def from_json(text: str) -> Report:
    """Read what ``to_json`` wrote."""
    return TypeAdapter(Report).validate_json(text)
