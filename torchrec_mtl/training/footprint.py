"""What this rank holds of a sharded model, measured, and gathered from all ranks."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from torchrec_mtl.collectives import rank, world_size
from torchrec_mtl.initial import local_shards
from torchrec_mtl.training.ranks_file import RankMemory, TablePart
from torchrec_mtl.training.session import Session

_COLLECTIONS = frozenset({"embedding_bags", "embeddings"})


def gather_footprints(session: Session) -> tuple[RankMemory, ...]:
    """Return what each rank holds, on all ranks together; elsewhere than on rank 0 it is of that rank alone."""
    mine = footprint(session)
    found: list[RankMemory | None] | None = [None] * world_size() if rank() == 0 else None
    if world_size() == 1:
        return (mine,)
    dist.gather_object(mine, found, dst=0)
    return (mine,) if found is None else tuple(memory for memory in found if memory is not None)


def footprint(session: Session) -> RankMemory:
    """Return what this rank holds; peaks are of the process so far."""
    plans = _plans(session)
    parts, dense = [], 0
    for key, value in session.model.state_dict().items():
        if (table := _table_of(key)) is None:
            dense += _bytes(value)
            continue
        sharding, kernel = plans.get(table, ("-", "-"))
        parts += [
            TablePart(table, sharding, kernel, part.shape[0], part.shape[1], part.numel() * part.element_size())
            for part, *_ in local_shards(value)
            if part.numel()
        ]
    states = {True: 0, False: 0}  # of tables, of the dense part
    for name, state in session.optimizers.state_dict()["state"].items():
        states[_table_of(name) is not None] += _bytes(state)
    cuda = session.device.type == "cuda"
    return RankMemory(
        rank=rank(),
        device=torch.cuda.get_device_name(session.device) if cuda else "cpu",
        parts=tuple(parts),
        table_state=states[True],
        dense=dense,
        dense_state=states[False],
        peak_host=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        peak_device=torch.cuda.max_memory_allocated(session.device) if cuda else None,
    )


def _plans(session: Session) -> Mapping[str, tuple[str, str]]:
    """Return table -> (sharding, kernel)."""
    modules: Mapping[str, Any] = session.model.plan.plan
    return {
        table: (str(how.sharding_type), str(how.compute_kernel))
        for plan in modules.values()
        for table, how in plan.items()
    }


def _table_of(key: str) -> str | None:
    """Return the table that a key of a state dict belongs to, None for the dense part."""
    collection, table, kind = ("", "", *key.split("."))[-3:]
    return table if kind == "weight" and collection in _COLLECTIONS else None


def _bytes(value: object) -> int:
    """Return the bytes that lie on this rank."""
    return sum(part.numel() * part.element_size() for part in _tensors(value))


def _tensors(value: object) -> Iterator[Tensor]:
    values = flatten_state_dict(value)[0].values() if isinstance(value, dict) else [value]
    for item in values:
        if isinstance(item, Tensor) or hasattr(item, "local_shards"):
            yield from (part for part, *_ in local_shards(item))
