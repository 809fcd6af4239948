"""Numbers of 16 bits made 32 again: `torch.autocast` makes them, and sums, logarithms, and losses want more."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """Return ``x``, in fp32 where it has 16 bits a number.

    Example:
        >>> full(torch.ones(2, dtype=torch.bfloat16)).dtype, full(torch.ones(2, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in {torch.bfloat16, torch.float16} else x


def in_full(like: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for the device of ``like``."""
    return torch.autocast(like.device.type, enabled=False)


def is_autocast(like: Tensor) -> bool:
    """Whether autocast is on for the device of ``like``."""
    return torch.is_autocast_enabled(like.device.type)
