"""What all commands share: how mistakes are told, and arguments that several take."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from torchrec_mtl import doctor

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_LAST_S = 0.5

RunDir = Annotated[Path, typer.Argument(help="The run_dir of a trained run.", show_default=False)]


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn what a user can mend into a message and an exit status; anything else keeps its traceback."""
    try:
        doctor.require_healthy()
    except doctor.EnvironmentMismatchError as error:
        fail(str(error))
    from torchrec_mtl.data.prefetch import DataTimeoutError
    from torchrec_mtl.objective import NonFiniteLossError
    from torchrec_mtl.training.checkpoint_notes import CheckpointError
    from torchrec_mtl.training.distributed import LostRanksError, OtherRankError, RefusedElsewhereError
    from torchrec_mtl.training.trainer import InterruptedTrainingError

    try:
        yield
    except typer.Exit:
        raise
    except InterruptedTrainingError as stop:
        say_once(f"{stop}; the same command goes on from there")
        raise typer.Exit(130) from None  # no success: a scheduler that restarts jobs must see that
    except (OtherRankError, RefusedElsewhereError):
        end_after_the_first("another rank ended, and says why")
    except LostRanksError as error:
        end_after_the_first(str(error))
    except (NonFiniteLossError, CheckpointError, DataTimeoutError, OSError) as error:
        tell_torchrun(error)
        fail(str(error))
    except (ValueError, ImportError) as error:
        tell_torchrun(error)
        if not is_ours(error):
            raise
        fail(str(error))
    except Exception as error:
        tell_torchrun(error)
        raise


@contextmanager
def errors_of_serving() -> Iterator[None]:
    """As `errors_for_people`, without what trains: whoever serves may have neither TorchRec nor TorchX."""
    try:
        doctor.require_healthy()
        yield
    except (OSError, doctor.EnvironmentMismatchError) as error:
        fail(str(error))
    except (ValueError, ImportError) as error:
        if not is_ours(error):
            raise
        fail(str(error))


def tell_torchrun(error: Exception) -> None:
    """Leave the error where torchrun looks for the first one of its ranks, for the summary that it prints."""
    if _ERROR_FILE in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def end_after_the_first(message: str) -> NoReturn:
    """End because another rank did: after it, also for torchrun, which takes the first to end for the cause."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    time.sleep(_LAST_S if several else 0.0)
    tell(message)
    time.sleep(_LAST_S if several else 0.0)
    raise typer.Exit(1) from None


def is_ours(error: BaseException) -> bool:
    """Whether this package raised it; from elsewhere (a plug-in, torch) the traceback is what helps."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("torchrec_mtl.")


def fail(message: str) -> None:
    """Say what is wrong, and of which rank, and end with status 1."""
    tell(message)
    raise typer.Exit(1)


def tell(message: str) -> None:
    """Say what is wrong, and of which rank."""
    rank = os.environ.get("RANK", "0")
    typer.echo(f"error{'' if rank == '0' else f' (rank {rank})'}: {message}", err=True)


def say_once(message: str) -> None:
    """Print on rank 0 alone."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(message, err=True)
