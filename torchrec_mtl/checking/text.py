"""The report as text, for a terminal of 100 columns or so."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torchrec_mtl.checking.findings import FILES_NAMED, LEVELS, Finding, percent, share
from torchrec_mtl.checking.report import DenseFigures, IdFigures, LabelFigures, LeakFigures, Report
from torchrec_mtl.checking.text_days import day_lines, shorten
from torchrec_mtl.planning.text import columns

_WIDTH = 110
_Figures = TypeVar("_Figures", IdFigures, DenseFigures)
_SHOWN_ROWS = 60
_SHOWN_LEAKS = 3
_SHOWN_ALIKE = 3


def render(report: Report) -> str:
    """Return all of a report; names are shortened, and of many features the first are shown."""
    parts = [[*_findings(report.findings), _summary(report)]]
    if report.splits:
        parts = [*_figures(report), *parts]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _figures(report: Report) -> list[list[str]]:
    return [
        _table(("split", "files", "row groups", "rows", "MiB", ""), _splits(report)),
        _table(("table", "rows", "looked up", "largest id", "advised rows", "hashed into it", ""), _tables(report)),
        _features(report.features),
        _lists(report.features),
        _dense(report.dense),
        _labels(report.labels),
        day_lines(report.days, report.day_column),
        _leaks(report),
        _overlap(report),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    more = [f"and {len(rows) - _SHOWN_ROWS} more (--json has all)"] if len(rows) > _SHOWN_ROWS else []
    return [*columns(head, rows[:_SHOWN_ROWS]), *more]


def _splits(report: Report) -> list[tuple[str, ...]]:
    return [
        (
            s.split,
            f"{s.files:,}",
            f"{s.row_groups:,}",
            f"{s.rows:,}",
            f"{s.bytes / 2**20:,.1f}",
            "" if s.rows_read == s.rows else f"{s.rows - s.rows_read:,} rows cannot be read",
        )
        for s in report.splits
    ]


def _tables(report: Report) -> list[tuple[str, ...]]:
    trained = any(s.split == "train" for s in report.splits)
    return [
        (
            shorten(t.table),
            f"{t.rows:,}",
            _about(percent(t.used_share), exact=t.exact) if trained else "-",
            "-" if t.needed is None else f"{t.needed - 1:,}",
            "-" if t.suggested is None else f"{t.suggested:,}",
            "-" if t.values is None else f"~{t.values:,}",
            "" if t.sharing is None else f"{percent(t.sharing)} share a row",
        )
        for t in report.tables
    ]


def _features(features: Sequence[IdFigures]) -> list[str]:
    """One line a feature: figures of train, and from the other splits what only they can tell."""
    rows = []
    for name, of in _by_name(features).items():
        first = next(iter(of.values()))
        outside = sum(f.negative + f.too_large for f in of.values())
        low, high = _extremes([f.smallest for f in of.values()]), _extremes([f.largest for f in of.values()])
        rows.append(
            (
                shorten(name),
                shorten(first.table),
                percent(share(first.nulls, first.rows)),
                percent(share(first.empty, first.rows)),
                _about(f"{first.distinct:,}", exact=first.exact),
                "hashed" if first.encode == "hash" else f"{low[0]} .. {high[1]}",
                f"{outside:,}",
                *(_maybe(None if split not in of else of[split].cold) for split in ("eval", "test")),
                "",
            )
        )
    head = ("feature", "table", "null", "no id", "distinct", "ids", "outside", "cold eval", "cold test", "")
    return _table(head, rows)


def _lists(features: Sequence[IdFigures]) -> list[str]:
    rows = []
    for f in features:
        if f.lengths is None or f.split != features[0].split:
            continue
        ages = "" if f.ages is None else f"{_span(f.ages.median_s)}, {percent(f.ages.under_1s)} under 1 s"
        lengths = f.lengths
        numbers = (f"{lengths.mean:.3g}", *(f"{n:,}" for n in (lengths.p50, lengths.p95, lengths.max)))
        cut = percent(share(lengths.cut_rows, f.rows))
        rows.append((shorten(f.feature), *numbers, percent(share(f.empty, f.rows)), cut, ages))
    return _table(("lists", "mean", "p50", "p95", "longest", "empty", "cut", "median age of events"), rows)


def _dense(dense: Sequence[DenseFigures]) -> list[str]:
    rows = []
    for name, of in _by_name(dense).items():
        first = next(iter(of.values()))
        numbers = (first.smallest, first.largest, first.mean, first.std)
        drifts = ("-" if s not in of or of[s].drift is None else f"{of[s].drift:+.2f}" for s in ("eval", "test"))
        missing = (percent(share(n, first.rows)) for n in (first.nulls, first.nans, first.infinite))
        rows.append((shorten(name), *missing, *map(_number, numbers), *drifts, ""))
    head = ("dense", "null", "nan", "inf", "smallest", "largest", "mean", "std", "eval +std", "test +std", "")
    return _table(head, rows)


def _labels(labels: Sequence[LabelFigures]) -> list[str]:
    rows = [
        (
            shorten(f.task),
            f.split,
            f"{f.rows:,}",
            percent(share(f.inside, f.rows)),
            f"{f.nulls:,}",
            f"{f.bad:,}",
            f"{f.outside_positive:,}",
            _number(f.mean),
            _number(f.std),
            _maybe(f.zeros),
            _number(f.largest),
            "",
        )
        for f in sorted(labels, key=lambda f: [x.task for x in labels].index(f.task))
    ]
    head = ("task", "split", "rows", "in space", "null", "bad", "outside > 0", "mean", "std", "zeros", "largest", "")
    return _table(head, rows)


def _leaks(report: Report) -> list[str]:
    rows = []
    for task in dict.fromkeys(f.task for f in report.labels):
        strongest = [leak for leak in report.leaks if leak.task == task][:_SHOWN_LEAKS]
        told = (f"{shorten(k.feature)} {k.value:.3f}{_measure(k)}" for k in strongest)
        if strongest:
            rows.append((shorten(task), f"{strongest[0].rows:,}", ", ".join(told)))
    return _table(("task", "rows", "strongest features alone, AUC"), rows)


def _measure(leak: LeakFigures) -> str:
    if leak.measure != "auc":
        return " (rank correlation)"
    return "" if leak.target == "label" else f" ({leak.target})"


def _overlap(report: Report) -> list[str]:
    rows = []
    for f in report.overlap:
        what = "repeat an earlier row" if f.split == "train" else "are a row of train"
        by = "keys" if f.by == "keys" else "all columns read"
        found = "" if f.sampled else f"{f.found:,}"
        rows.append((f.split, by, _about(percent(f.share), exact=not f.sampled), found, what))
    return _table(("overlap", "by", "share", "rows", ""), rows)


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    """All errors; of warnings and notes of one kind in one split the first few."""
    alike: dict[tuple[str, str, str], int] = {}
    for f in findings:
        place = (f.level, f.kind, f.split)
        alike[place] = alike.get(place, 0) + 1
        if f.level == "error" or alike[place] <= _SHOWN_ALIKE:
            yield from _finding(f)
        elif alike[place] == _SHOWN_ALIKE + 1:
            many = sum(1 for g in findings if (g.level, g.kind, g.split) == place) - _SHOWN_ALIKE
            names = ", ".join(g.column for g in findings if (g.level, g.kind, g.split) == place)
            yield from _wrapped(f"{f.level:<8} ", f"{_where(f)}{many} more of the kind '{f.kind}': in all {names}")


def _finding(finding: Finding) -> Iterator[str]:
    end = "" if finding.what.endswith(".") else "."
    yield from _wrapped(f"{finding.level:<8} ", f"{_where(finding)}{finding.what}{end} {finding.advice}".rstrip())
    files = [file for file in finding.files if file not in finding.what]
    if files:
        yield from _wrapped(" " * 9, f"in {', '.join(files)}{' and more' if len(files) >= FILES_NAMED else ''}")


def _where(finding: Finding) -> str:
    return f"{finding.split}: " if finding.split else ""


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False
    )


def _summary(report: Report) -> str:
    counts = {level: sum(1 for f in report.findings if f.level == level) for level in LEVELS}
    if not report.findings:
        return f"{report.config}: nothing to complain of"
    told = [f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items() if count]
    return f"{report.config}: {', '.join(told)}"


def _by_name(figures: Sequence[_Figures]) -> dict[str, dict[str, _Figures]]:
    """Return figures by feature and split."""
    found: dict[str, dict[str, _Figures]] = {}
    for one in figures:
        found.setdefault(one.feature, {})[one.split] = one
    return found


def _extremes(numbers: Sequence[int | None]) -> tuple[str, str]:
    known = [number for number in numbers if number is not None]
    return (f"{min(known):,}", f"{max(known):,}") if known else ("", "")


def _about(text: str, *, exact: bool) -> str:
    return text if exact else f"~{text}"


def _maybe(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _span(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds} s"
