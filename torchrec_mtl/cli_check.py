"""The command that looks at the data of a run before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_mtl.atomic import whole_file
from torchrec_mtl.cli_common import fail, is_ours


def add_check(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check")(check_command)


def check_command(
    config: Annotated[Path, typer.Argument(help="The run as YAML.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings to change: key.path=value, such as data.train=other.parquet.", show_default=False
        ),
    ] = None,
    day: Annotated[
        str | None,
        typer.Option(
            help="Column of the row's day, for rates by day: dates, timestamps, strings (2022-04-08), or integers: "
            "20220408, below 100000 the number of a day, else seconds, ms, us, or ns since 1970 by their size. By "
            "default a column of data.keys with dates, or `now` of a sequence.",
            show_default=False,
        ),
    ] = None,
    leak_auc: Annotated[float, typer.Option(help="A feature that alone tells a label better is a leak.")] = 0.98,
    leak_rows: Annotated[
        int, typer.Option(help="Rows of train looked at for leaks, spread over all files; they are kept in memory.")
    ] = 100_000,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings end with exit status 1, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, too.", show_default=False)] = None,
) -> None:
    """Read the data of a run once; report bad ids, nulls, labels, drift, leaks, overlap of splits, and what to do.

    Exit status 1: there is an error (with --strict: or a warning), or the config is wrong. Nothing is changed or run.
    """
    try:
        from torchrec_mtl.checking.command import Options, check
        from torchrec_mtl.checking.report import to_json

        options = Options(day, leak_auc, leak_rows)
        if out is not None and not out.parent.is_dir():
            raise ValueError(f"--out: there is no folder {out.parent}; make it, or name another file")
        report = check(config, overrides or (), options, say=_say)
        if as_json:
            typer.echo(to_json(report), nl=False)
        else:
            from torchrec_mtl.checking.text import render

            typer.echo(render(report), nl=False)
        if out is not None:
            _write(out, to_json(report))
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not is_ours(error):
            raise
        fail(str(error))
    else:
        if report.failed(strict=strict):
            raise typer.Exit(1)


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _write(file: Path, text: str) -> None:
    with whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8")
