"""What modules need of the process group; without one, or in a single process, there is one rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(value: Tensor) -> Tensor:
    """Return the sum of ``value`` over ranks, outside autograd."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def all_gather(value: Tensor) -> Tensor:
    """Return [W, *value.shape], the value of each of W ranks, outside autograd."""
    own = value.detach()
    if world_size() == 1:
        return own.unsqueeze(0)
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.stack(parts)
