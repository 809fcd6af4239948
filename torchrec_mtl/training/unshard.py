"""A checkpoint as plain, whole tensors in one file, from a run of any number of ranks and any sharding plan."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchrec_mtl.atomic import whole_file
from torchrec_mtl.training.checkpoint import CheckpointError
from torchrec_mtl.training.state_names import read_names
from torchrec_mtl.training.stored import StoredTensors
from torchrec_mtl.training.stored_run import StoredRun, Which


@dataclass(frozen=True)
class Unsharded:
    """What was written.

    Attributes:
        step: of the checkpoint.
        tensors: how many.
        bytes: of all numbers.
    """

    step: int
    tensors: int
    bytes: int


def unshard_run(run: str | Path, out: Path, *, which: Which | None = None, optimizers: bool = False) -> Unsharded:
    """Write the tensors of a run to one file that ``torch.load(out, weights_only=True)`` reads.

    The file is a dict: ``step``; ``tables``, {table: [rows, dim]}; ``dense``, {path below ``model.objective``:
    tensor}; with ``optimizers`` also ``table_states`` and ``dense_states``, {table or path: {state: tensor}}. Tensors
    that were stored in parts are put together in a file beside ``out``, so that memory need not hold the tables, but
    the disk must for a moment hold them twice.

    Args:
        run: its ``run_dir``.
        out: the file; replaced where it is there, once the new one is whole.
        which: the checkpoint; by default the best where evaluations chose one.
        optimizers: their states too.

    Raises:
        ValueError: it is no run, or the file cannot be written.
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    found = StoredRun.find(run, which)
    found.check()
    stored = StoredTensors(found.path)
    try:
        with whole_file(out) as partial, tempfile.TemporaryDirectory(prefix=".parts-", dir=out.parent) as scratch:
            content = _content(stored, Path(scratch), optimizers=optimizers)
            tensors = [t for part in content.values() for t in _leaves(part)]
            torch.save({"step": found.step, **content}, partial)
    except RuntimeError as error:
        if isinstance(error, CheckpointError):
            raise
        # torch's writer says so when the disk is full.
        raise ValueError(f"cannot write {out}: {str(error).splitlines()[0]}; is the disk full?") from error
    return Unsharded(found.step, len(tensors), sum(t.numel() * t.element_size() for t in tensors))


def _content(stored: StoredTensors, scratch: Path, *, optimizers: bool) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = {"tables": {}, "dense": {}}
    if optimizers:
        content |= {"table_states": {}, "dense_states": {}}
    for number, name in enumerate(sorted(read_names(stored.shapes), key=lambda name: name.stored)):
        if name.state is not None and not optimizers:
            continue
        tensor = stored.whole(name.stored, scratch / str(number))
        if name.state is None:
            content["dense" if name.table is None else "tables"][name.owner] = tensor
        else:
            states = content["dense_states" if name.table is None else "table_states"]
            states.setdefault(name.owner, {})[name.state] = tensor
    return content


def _leaves(part: dict[str, Any]) -> list[torch.Tensor]:
    return [t for value in part.values() for t in (value.values() if isinstance(value, dict) else (value,))]
