"""Writes the page of one run or of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchrec_mtl.atomic import whole_file
from torchrec_mtl.report_page.read import read_run
from torchrec_mtl.report_page.run import page_of
from torchrec_mtl.report_page.several import comparing_page


def write_page(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page; return where it lies: of one run, by default ``report.html`` in its folder.

    Raises:
        ValueError: one is no run, a file is damaged, ``out`` is missing, or the page cannot be written.
    """
    if out is None and len(runs) > 1:
        raise ValueError("several runs make one page that belongs to none of them; name it, such as --out page.html")
    page = page_of(runs[0]) if len(runs) == 1 else _comparing(runs)
    out = out or runs[0] / "report.html"
    with whole_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


def _comparing(folders: Sequence[Path]) -> str:
    runs = [read_run(folder) for folder in folders]
    try:
        return comparing_page(runs)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:  # of another shape
        names = ", ".join(map(str, folders))
        raise ValueError(f"one of {names} does not hold what a training writes: {error!r}. Train it again") from error
