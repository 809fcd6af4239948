"""Put the tables and plots of a bench into the documents: all below the mark in the page is written anew.

    torchrec-mtl bench benchmarks/leaderboard.yaml && python benchmarks/publish.py

`docs/benchmarks.md` keeps what stands above the mark, which is written by hand; plots go to `docs/benchmarks/`.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

MARK = "<!-- Below: written by benchmarks/publish.py -->"


def publish(results: Path, page: Path) -> list[Path]:
    """Write the part of ``page`` below the mark from ``results/table.md``, and copy the plots that it shows.

    Returns:
        The plots written.

    Raises:
        ValueError: there is no table, or the page has no mark.
    """
    table = results / "table.md"
    if not table.is_file():
        raise ValueError(f"{table} is missing; run the bench first: torchrec-mtl bench benchmarks/leaderboard.yaml")
    by_hand, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{page} has no line '{MARK}'; put it where the tables are to begin")
    plots = page.with_suffix("")
    shutil.rmtree(plots, ignore_errors=True)
    plots.mkdir()
    text = re.sub(r"^(#+) ", r"\1# ", table.read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    for name in shown:
        shutil.copyfile(results / name, plots / name)
        text = text.replace(f"]({name})", f"]({plots.name}/{name})")
    page.write_text(f"{by_hand}{MARK}\n\n{text.strip()}\n", encoding="utf-8")
    return [plots / name for name in shown]


def main() -> None:
    """Publish one suite's results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=Path("runs/bench-leaderboard"))
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    plots = publish(options.results, options.page)
    print(f"{options.page} and {len(plots)} plots written")


if __name__ == "__main__":
    main()
