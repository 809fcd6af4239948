"""Setting a run back to an earlier point, exactly: step 0 from the seed, or a checkpoint. Neither copies the tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from torchrec_mtl.initial import initialise_tables
from torchrec_mtl.model import build_model
from torchrec_mtl.training.checkpoint import Checkpoints

if TYPE_CHECKING:
    from torchrec_mtl.training.session import Session

_DENSE = "objective."


def save_origin(session: Session, checkpoints: Checkpoints, *, tables: bool) -> None:
    """Write what `rewind` can set a run back to, on all ranks together.

    Args:
        session: a run.
        checkpoints: of the run.
        tables: the tables too, for whoever will rewind them.
    """
    checkpoints.save_origin(_parts(session, tables=tables))


def rewind(session: Session, checkpoints: Checkpoints | None, *, tables: bool, updates: int) -> None:
    """Set parameters, buffers, and optimizers back, on all ranks together; what the head keeps stays.

    Args:
        session: a run.
        checkpoints: holds the origin; None: back to step 0, from the seed, or from what the run was started from.
        tables: the tables and their optimizer too, or the dense part alone.
        updates: steps that the tables have then seen, for the fused optimizers that count them.

    Raises:
        CheckpointError: the origin is not there, or does not fit.
    """
    if checkpoints is None and session.config.init_from is not None:
        checkpoints = Checkpoints(session.config.run_dir)  # step 0 was another run's, and was kept as the origin
    with _kept(session):
        if checkpoints is None:
            _begin_anew(session, tables=tables)
        else:
            checkpoints.load_origin(_parts(session, tables=tables))
    if tables:
        session.forget_cached_rows()
    session.optimizers.set_step(updates)


def _begin_anew(session: Session, *, tables: bool) -> None:
    fresh = build_model(session.config, session.scales)
    session.objective.load_state_dict(fresh.objective.state_dict())
    session.optimizers.clear(tables=tables)
    if tables:
        initialise_tables(session.model.state_dict(), session.config.features, session.config.train.seed)


def _parts(session: Session, *, tables: bool) -> dict[str, Any]:
    """Return the state of the dense part, and of the tables, in tensors that are the run's own: loaded in place."""
    tensors, parts = session.tensors(), dict[str, Any]()
    for name, is_dense in (("dense", True), *([("tables", False)] if tables else [])):
        for kind, state in (("", tensors["model"]), ("_optim", tensors["optim"]["state"])):
            parts[name + kind] = {key: value for key, value in state.items() if key.startswith(_DENSE) == is_dense}
    return parts


@contextmanager
def _kept(session: Session) -> Iterator[None]:
    """Bring the buffers back that a head keeps."""
    head = session.objective.head
    kept = {name: head.get_buffer(name).clone() for name in head.state_kept}
    yield
    with torch.no_grad():
        for name, value in kept.items():
            head.get_buffer(name).copy_(value)
