"""Layers of one tower or expert written out: what heads' batched products are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def layers(linears: Iterable[Any], k: int, x: Tensor) -> Tensor:
    """[B, I] through the k-th of stacked layers, with ReLU, without norms."""
    for m in linears:
        x = torch.relu(x @ m.weight[k] + m.bias[k])
    return x


def tower(towers: Any, k: int, x: Tensor) -> Tensor:
    """Logits [B, P] of the k-th of `Towers`."""
    logits: Tensor = layers(towers.linears, k, x) @ towers.last.weight[k] + towers.last.bias[k]
    return logits


def mixture(gate: Tensor, x: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Experts' values [B, H], weighed by a softmax of x [B, I] times gate [I, E]."""
    weights = torch.softmax(x @ gate, dim=1)
    return torch.stack([weights[:, i : i + 1] * value for i, value in enumerate(values)]).sum(0)
