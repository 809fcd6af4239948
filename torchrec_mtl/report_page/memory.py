"""How tables are cut, and what each rank held, as tables and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from torchrec_mtl.bench.report import Cell, Table
from torchrec_mtl.report_page.html import table_of
from torchrec_mtl.training.ranks_file import RankMemory, TablePart

HOW_TO_READ = (
    "Measured when training ended, on the ranks that trained last: bytes of the tensors that lie on the rank, and the "
    "most memory that its process (libraries included) and the tensors on its GPU had."
)
_MOST_RANKS, _MOST_OPEN = 64, 8
_WIDTH, _ROW, _LEFT, _RIGHT = 640, 20, 70, 90
_PARTS: Mapping[str, str] = {
    "tables": "tables",
    "table_state": "optimizer of tables",
    "dense": "dense part",
    "dense_state": "optimizer of dense part",
}


def memory_of(ranks: Sequence[RankMemory], *, title: str = "") -> str:
    """Return a bar and a row a rank, and a row a table.

    Args:
        ranks: of a run.
        title: of the run, where there are several.
    """
    before = f"<h3>{escape(title)}</h3>" if title else ""
    return f"{before}{_bars(ranks[:_MOST_RANKS])}{table_of(_by_rank(ranks))}{table_of(_by_table(ranks))}"


def in_units(size: int | None) -> str:
    """Return bytes in a unit that people read.

    Example:
        >>> [in_units(size) for size in (512, 226_816, 3 * 1024**3, None)]
        ['512 B', '221.5 KiB', '3.0 GiB', '-']
    """
    if size is None:
        return "-"
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:,.1f} {units[0]}"


def _bars(ranks: Sequence[RankMemory]) -> str:
    held = [{name: int(getattr(rank, name)) for name in _PARTS} for rank in ranks]
    most = max((sum(parts.values()) for parts in held), default=0)
    if not most:
        return ""
    drawn = []
    for i, (rank, parts) in enumerate(zip(ranks, held, strict=True)):
        x, y = float(_LEFT), i * _ROW
        drawn.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">rank {rank.rank}</text>')
        for colour, (name, size) in enumerate(parts.items(), 1):
            width = size / most * (_WIDTH - _LEFT - _RIGHT)
            drawn.append(
                f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{_ROW - 5}" fill="var(--c{colour})">'
                f"<title>{_PARTS[name]}: {in_units(size)}</title></rect>"
            )
            x += width
        drawn.append(f'<text x="{x + 8:.1f}" y="{y + 14}">{in_units(sum(parts.values()))}</text>')
    keys = "".join(
        f'<span class=key style="--of: var(--c{i})">{words}</span>' for i, words in enumerate(_PARTS.values(), 1)
    )
    return (
        f'<figure class=bars><svg viewBox="0 0 {_WIDTH} {len(ranks) * _ROW}" role="img" aria-label="bytes by rank">'
        f"{''.join(drawn)}</svg><figcaption>{keys}</figcaption></figure>"
    )


def _by_rank(ranks: Sequence[RankMemory]) -> Table:
    rows = tuple(
        (
            Cell(str(rank.rank)),
            Cell(rank.device, number=False),
            Cell(str(len(rank.parts))),
            *(Cell(in_units(getattr(rank, name))) for name in (*_PARTS, "peak_host", "peak_device")),
        )
        for rank in ranks
    )
    columns = ("rank", "device", "parts of tables", *_PARTS.values(), "peak of process", "peak of GPU")
    return Table("By rank", columns, rows)


def _by_table(ranks: Sequence[RankMemory]) -> Table:
    found: dict[str, list[tuple[int, TablePart]]] = {}
    for rank in ranks:
        for part in rank.parts:
            found.setdefault(part.table, []).append((rank.rank, part))
    rows = tuple(_table_row(name, parts) for name, parts in sorted(found.items()))
    columns = ("table", "sharding", "kernel", "parts", "rows x columns of a part", "ranks", "bytes in all")
    return Table("Tables and their sharding", columns, rows, folded=len(rows) > _MOST_OPEN)


def _table_row(name: str, parts: Sequence[tuple[int, TablePart]]) -> tuple[Cell, ...]:
    first = parts[0][1]
    shapes = list(dict.fromkeys(f"{part.rows:,} x {part.columns:,}" for _, part in parts))
    ranks = list(dict.fromkeys(str(rank) for rank, _ in parts))
    return (
        *(Cell(text, number=False) for text in (name, first.sharding, first.kernel)),
        Cell(str(len(parts))),
        Cell(_few(shapes)),
        Cell(_few(ranks)),
        Cell(in_units(sum(part.bytes for _, part in parts))),
    )


def _few(words: Sequence[str], most: int = 4) -> str:
    """Return words, the middle ones left out where there are many."""
    return ", ".join(words) if len(words) <= most else f"{words[0]}, {words[1]}, ... {words[-1]}"
