"""Sets of experts, where the experts of a set read the same input and each set another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from torchrec_mtl.heads.layers import Norm, StackedLinear, make_norm

# Shapes: B batch, S sets, n experts of a set, I input width, H expert width.


class ExpertSets(nn.Module):
    """S sets of n experts: one product a layer, and the first layers of a set one wide matrix.

    Args:
        num_sets: S.
        num_experts: n.
        in_features: I.
        sizes: widths of each expert's layers.
        norm: none, batch (over all ranks), or layer; each expert has its own.
        activation: what follows each layer.
    """

    def __init__(
        self,
        num_sets: int,
        num_experts: int,
        in_features: int,
        sizes: Sequence[int],
        *,
        norm: Norm,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:
        """See the class."""
        super().__init__()
        self.num_experts, self.out_features, self.activation = num_experts, sizes[-1], activation
        self.first = StackedLinear(num_sets, in_features, num_experts * sizes[0])
        self.rest = nn.ModuleList(StackedLinear(num_sets * num_experts, i, o) for i, o in pairwise(sizes))
        norms = [make_norm(norm, size, num_sets * num_experts) for size in sizes]
        self.norms = nn.ModuleList(n for n in norms if n is not None)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return [S, n, B, H].

        Args:
            x: [S, B, I], or one [B, I] for all sets.
            valid: [B], 1 for rows that count.
        """
        wide: Tensor = self.first(x)
        sets, rows, width = wide.shape
        hidden = wide.view(sets, rows, self.num_experts, width // self.num_experts).transpose(1, 2).flatten(0, 1)
        hidden = self._activated(0, hidden, valid)
        for i, linear in enumerate(self.rest, 1):
            hidden = self._activated(i, linear(hidden), valid)
        return hidden.view(sets, self.num_experts, rows, self.out_features)

    def _activated(self, layer: int, x: Tensor, valid: Tensor | None) -> Tensor:
        return self.activation(self.norms[layer](x, valid) if len(self.norms) else x)
