"""One expert of `ExpertSets` written out, norms included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def expert(
    sets: Any, s: int, i: int, x: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu, norm: str = "none"
) -> Tensor:
    """[B, I] through expert i of set s, in training."""
    width = sets.first.weight.shape[2] // sets.num_experts
    columns, e = slice(i * width, (i + 1) * width), s * sets.num_experts + i
    x = x @ sets.first.weight[s][:, columns] + sets.first.bias[s][:, columns]
    for layer in range(len(sets.rest) + 1):
        if layer:
            x = x @ sets.rest[layer - 1].weight[e] + sets.rest[layer - 1].bias[e]
        if norm != "none":
            m, dim = sets.norms[layer], 0 if norm == "batch" else 1
            var, mean = torch.var_mean(x, dim, correction=0, keepdim=True)
            x = (x - mean) / (var + 1e-5).sqrt() * m.weight[e] + m.bias[e]
        x = activation(x)
    return x
