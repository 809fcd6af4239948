"""The commands of retrieval: make an index of a run's items, and search it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_mtl.cli_common import RunDir, errors_for_people


def add_retrieval(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("index")(index_command)
    app.command("search")(search_command)


Settings = Annotated[
    list[str] | None,
    typer.Argument(help="kind=flat, ivf, or hnsw, and its settings, such as probes=32.", show_default=False),
]


def index_command(
    run: RunDir,
    items: Annotated[
        list[str], typer.Option("--items", help="Parquet file, folder, or glob of items; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the index.", show_default=False)],
    settings: Settings = None,
    add: Annotated[bool, typer.Option("--add", help="The items join the index that is there.")] = False,
) -> None:
    """Put the items of a run into an index for maximum inner products; print how much of the exact answer it finds."""
    with errors_for_people():
        from torchrec_mtl.retrieval.index_options import parse_options
        from torchrec_mtl.training.corpus import index_run

        done = index_run(run, items, out, parse_options(settings or ()), add=add)
        exact = "exact" if done.index.options.kind == "flat" else "its recall is unknown without data.eval"
        recall = exact if done.recall is None else f"recall@{min(100, len(done.index))} {done.recall:.4f} of the exact"
        typer.echo(f"{len(done.index):,} items in {out}: {done.index.options.kind}, {recall}")


def search_command(
    folder: Annotated[Path, typer.Argument(help="Folder of an index.", show_default=False)],
    queries: Annotated[
        list[str], typer.Option("--queries", help="Parquet file, folder, or glob of users; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Parquet file to write.", show_default=False)],
    k: Annotated[int, typer.Option("-k", min=1, help="Items a query.")] = 100,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", help="How much a task counts, such as like=2; may be repeated.", show_default=False),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run that makes the queries; by default the index's own.", show_default=False)
    ] = None,
) -> None:
    """Write the best items of each query: its name, a list of ids, and their scores."""
    with errors_for_people():
        from torchrec_mtl.training.corpus import search_index

        count = search_index(folder, queries, out, k=k, weights=_weights(weight or ()), run=run)
        typer.echo(f"{count:,} queries written to {out}")


def _weights(words: list[str] | tuple[str, ...]) -> dict[str, float]:
    found = {}
    for word in words:
        task, _, number = word.rpartition("=")
        try:
            found[task] = float(number)
        except ValueError:
            task = ""
        if not task:
            raise ValueError(f"--weight: expected TASK=NUMBER, such as click=0.5 (found '{word}')")
    return found
