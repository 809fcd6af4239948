"""A report as one HTML file that needs nothing else, in the reader's light or dark colours."""

from __future__ import annotations

from html import escape

from torchrec_mtl.bench.pareto import INK, PAPER
from torchrec_mtl.bench.report import Plot, Report, Section
from torchrec_mtl.report_page.html import document, table_of


def to_html(report: Report) -> str:
    """Return the page; plots are inside."""
    return document(report.title, report.head, "\n".join(map(_section, report.sections)))


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", *map(table_of, section.tables)]
    if section.plots:
        parts.append(f"<h3>Trade-offs</h3><div class=plots>{''.join(map(_plot, section.plots))}</div>")
    if section.failures:
        lines = "".join(f"<li>{escape(line)}</li>" for line in section.failures)
        parts.append(f"<h3>Failed runs</h3><ul class=failed>{lines}</ul>")
    return "\n".join(parts)


def _plot(plot: Plot) -> str:
    """Put the drawing into the page, in the page's ink."""
    drawing = plot.svg[plot.svg.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "none")
    caption = f"{plot.title}: {plot.points}"
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"
