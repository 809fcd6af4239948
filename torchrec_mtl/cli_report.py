"""The command that makes a page of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_mtl.cli_common import fail


def add_report(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report_command)


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="The run_dir of each run.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write; by default RUN/report.html. Several runs need it.", show_default=False),
    ] = None,
) -> None:
    """Write one HTML page that needs nothing else: of a run, or one that compares several.

    Metrics, calibration and lift, curves over the steps, gradients, what the head found, sharding and memory, config.
    Runs that differ in train.seed alone are shown as mean and interval.
    """
    from torchrec_mtl.report_page.page import write_page

    try:
        page = write_page(runs, out)
    except (ValueError, OSError) as error:
        fail(str(error))
    else:
        typer.echo(f"report written to {page}")
