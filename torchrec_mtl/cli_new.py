"""The command that starts a package with a head, bottom, loss, or gradient rule of one's own."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from torchrec_mtl.cli_common import fail


def add_new(app: typer.Typer) -> None:
    """Add the command."""
    app.command("new")(new_command)


def new_command(
    kind: Annotated[Literal["head", "bottom", "loss", "rule"], typer.Argument(help="What it is.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Its name in a YAML, such as cross_stitch.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write, new or empty; by default ./NAME.", show_default=False)
    ] = None,
) -> None:
    """Write an installable package with a plug-in of your own: class, entry point, test, and a run that trains it."""
    from torchrec_mtl.scaffold.names import check_name
    from torchrec_mtl.scaffold.write import write_skeleton

    folder = out or Path(name)
    try:
        files = write_skeleton(check_name(kind, name), folder)
    except (ValueError, OSError) as error:
        fail(str(error))
    else:
        typer.echo(f"{folder} holds {', '.join(map(str, files))}\n\nnext:")
        for step in (
            f"cd {shlex.quote(os.fspath(folder))}",
            'pip install -e ".[test]"',
            "python -m pytest",
            "torchrec-mtl train train.yaml",
        ):
            typer.echo(f"  {step}")
