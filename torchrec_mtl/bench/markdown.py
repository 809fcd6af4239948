"""A report as Markdown, as code hosts show it."""

from __future__ import annotations

from torchrec_mtl.bench.report import Cell, Report, Section, Table

_MARKS = {"": "", "better": " ▲", "worse": " ▼", "failed": ""}


def to_markdown(report: Report) -> str:
    """Return the report; plots are linked by the names of their files."""
    parts = [f"# {report.title}", "\n".join(f"- {_plain(line)}" for line in report.head)]
    parts += [_section(section) for section in report.sections]
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    parts = [f"## {section.title}"]
    parts += [_table(table) for table in section.tables]
    if section.plots:
        parts.append("### Trade-offs")
        parts += [f"![{plot.title}]({plot.name})" for plot in section.plots]
    if section.failures:
        parts += ["### Failed runs", "\n".join(f"- {_plain(line)}" for line in section.failures)]
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    numbers = [cell.number for cell in table.rows[0]] if table.rows else [False] * len(table.columns)
    lines = [
        "| " + " | ".join(map(_plain, table.columns)) + " |",
        "| " + " | ".join("---:" if number else "---" for number in numbers) + " |",
        *("| " + " | ".join(map(_cell, row)) + " |" for row in table.rows),
    ]
    body = "\n\n".join(["\n".join(lines), *map(_plain, table.notes)])
    if table.folded:
        return f"<details><summary>{table.title}</summary>\n\n{body}\n\n</details>"
    return f"### {table.title}\n\n{body}"


def _cell(cell: Cell) -> str:
    second = f"<br>{_plain(cell.small)}" if cell.small else ""
    return f"{_plain(cell.text)}{second}{_MARKS[cell.mark]}"


def _plain(text: str) -> str:
    """Take their meaning from the characters that would break a table or become HTML."""
    for character, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(character, written)
    return " ".join(text.split())
