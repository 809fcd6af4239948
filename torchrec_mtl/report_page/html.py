"""The look that all pages share, in the reader's light or dark colours, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from torchrec_mtl.bench.report import MARKS, Cell, Table

# --c1 to --c8 are the colours of curves, --heat (red green blue) that of a heat map's highest value.
_CSS = """
:root { color-scheme: light dark; --ink: #1b1c1d; --paper: #fdfdfc; --line: #d9dade; --soft: #6a6e76;
  --head: #f2f3f5; --better: #17753a; --worse: #b3261e; --heat: 43 125 224;
  --c1: #2266c4; --c2: #c2570c; --c3: #17804a; --c4: #a8329b;
  --c5: #6b46c1; --c6: #96700a; --c7: #0b8296; --c8: #6a6e76; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e5e7; --paper: #17181a; --line: #383a3f; --soft: #9a9ea7;
  --head: #222428; --better: #6cc487; --worse: #f0857d; --heat: 43 117 208;
  --c1: #6ea8f5; --c2: #f29a57; --c3: #5fc98c; --c4: #e58bd9;
  --c5: #b39af5; --c6: #dcb94f; --c7: #56c7d8; --c8: #9a9ea7; } }
body { margin: 2rem auto; padding: 0 1.2rem; max-width: 90rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
ul { padding-left: 1.2rem; } .soft, td small { color: var(--soft); } h1, li, p { overflow-wrap: anywhere; }
p { max-width: 60rem; } pre { font-size: .8rem; line-height: 1.35; }
th { white-space: nowrap; } .wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--head); font-weight: 600; } .number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; } td small { display: block; font-size: .92em; }
.text { min-width: 9rem; max-width: 34rem; overflow-wrap: anywhere; }
.short .text { min-width: 0; white-space: nowrap; }
.better small, .better.alone { color: var(--better); } .worse small, .worse.alone, .failed { color: var(--worse); }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0 .5rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; flex: 0 1 32rem; }
figure svg { width: 100%; height: auto; } figcaption { color: var(--soft); font-size: .86rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.4rem 1.8rem; }
.curves svg { max-width: 26rem; } .curves svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.curves figcaption strong { color: var(--ink); } .key { display: inline-block; margin-right: .9rem; }
.key::before { content: ""; display: inline-block; width: .9rem; height: 0; margin-right: .35rem; vertical-align: .25em;
  border-top: 3px solid var(--of); } .dashed::before { border-top-style: dashed; }
.heat { border-collapse: separate; border-spacing: 2px; } .heat th, .heat td { border: 0; }
.heat th:empty { background: none; }
.heat td { min-width: 3.2rem; text-align: center; background: rgb(var(--heat) / var(--of)); border-radius: 3px;
  font-variant-numeric: tabular-nums; } .maps > div { max-width: 100%; } .maps h3 { margin-bottom: .4rem; }
.heat th { white-space: normal; } nav { margin: 1rem 0; } nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--c1); } section { scroll-margin-top: .5rem; } .bars svg { max-width: 46rem; }
.bars svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
@media (max-width: 32rem) { body { padding: 0 .9rem; } th, td { padding: .3rem .45rem; } }
"""


def document(title: str, head: Sequence[str], body: str) -> str:
    """Return a page.

    Args:
        title: plain text.
        head: lines below the title, plain text.
        body: HTML.
    """
    lines = "".join(f"<li>{escape(line)}</li>" for line in head)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n<ul class=soft>{lines}</ul>\n{body}\n</body></html>\n"
    )


def folded(title: str, body: str) -> str:
    """Return HTML that is closed at first."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def charts(figures: Sequence[str]) -> str:
    """Return figures beside each other, as many as there is room for."""
    return f"<div class=curves>{''.join(figures)}</div>"


def sections(parts: Mapping[str, str]) -> str:
    """Return a section a title, with links to them before; without those that are empty."""
    there = {title: body for title, body in parts.items() if body}
    names = {title: "-".join(title.lower().split()) for title in there}
    links = " ".join(f'<a href="#{names[title]}">{escape(title)}</a>' for title in there)
    return f"<nav>{links}</nav>\n" + "\n".join(
        f'<section class=short id="{names[title]}"><h2>{escape(title)}</h2>{body}</section>'
        for title, body in there.items()
    )


def said(text: str) -> str:
    """Return a line of text that is beside the point."""
    return f"<p class=soft>{escape(text)}</p>"


def table_of(table: Table) -> str:
    """Return a table with its title and notes."""
    numbers = [cell.number for cell in table.rows[0]] if table.rows else [False] * len(table.columns)
    heads = "".join(
        f"<th{' class=number' if number else ''}>{escape(c)}</th>" for c, number in zip(table.columns, numbers)
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    notes = "".join(f"<p class=soft>{escape(note)}</p>" for note in table.notes)
    body = f"<div class=wide><table><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>{notes}"
    return folded(table.title, body) if table.folded else f"<h3>{escape(table.title)}</h3>{body}"


def _cell(cell: Cell) -> str:
    names = ["number" if cell.number else "text", cell.mark, "" if cell.small else "alone"]
    mark = MARKS[cell.mark]
    small = f"<small>{mark}{escape(cell.small)}</small>" if cell.small else ""
    text = escape(cell.text) if cell.small else f"{mark}{escape(cell.text)}"
    return f'<td class="{" ".join(filter(None, names))}">{text}{small}</td>'
