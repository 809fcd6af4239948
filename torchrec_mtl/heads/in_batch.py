"""Softmax over the items of the batch, corrected for how often each is in one (Yi et al., RecSys 2019)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from torchrec_mtl.collectives import rank, world_size
from torchrec_mtl.features import Candidates
from torchrec_mtl.heads.student import Encoded

# Shapes: B rows of this rank, G rows of all ranks, K tasks, d width of a tower's output.

_NEVER = -1e9  # not -inf, whose gradient may be NaN


def in_batch_softmax(encoded: Encoded, candidates: Candidates) -> Tensor:
    """Return ``-log P(own item | user)`` of each row and task, [K, B]; 0 for rows that are not of data.

    ``P`` is a softmax of ``s_k(u_i, v_j) - log Q(j)`` over the items j of the global batch, Q being the share of such
    batches that item j has; other rows' items that are the row's own item do not count.

    Args:
        encoded: of this rank's rows.
        candidates: their items.
    """
    tasks, rows = len(encoded.biases), len(candidates.keys)
    asking = rows if candidates.num_rows is None else candidates.num_rows
    users = encoded.users.expand(tasks, -1, -1)[:, :asking]
    items = gathered(encoded.items.transpose(0, 1)).transpose(0, 1).expand(tasks, -1, -1)
    keys = gathered(candidates.keys)
    here = torch.arange(asking, device=keys.device)
    own = here + rank() * rows
    masked = (keys.unsqueeze(0) == candidates.keys[:asking].unsqueeze(1)).index_put(
        (here, own), torch.zeros((), dtype=torch.bool, device=keys.device)
    )
    corrections = gathered(encoded.biases.T).T - gathered(candidates.log_share)  # [K, G]
    if candidates.present is not None:
        corrections = corrections + (gathered(candidates.present) == 0) * _NEVER
    # [K, B, G] is most of the time of a large batch: the corrections come with the product, the mask is added in place.
    users = torch.cat([users, torch.ones_like(users[..., :1])], dim=2)
    items = torch.cat([items, corrections.unsqueeze(2)], dim=2)
    logits = torch.matmul(users, items.transpose(1, 2)).add_(masked * _NEVER)
    targets = own.expand(tasks, -1)
    found = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return F.pad(found, (0, rows - asking))


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
