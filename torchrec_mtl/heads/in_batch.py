"""Softmax over the items of the batch, corrected for how often each is in one (Yi et al., RecSys 2019)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec_mtl.collectives import rank, world_size
from torchrec_mtl.features import Candidates
from torchrec_mtl.heads.student import Encoded

# Shapes: B rows of this rank, G rows of all ranks, K tasks, d width of a tower's output.

_NEVER = -1e9  # not -inf, whose gradient may be NaN


def in_batch_softmax(encoded: Encoded, candidates: Candidates, valid: Tensor | None) -> Tensor:
    """Return ``-log P(own item | user)`` of each row and task, [K, B].

    ``P`` is a softmax of ``s_k(u_i, v_j) - log Q(j)`` over the items j of the global batch, Q being the share of the
    training rows that item j has; other rows' items that are the row's own item do not count.

    Args:
        encoded: of this rank's rows.
        candidates: their items.
        valid: [B], 1 for rows of data; None: all are.
    """
    users = encoded.users.expand(len(encoded.biases), -1, -1)
    items = gathered(encoded.items.transpose(0, 1)).transpose(0, 1)
    biases = gathered(encoded.biases.T).T
    logits = torch.matmul(users, items.transpose(1, 2)) + biases.unsqueeze(1)  # [K, B, G]
    keys, log_share = gathered(candidates.keys), gathered(candidates.log_share)
    here = torch.arange(len(candidates.keys), device=keys.device)
    own = here + rank() * len(here)
    others = (keys.unsqueeze(0) == candidates.keys.unsqueeze(1)).index_put(
        (here, own), torch.zeros((), dtype=torch.bool, device=keys.device)
    )
    if valid is not None:
        others = others | (gathered(valid) == 0)
    corrected = (logits - log_share).masked_fill(others, _NEVER)
    return corrected.logsumexp(2) - corrected[:, here, own]


class _Gather(torch.autograd.Function):
    """All ranks' rows, end to end; a row's gradient is the sum of what all ranks have of it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ANN401
        ctx.rows = len(value)
        parts = [torch.empty_like(value) for _ in range(world_size())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:  # noqa: ANN401
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        own: Tensor = total[rank() * ctx.rows : (rank() + 1) * ctx.rows]
        return own


def gathered(value: Tensor) -> Tensor:
    """Return [G, ...], the rows of all ranks of values [B, ...], of as many on each rank."""
    if world_size() == 1:
        return value
    found: Tensor = _Gather.apply(value)  # type: ignore[no-untyped-call]
    return found
