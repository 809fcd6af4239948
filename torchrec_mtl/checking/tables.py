"""One embedding table over all features that read it: how much of it is used, and how many rows it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torchrec_mtl.checking.distinct import Distinct
from torchrec_mtl.checking.findings import Finding, Level, percent, share
from torchrec_mtl.checking.report import IdFigures, TableFigures
from torchrec_mtl.config.features import TableConfig

_HEADROOM = 10  # a tenth
_LARGE = 10_000  # smaller tables cost nothing
_FAR_TOO_LARGE = 4
_SOME_SHARING, _MUCH_SHARING = 0.2, 0.5


def suggest(needed: int) -> int:
    """Return ``needed`` rows and a tenth more, rounded up to two digits.

    Example:
        >>> suggest(27_285), suggest(24), suggest(1)
        (31000, 27, 2)
    """
    rows = needed + -(-needed // _HEADROOM)
    step = int(10 ** max(len(str(rows)) - 2, 0))
    return -(-rows // step) * step


def table_figures(table: TableConfig, features: Sequence[IdFigures], seen: Distinct) -> TableFigures:
    """Return the figures of one table.

    Args:
        table: its config.
        features: that read it, in all splits.
        seen: rows that train looks up.
    """
    hashed = any(f.encode == "hash" for f in features)
    largest = max((f.largest for f in features if f.largest is not None), default=None)
    needed = None if hashed or largest is None or largest < 0 else largest + 1
    used = min(seen.count, table.rows)
    values = _values(used, table.rows) if hashed and used else None
    return TableFigures(
        table=table.name,
        rows=table.rows,
        features=tuple(dict.fromkeys(f.feature for f in features)),
        hashed=hashed,
        used=used,
        used_share=share(used, table.rows),
        exact=seen.exact,
        needed=needed,
        suggested=None if needed is None else suggest(needed),
        values=values,
        sharing=None if values is None else 1 - math.exp(-max(values - 1, 0) / table.rows),
    )


def _values(used: int, rows: int) -> int:
    """Estimate how many values were hashed into rows of which so many are used (linear counting, Whang et al. 1990)."""
    return round(-rows * math.log1p(-min(used, rows - 0.5) / rows))


def table_findings(figures: TableFigures) -> Iterator[Finding]:
    """Judge the size of a table."""
    name, rows = figures.table, figures.rows
    where = f"table '{name}' of {rows:,} rows"
    needed, suggested = figures.needed, figures.suggested
    if needed is not None and suggested is not None and rows >= _LARGE and rows > _FAR_TOO_LARGE * suggested:
        what = f"{where}: the largest id is {needed - 1:,}, and {percent(figures.used_share)} of the rows are looked up"
        advice = f"{suggested:,} rows would hold all ids and a tenth more."
        yield Finding("note", "table_too_large", "", "", what, advice)
    if figures.sharing is not None and figures.sharing > _SOME_SHARING and figures.values is not None:
        what = (
            f"{where}: about {figures.values:,} values are hashed into it, and {percent(figures.sharing)} of them "
            "share their row with another"
        )
        advice = f"With {suggest(10 * figures.values):,} rows about a tenth would."
        level: Level = "warning" if figures.sharing > _MUCH_SHARING else "note"
        yield Finding(level, "hash_collisions", "", "", what, advice)
