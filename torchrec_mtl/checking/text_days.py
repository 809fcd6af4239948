"""Rows and labels by day as text; by month, or year, where there are many days."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec_mtl.checking.report import DayFigures
from torchrec_mtl.planning.text import columns

_MOST_LINES = 31
_SHOWN_TASKS = 6
_LONGEST = 24
_MONTH, _YEAR = 7, 4  # letters of 2022-04-08


def shorten(name: str) -> str:
    """Return a name of at most 24 letters; both ends tell names apart.

    Example:
        >>> shorten("user_id"), shorten("author_long_watch_rate_of_the_week")
        ('user_id', 'author_long..of_the_week')
    """
    return name if len(name) <= _LONGEST else f"{name[:11]}..{name[-11:]}"


def day_lines(days: Sequence[DayFigures], column: str | None) -> list[str]:
    """Return a table of periods, or how to get one."""
    if not days:
        return (
            ["no column is known to say the day of a row; --day COLUMN shows labels by day"] if column is None else []
        )
    length = next((n for n in (10, _MONTH, _YEAR) if len({(d.split, _cut(d.day, n)) for d in days}) <= _MOST_LINES), 4)
    tasks = list(days[0].counts)[:_SHOWN_TASKS]
    periods: dict[tuple[str, str], list[DayFigures]] = {}
    for day in days:
        periods.setdefault((day.split, _cut(day.day, length)), []).append(day)
    rows = []
    for (split, period), found in list(periods.items())[:_MOST_LINES]:
        counts = [sum(day.counts[task] for day in found) for task in tasks]
        sums = [sum(day.counts[task] * (day.means[task] or 0.0) for day in found) for task in tasks]
        means = (f"{total / count:.4g}" if count else "-" for total, count in zip(sums, counts))
        rows.append((period, split, f"{sum(day.rows for day in found):,}", *means, ""))
    head = ("by " + {10: "day", _MONTH: "month", _YEAR: "year"}[length], "split", "rows", *map(shorten, tasks), "")
    more = [f"and {len(periods) - _MOST_LINES} more (--json has all)"] if len(periods) > _MOST_LINES else []
    return [f"mean label by '{column}'", *columns(head, rows), *more]


def _cut(day: str, length: int) -> str:
    return day[:length] if day[:1].isdigit() else day
