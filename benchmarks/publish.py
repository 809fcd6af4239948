"""Put the tables and plots of a bench into the documents: all below the mark in the page is written anew.

    torchrec-mtl bench benchmarks/leaderboard.yaml && python benchmarks/publish.py
    python benchmarks/publish.py --results runs/bench-one runs/bench-other --table questions.md --page docs/page.md

`docs/benchmarks.md` keeps what stands above the mark, which is written by hand; plots go to `docs/benchmarks/`.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

MARK = "<!-- Below: written by benchmarks/publish.py -->"


def publish(results: Sequence[Path], page: Path, table: str = "table.md") -> list[Path]:
    """Write the part of ``page`` below the mark from the tables of ``results``, and copy the plots that they show.

    Returns:
        The plots written.

    Raises:
        ValueError: there is no table, or the page has no mark.
    """
    for folder in results:
        if not (folder / table).is_file():
            raise ValueError(
                f"{folder / table} is missing; run the bench first: torchrec-mtl bench benchmarks/leaderboard.yaml"
            )
    by_hand, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{page} has no line '{MARK}'; put it where the tables are to begin")
    plots = page.with_suffix("")
    shutil.rmtree(plots, ignore_errors=True)
    texts, copied = [], list[Path]()
    for folder in results:
        text = re.sub(r"^(#+) ", r"\1# ", (folder / table).read_text(encoding="utf-8"), flags=re.MULTILINE)
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            plots.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, plots / name)
            text = text.replace(f"]({name})", f"]({plots.name}/{name})")
            copied.append(plots / name)
        texts.append(text.strip())
    page.write_text(f"{by_hand}{MARK}\n\n" + "\n\n".join(texts) + "\n", encoding="utf-8")
    return copied


def main() -> None:
    """Publish the results of one suite or several."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, nargs="+", default=[Path("runs/bench-leaderboard")])
    parser.add_argument("--table", default="table.md", help="file in each of them [%(default)s]")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    plots = publish(options.results, options.page, options.table)
    print(f"{options.page} and {len(plots)} plots written")


if __name__ == "__main__":
    main()
