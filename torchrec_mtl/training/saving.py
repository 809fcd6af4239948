"""How a run saves: while training waits, or in the background from a copy in memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from torchrec_mtl.initial import local_shards
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.session import Session

_SHARE = 8
"""A copy is made of its own accord where it takes no more than this part of the memory that is free."""


def open_checkpoints(session: Session) -> Checkpoints:
    """Return where a run saves, as ``train.save`` says; on all ranks together."""
    train = session.config.train
    background = train.save == "background" or (train.save == "auto" and _has_room(session))
    return Checkpoints(session.config.run_dir, keep=train.keep, background=background, timeout_s=train.timeout_s)


def _has_room(session: Session) -> bool:
    """Return whether every rank has memory for a copy of its state; the same on all."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    enough = torch.tensor(int(state_bytes(session) * _SHARE <= free_memory() // ranks_here))
    dist.all_reduce(enough, op=dist.ReduceOp.MIN)
    return bool(enough)


def state_bytes(session: Session) -> int:
    """Return the bytes of this rank's state."""
    values = flatten_state_dict(session.tensors())[0].values()
    parts = (part for value in values if not isinstance(value, dict) for part, *_ in local_shards(value))
    return sum(part.numel() * part.element_size() for part in parts)


def free_memory() -> int:
    """Return the bytes that processes can still take here, within the limit of the container."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no container, no limit ("max"), or an old kernel
        return free
    return max(min(free, limit), 0)
