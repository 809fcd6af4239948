"""Experts and their mixtures: all experts in one product a layer, all gates in one, whatever the number of tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.heads.layers import MLP, Norm, StackedLinear

# Shapes: B batch, K tasks, E experts, I input width, H expert width.

_LEAST_OF_BMM = 400  # multiplications of one of its products; for less, torch has a plain loop on the CPU


class Experts(nn.Module):
    """E experts of one form that read the same input.

    Args:
        num_experts: E.
        in_features: I.
        sizes: widths of each expert's layers.
        norm: none, batch (over all ranks), or layer.
    """

    def __init__(self, num_experts: int, in_features: int, sizes: Sequence[int], *, norm: Norm) -> None:
        """See the class."""
        super().__init__()
        self.mlp = MLP(in_features, sizes, norm=norm, num_towers=num_experts)
        self.num_experts, self.out_features = num_experts, self.mlp.out_features

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return [B, E, H]; [K, B, E, H] where each task has an input of its own, which all experts read.

        Args:
            x: [B, I] or [K, B, I].
            valid: [B], 1 for rows that count.
        """
        rows = x.flatten(0, -2)
        if valid is not None and x.dim() == 3:
            valid = valid.repeat(x.shape[0])
        values: Tensor = self.mlp(rows, valid).transpose(0, 1)
        return values.view(*x.shape[:-1], self.num_experts, self.out_features) if x.dim() == 3 else values


class Gates(nn.Module):
    """A softmax over E experts for each of K tasks: ``softmax(G_k x)`` (MMoE, Eq. 7)."""

    def __init__(self, num_tasks: int, in_features: int, num_experts: int) -> None:
        """See the class."""
        super().__init__()
        self.linear = StackedLinear(num_tasks, in_features, num_experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return weights [K, B, E] that sum to 1 over E, for x [K, B, I] or one [B, I] for all tasks."""
        return torch.softmax(self.linear(x), dim=-1)


def mix(weights: Tensor, values: Tensor) -> Tensor:
    """Return the mixtures [K, B, H].

    Args:
        weights: [K, B, E].
        values: [B, E, H], or [K, B, E, H] where the tasks' experts gave different values.
    """
    if values.dim() == 3 and weights.shape[0] * values.shape[1] * values.shape[2] >= _LEAST_OF_BMM:
        return torch.bmm(weights.transpose(0, 1), values).transpose(0, 1)
    # Not a product of vectors and matrices for each row and task: that takes twice as long on a CPU.
    return (weights.unsqueeze(-1) * values).sum(-2)
