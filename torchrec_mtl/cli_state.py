"""The command that makes plain tensors of a run's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from torchrec_mtl.cli_common import RunDir, errors_for_people


def add_state(app: typer.Typer) -> None:
    """Add the command."""
    app.command("unshard")(unshard_command)


def unshard_command(
    run: RunDir,
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    checkpoint: Annotated[
        Literal["best", "latest"] | None,
        typer.Option(help="By default the best, where evaluations chose one.", show_default=False),
    ] = None,
    optimizers: Annotated[bool, typer.Option("--optimizers", help="The optimizers' states, too.")] = False,
) -> None:
    """Write a run's tables and dense part as plain tensors to one file for torch.load(..., weights_only=True).

    For runs of any number of ranks and any sharding plan; tables go by their names. No model is built.
    """
    with errors_for_people():
        from torchrec_mtl.training.unshard import unshard_run

        done = unshard_run(run, out, which=checkpoint, optimizers=optimizers)
        typer.echo(f"{done.tensors:,} tensors of step {done.step}, {done.bytes:,} bytes, written to {out}")
