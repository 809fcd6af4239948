"""The command that searches settings for several tasks at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_mtl.cli_common import errors_for_people


def add_tune(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune")(tune_command)


def tune_command(
    config: Annotated[Path, typer.Argument(help="The run as YAML.", show_default=False)],
    space: Annotated[Path, typer.Option(help="What to search, as YAML (docs/tune.md).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change: key.path=value, such as train.epochs=2.", show_default=False),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings of the search in all, those there are included.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Folder; by default RUN_DIR-tune.", show_default=False)] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs at once, one thread each; by default the cores.", show_default=False)
    ] = None,
    choose: Annotated[str, typer.Option(help="Point to write: ideal, rank, or the number of a trial.")] = "ideal",
    prefer: Annotated[
        list[str] | None,
        typer.Option(help="Weight of an objective in the choice: click=2; may be repeated.", show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: forget what the folder holds.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again what failed; later proposals then change.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check config and space, and count the runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")] = False,
) -> None:
    """Search settings for all tasks at once, or go on where it stopped; show the trade-offs, write the chosen point.

    Trials are scored on data.eval. Points of the front are trained with several seeds and compared with the config as
    it is, also on data.test. Writes to the folder: front.html, front.md, front.json, plots, best.yaml, runs.jsonl.
    """
    with errors_for_people():
        from rich.console import Console

        from torchrec_mtl.tuning.command import InterruptedTuningError, Options, tune

        options = Options(
            config,
            space,
            overrides or (),
            trials,
            out,
            processes,
            choose,
            prefer or (),
            fresh=fresh,
            retry_failed=retry_failed,
            dry_run=dry_run,
        )
        try:
            text = tune(options, Console(stderr=as_json))
        except InterruptedTuningError as stop:
            typer.echo(f"{stop}; the same command goes on from there", err=True)
            raise typer.Exit(130) from None
        if as_json:
            typer.echo(text, nl=False)
