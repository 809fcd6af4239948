"""The day of every row, and rows and labels by day."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrec_mtl.checking.findings import Finding, Level
from torchrec_mtl.checking.report import DayFigures
from torchrec_mtl.config.features import TimeUnit
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.arrow import Doubles, get_array, is_string
from torchrec_mtl.data.rows import Bools, Ints

MOST_DAYS = 4000

_NO_DAY = np.iinfo(np.int64).min
_NUMBERED = 1 << 40  # is added to the number of a day without a date
_A_DAY: dict[TimeUnit, int] = {
    "ns": 86_400 * 10**9,
    "us": 86_400 * 10**6,
    "ms": 86_400 * 10**3,
    "s": 86_400,
    "min": 1440,
    "h": 24,
    "d": 1,
}


@dataclass(frozen=True)
class DayColumn:
    """The column that says the day.

    Attributes:
        name: of the column.
        unit: what integers count since 1970; None: by their size.
    """

    name: str
    unit: TimeUnit | None = None

    def read(self, table: pa.Table) -> Ints:
        """Return the day [N] of each row."""
        return read_days(get_array(table, self.name), self.unit)


def find_day(run: RunConfig, asked: str | None, schema: pa.Schema | None) -> DayColumn | None:
    """Return the column that was asked for, or else one of ``data.keys`` with dates, or ``now`` of a sequence."""
    if asked is not None:
        return DayColumn(asked)
    for key in run.data.keys:
        places = schema.get_all_field_indices(key) if schema is not None else []
        if schema is not None and len(places) == 1 and pa.types.is_temporal(schema.field(places[0]).type):
            return DayColumn(key)
    return next((DayColumn(s.now, s.time_unit) for s in run.features.sequences if s.now is not None), None)


def read_days(array: pa.Array, unit: TimeUnit | None = None) -> Ints:
    """Return the day of each value, as ``name_day`` reads it.

    Dates and moments are taken in UTC; strings begin with a date such as 2022-04-08. Numbers without a unit are read by
    their size: 20220408 as a date; below 100,000 as the number of a day; the rest as seconds, milliseconds,
    microseconds, or nanoseconds since 1970.

    Args:
        array: [N] dates, moments, numbers, or strings.
        unit: what numbers count.

    Raises:
        ValueError: the type holds no days.

    Example:
        >>> [name_day(day) for day in read_days(pa.array([20220408, 1649376000, 1649376000000, 17, None])).tolist()]
        ['2022-04-08', '2022-04-08', '2022-04-08', 'day 17', 'none']
    """
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_string(kind):
        array = pa.array(_parse(array.cast(pa.string())), pa.date32())
    elif pa.types.is_timestamp(kind):
        array = array.cast(pa.timestamp(kind.unit)).cast(pa.date32(), safe=False)  # of UTC, whatever the zone
    elif pa.types.is_date64(kind):
        array = array.cast(pa.date32())
    if pa.types.is_date32(array.type):
        return _filled(array.cast(pa.int32()))
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"holds {kind}, wanted: dates, timestamps, integers, or strings such as 2022-04-08")
    if pa.types.is_floating(kind):
        doubles = array.to_numpy(zero_copy_only=False)
        array = pa.array(np.where(np.isfinite(doubles), doubles, 0).astype(np.int64), mask=~np.isfinite(doubles))
    values = _filled(array)
    known = values != _NO_DAY
    days = np.where(known, values // _A_DAY[unit], _NO_DAY) if unit is not None else _by_size(values)
    return np.where(known, days, _NO_DAY)


def _filled(array: pa.Array) -> Ints:
    values: Ints = array.cast(pa.int64()).fill_null(_NO_DAY).to_numpy(zero_copy_only=False)
    return values


def _parse(array: pa.Array) -> list[datetime.date | None]:
    encoded = array.dictionary_encode()  # parses each day once
    days: list[datetime.date | None] = []
    for text in encoded.dictionary.to_pylist():
        try:
            days.append(datetime.date.fromisoformat(text[:10]))
        except ValueError:
            days.append(None)
    return [None if place is None else days[place] for place in encoded.indices.to_pylist()]


def _by_size(values: Ints) -> Ints:
    year, month, day = values // 10_000, values // 100 % 100, values % 100
    dated = (year >= 1900) & (year <= 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    months = np.where(dated, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    dates = months.astype("datetime64[D]").astype(np.int64) + np.where(dated, day - 1, 0)
    days = np.full(len(values), _NO_DAY)
    bounds: tuple[tuple[int, TimeUnit], ...] = ((10**17, "ns"), (10**14, "us"), (10**11, "ms"), (10**5, "s"))
    for i, (lowest, unit) in enumerate(bounds):
        of_unit = (values >= lowest) & ((i == 0) | (values < bounds[i - 1][0]))
        days[of_unit] = values[of_unit] // _A_DAY[unit]
    numbered = (values >= 0) & (values < 10**5)
    days[numbered] = values[numbered] + _NUMBERED
    return np.where(dated, dates, days)


def name_day(day: int) -> str:
    """Return a day as text."""
    if day == _NO_DAY:
        return "none"
    if day >= _NUMBERED:
        return f"day {day - _NUMBERED}"
    try:
        return (datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).isoformat()
    except OverflowError:
        return f"1970-01-01 and {day} days"


class DayScan:
    """Rows and labels by day of one split, added table by table."""

    def __init__(self, split: str, tasks: Sequence[str]) -> None:
        self._split, self._tasks = split, tasks
        self._days: dict[int, npt.NDArray[np.float64]] = {}
        self.too_many = False

    def add(self, days: Ints, usable: Bools, labels: Doubles) -> None:
        """Add the days [N] of rows, which of them count [N, K], and their labels [N, K]."""
        if self.too_many:
            return
        found, places = np.unique(days, return_inverse=True)
        sums: list[Doubles] = [np.bincount(places, minlength=len(found)).astype(np.float64)]
        for k in range(len(self._tasks)):
            label = np.where(usable[:, k], labels[:, k], 0.0)
            counted = (usable[:, k].astype(np.float64), label, label**2)
            sums += [np.bincount(places, values, len(found)).astype(np.float64) for values in counted]
        for day, row in zip(found.tolist(), np.stack(sums, axis=1)):
            self._days[day] = self._days[day] + row if day in self._days else row
        self.too_many = len(self._days) > MOST_DAYS

    def figures(self) -> Iterator[DayFigures]:
        """Yield the days in order."""
        for day in sorted(self._days) if not self.too_many else ():
            row = self._days[day]
            counts = {task: int(row[1 + 3 * k]) for k, task in enumerate(self._tasks)}
            means = {t: float(row[2 + 3 * k] / n) if n else None for k, (t, n) in enumerate(counts.items())}
            yield DayFigures(self._split, name_day(day), int(row[0]), counts, means)

    def moments(self, k: int) -> tuple[list[int], Doubles]:
        """Return the days, in order, and [days, 3]: rows of task k that count, sum of labels, sum of their squares."""
        known = sorted(day for day in self._days if day != _NO_DAY)
        rows = [self._days[day][1 + 3 * k : 4 + 3 * k] for day in known]
        return known, np.stack(rows) if rows else np.zeros((0, 3))


_FEWEST_DAYS, _FEWEST_ROWS = 7, 50
_NAMED = 5
_FEW = 0.01  # of the rows


def day_findings(scans: Sequence[DayScan], tasks: Sequence[str], columns: Sequence[str]) -> Iterator[Finding]:
    """Name the days on which a label is far from what it is on most.

    A day stands out where its mean is off the median of all days by more than 6 robust standard deviations (of the
    medians' absolute deviations), by more than 5 of its standard errors, and by more than half of that median. Days of
    less than a hundredth of the rows are a note.
    """
    for k, (task, column) in enumerate(zip(tasks, columns)):
        names: list[str] = []
        parts = []
        for scan in scans:
            days, moments = scan.moments(k)
            names += [name_day(day) for day in days]
            parts.append(moments)
        count, total, squares = np.concatenate(parts).T if parts else np.zeros((3, 0))
        judged = count >= _FEWEST_ROWS
        if judged.sum() < _FEWEST_DAYS:
            continue
        count, total, squares = count[judged], total[judged], squares[judged]
        names = [name for name, kept in zip(names, judged) if kept]
        mean = total / count
        median = float(np.median(mean))
        spread = 1.4826 * float(np.median(np.abs(mean - median)))
        overall = total.sum() / count.sum()
        error = np.sqrt(max(squares.sum() / count.sum() - overall**2, 0.0) / count)
        off = np.abs(mean - median)
        far = np.flatnonzero((off > 6 * spread) & (off > 5 * error) & (off > 0.5 * abs(median)))
        if len(far):
            level: Level = "warning" if count[far].sum() > _FEW * count.sum() else "note"
            worst = far[np.argsort(-off[far], kind="stable")][:_NAMED]
            listed = ", ".join(f"{mean[i]:.4g} on {names[i]}" for i in sorted(worst))
            what = f"task '{task}': {len(far)} of {len(mean)} days stand out of a median of {median:.4g}: {listed}"
            advice = "See whether labels of these days are complete: late ones, a broken log, another population."
            yield Finding(level, "day_outliers", "", column, what, advice, len(far))
