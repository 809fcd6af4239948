"""The two collectives that modules need; both do nothing in a single process or without a process group."""

from __future__ import annotations

from typing import Any

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


def differentiable_all_sum(value: Tensor) -> Tensor:
    """Return the sum of ``value`` over ranks; gradients are summed over ranks too."""
    if world_size() == 1:
        return value
    total: Tensor = _AllSum.apply(value)  # type: ignore[no-untyped-call]
    return total


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return all_sum(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return all_sum(gradients[0])
