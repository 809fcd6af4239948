"""A report's table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Rich
from rich.text import Text

from torchrec_mtl.bench.report import MARKS, Cell, Table


def print_table(console: Console, table: Table) -> None:
    """Print a table and its notes."""
    # Pipes and files say 80 columns, where the table would break.
    wide = console if console.is_terminal else Console(file=console.file, width=max(console.width, 120))
    found = Rich(title=table.title, title_justify="left", show_lines=True)
    numbers = [cell.number for cell in table.rows[0]] if table.rows else [False] * len(table.columns)
    for column, number in zip(table.columns, numbers, strict=True):
        found.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        found.add_row(*map(_cell, row))
    wide.print(found)


def _cell(cell: Cell) -> Text:
    mark = MARKS[cell.mark]
    return Text(f"{cell.text}\n{mark}{cell.small}" if cell.small else f"{mark}{cell.text}")
