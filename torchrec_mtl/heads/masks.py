"""Masks over connections: packed to a bit each, pruned by magnitude, grown back by gradient, drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Shapes: N connections of all layers together.


def pack(mask: Tensor) -> Tensor:
    """Return bits, uint8 [..., ceil(N / 8)], of a bool [..., N]."""
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    eights = padded.view(*mask.shape[:-1], padded.shape[-1] // 8, 8)
    return torch.sum(eights * places, -1, dtype=torch.uint8)


def unpack(bits: Tensor, size: int) -> Tensor:
    """Return bool [..., N] from bits [..., ceil(N / 8)]; ``size`` is N."""
    # Eight booleans are gathered as the one 64-bit number that they are in memory.
    bytes_ = torch.arange(256, dtype=torch.uint8, device=bits.device).unsqueeze(1)
    table = ((bytes_ >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1).view(torch.int64).flatten()
    eights = table.index_select(0, bits.flatten().int())
    return eights.view(torch.bool).view(*bits.shape[:-1], 8 * bits.shape[-1])[..., :size]


def rate_of_round(density: float, rounds: int) -> float:
    """Return which share of the connections left a round removes: ``1 - density^(1 / rounds)``."""
    return 1.0 - math.pow(density, 1.0 / rounds)


def prune(mask: Tensor, magnitude: Tensor, rate: float) -> Tensor:
    """Return the mask [N] without the ``round(rate n)`` smallest of its n connections; one at least stays.

    What is as large as the smallest that stays, stays too (authors' code: strictly smaller ones are pruned).

    Args:
        mask: bool [N].
        magnitude: [N], ``|W|`` as trained.
        rate: from 0 to 1.
    """
    left = magnitude[mask]
    removed = min(round(rate * len(left)), len(left) - 1)
    if removed <= 0:
        return mask.clone()
    return mask & (magnitude >= left.kthvalue(removed + 1).values)


def prune_and_grow(mask: Tensor, magnitude: Tensor, gradient: Tensor, rate: float, grow: float) -> Tensor:
    """Return a mask as dense as that of ``prune``, of which a share ``grow`` had been pruned before (RigL).

    The connections that come back are those with the largest gradients (Evci et al., ICML 2020); to make room for them
    as many more of the smallest are pruned. In the first round nothing has been pruned, and nothing comes back.

    Args:
        mask: bool [N].
        magnitude: [N], ``|W|`` as trained.
        gradient: [N], ``|dL / dW|`` as if no connection were masked.
        rate: share of the connections that goes.
        grow: from 0 to 1, share of the new mask.
    """
    left, pruned = int(mask.sum()), int((~mask).sum())
    target = left - min(round(rate * left), left - 1)
    grown = min(round(grow * target), pruned, target - 1)
    if grown <= 0:
        return prune(mask, magnitude, rate)
    stays = torch.where(mask, magnitude, -1.0).topk(target - grown).indices
    comes = torch.where(mask, -1.0, gradient).topk(grown).indices
    new = torch.zeros_like(mask)
    new[stays] = new[comes] = True
    return new


def shuffled(mask: Tensor, sizes: Sequence[int], seed: int) -> Tensor:
    """Return a random mask [N] with as many connections in each layer.

    Args:
        mask: bool [N].
        sizes: connections of each layer.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(size, generator=generator).to(mask.device) for size in sizes]
    return torch.cat([part[order] for part, order in zip(torch.split(mask, list(sizes)), orders, strict=True)])
