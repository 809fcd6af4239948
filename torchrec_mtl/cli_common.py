"""What all commands share: how mistakes are told, and arguments that several take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from torchrec_mtl import doctor

RunDir = Annotated[Path, typer.Argument(help="The run_dir of a trained run.", show_default=False)]


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn what a user can mend into a message and an exit status; anything else keeps its traceback."""
    try:
        doctor.require_healthy()
    except doctor.EnvironmentMismatchError as error:
        fail(str(error))
    from torchrec_mtl.objective import NonFiniteLossError
    from torchrec_mtl.training.checkpoint import CheckpointError
    from torchrec_mtl.training.trainer import InterruptedTrainingError

    try:
        yield
    except InterruptedTrainingError as stop:
        say_once(f"{stop}; the same command goes on from there")
        raise typer.Exit(130) from None  # no success: a scheduler that restarts jobs must see that
    except (NonFiniteLossError, CheckpointError) as error:
        fail(str(error))
    except ValueError as error:
        if not _is_ours(error):
            raise
        fail(str(error))


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised it; from elsewhere (a plug-in, torch) the traceback is what helps."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("torchrec_mtl.")


def fail(message: str) -> None:
    """Say what is wrong, and of which rank, and end with status 1."""
    rank = os.environ.get("RANK", "0")
    typer.echo(f"error{'' if rank == '0' else f' (rank {rank})'}: {message}", err=True)
    raise typer.Exit(1)


def say_once(message: str) -> None:
    """Print on rank 0 alone."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(message, err=True)
