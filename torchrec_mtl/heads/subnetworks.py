"""Shared layers of which each task uses its own connections: K masked copies of one weight, one product a layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from torchrec_mtl.heads.linear import linear

# Shapes: B batch, A networks computed, N connections of all layers, I input width, H output width of a layer.


class SubNetworks(nn.Module):
    """Layers of linear and ReLU; network a computes ``relu((W * M_a) h_a + b)`` (NCS4CVR; Sun et al., AAAI 2020).

    Weights start Xavier normal, biases 0, as in the authors' code. Only weights are masked.

    Args:
        in_features: I of the first layer.
        sizes: widths H.
    """

    def __init__(self, in_features: int, sizes: Sequence[int]) -> None:
        """See the class."""
        super().__init__()
        widths = [in_features, *sizes]
        self.shapes = [(o, i) for i, o in pairwise(widths)]
        self.weights = nn.ParameterList(nn.init.xavier_normal_(torch.empty(shape)) for shape in self.shapes)
        self.biases = nn.ParameterList(torch.zeros(o) for o in sizes)
        self.sizes = [o * i for o, i in self.shapes]
        self.num_connections = sum(self.sizes)
        self.out_features = widths[-1]

    def connections(self) -> Tensor:
        """Return all weights side by side, [N], without gradient; each layer's in the order of its [H, I]."""
        return torch.cat([weight.detach().flatten() for weight in self.weights])

    def per_layer(self, values: Tensor) -> list[Tensor]:
        """Cut [..., N] into one [..., H, I] a layer."""
        parts = torch.split(values, self.sizes, dim=-1)
        return [part.reshape(*values.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def masked(self, mask: Tensor | None) -> list[Tensor]:
        """Return the effective weights of each layer, [A, H, I]; without a mask, one network's."""
        if mask is None:
            return [weight.unsqueeze(0) for weight in self.weights]
        zero = torch.zeros((), device=mask.device)
        return [torch.where(m, w, zero) for m, w in zip(self.per_layer(mask), self.weights, strict=True)]

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return [A, B, H].

        Args:
            x: [B, I] for all networks, or [A, B, I].
            weights: from ``masked``, [A, H, I] a layer; [1, H, I] serves all of x.
        """
        for weight, bias in zip(weights, self.biases, strict=True):
            x = torch.relu(_affine(x, weight, bias))
        return x if x.dim() == 3 else x.unsqueeze(0)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return [A, B, H] (or [B, H] of one network for one x) for x [B, I] or [A, B, I], weight [A, H, I], bias [H]."""
    if len(weight) == 1:
        return linear(x, weight[0], bias)
    if x.dim() == 3:
        return torch.baddbmm(bias, x, weight.transpose(1, 2))
    # All networks read the same: their weights are one tall matrix.
    tall = linear(x, weight.flatten(0, 1), bias.repeat(len(weight)))
    return tall.view(x.shape[0], *weight.shape[:2]).transpose(0, 1)
