"""A report as one HTML file that needs nothing else, in the reader's light or dark colours."""

from __future__ import annotations

from html import escape

from torchrec_mtl.bench.pareto import INK, PAPER
from torchrec_mtl.bench.report import Cell, Plot, Report, Section, Table

_CSS = """
:root { color-scheme: light dark; --ink: #1b1c1d; --paper: #fdfdfc; --line: #d9dade; --soft: #6a6e76;
  --head: #f2f3f5; --better: #17753a; --worse: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e5e7; --paper: #17181a; --line: #383a3f; --soft: #9a9ea7;
  --head: #222428; --better: #6cc487; --worse: #f0857d; } }
body { margin: 2rem auto; padding: 0 1.2rem; max-width: 90rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
ul { padding-left: 1.2rem; } .soft, td small { color: var(--soft); }
th { white-space: nowrap; } .wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--head); font-weight: 600; } .number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; } td small { display: block; font-size: .92em; }
.text { min-width: 9rem; max-width: 34rem; overflow-wrap: anywhere; }
.better small, .better.alone { color: var(--better); } .worse small, .worse.alone, .failed { color: var(--worse); }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0 .5rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; flex: 0 1 32rem; }
figure svg { width: 100%; height: auto; } figcaption { color: var(--soft); font-size: .86rem; }
"""
_MARKS = {"": "", "better": "▲ ", "worse": "▼ ", "failed": ""}


def to_html(report: Report) -> str:
    """Return the page; plots are inside."""
    head = "".join(f"<li>{escape(line)}</li>" for line in report.head)
    sections = "\n".join(_section(section) for section in report.sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_CSS}</style></head>\n"
        f"<body><h1>{escape(report.title)}</h1>\n<ul class=soft>{head}</ul>\n{sections}\n</body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", *map(_table, section.tables)]
    if section.plots:
        parts.append(f"<h3>Trade-offs</h3><div class=plots>{''.join(map(_plot, section.plots))}</div>")
    if section.failures:
        lines = "".join(f"<li>{escape(line)}</li>" for line in section.failures)
        parts.append(f"<h3>Failed runs</h3><ul class=failed>{lines}</ul>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    numbers = [cell.number for cell in table.rows[0]] if table.rows else [False] * len(table.columns)
    heads = "".join(
        f"<th{' class=number' if number else ''}>{escape(c)}</th>" for c, number in zip(table.columns, numbers)
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    notes = "".join(f"<p class=soft>{escape(note)}</p>" for note in table.notes)
    body = f"<div class=wide><table><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>{notes}"
    if table.folded:
        return f"<details><summary>{escape(table.title)}</summary>{body}</details>"
    return f"<h3>{escape(table.title)}</h3>{body}"


def _cell(cell: Cell) -> str:
    names = ["number" if cell.number else "text", cell.mark, "" if cell.small else "alone"]
    mark = _MARKS[cell.mark]
    small = f"<small>{mark}{escape(cell.small)}</small>" if cell.small else ""
    text = escape(cell.text) if cell.small else f"{mark}{escape(cell.text)}"
    return f'<td class="{" ".join(filter(None, names))}">{text}{small}</td>'


def _plot(plot: Plot) -> str:
    """Put the drawing into the page, in the page's ink."""
    drawing = plot.svg[plot.svg.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "none")
    caption = f"{plot.title}: mean over seeds with its 95 % interval"
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"
