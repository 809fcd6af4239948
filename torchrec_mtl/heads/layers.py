"""Layers of towers: plain ones, and K of them in one batched product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from torchrec_mtl.heads.batch_norm import GlobalBatchNorm
from torchrec_mtl.heads.linear import Linear, linear

# Shapes: B batch, K towers, I input width, H output width.

Norm = Literal["none", "batch", "layer"]


class LayerNorm(nn.Module):
    """Layer norm over the last dimension, with weights per tower; takes ``valid`` as batch norm does and ignores it."""

    def __init__(self, num_features: int, num_towers: int | None = None) -> None:
        """See the class."""
        super().__init__()
        shape = (num_features,) if num_towers is None else (num_towers, 1, num_features)
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise x [..., H]."""
        return torch.addcmul(self.bias, nn.functional.layer_norm(x, (self.num_features,)), self.weight)


def make_norm(kind: Norm, num_features: int, num_towers: int | None = None) -> GlobalBatchNorm | LayerNorm | None:
    """Return the norm layer, or None."""
    if kind == "batch":
        return GlobalBatchNorm(num_features, num_towers)
    return LayerNorm(num_features, num_towers) if kind == "layer" else None


class StackedLinear(nn.Module):
    """K linear maps in one product, of [K, B, I] or one [B, I] for all, to [K, B, H]; each starts as ``nn.Linear``."""

    bias: nn.Parameter | None

    def __init__(self, num_towers: int, in_features: int, out_features: int, *, bias: bool = True) -> None:
        """See the class."""
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num_towers, in_features, out_features).uniform_(-bound, bound))
        drawn = torch.empty(num_towers, 1, out_features).uniform_(-bound, bound) if bias else None
        self.register_parameter("bias", None if drawn is None else nn.Parameter(drawn))

    def forward(self, x: Tensor) -> Tensor:
        """Return [K, B, H]; for x [B, I] the K maps are one wide matrix."""
        return stacked_linear(x, self.weight, self.bias)


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return [K, B, H], what `StackedLinear` does.

    Args:
        x: [K, B, I], or one [B, I] for all.
        weight: [K, I, H].
        bias: [K, 1, H].
    """
    if x.dim() == 2 and 1 in weight.shape:
        # The wide matrix's gradient would have other strides than the parameter in a dimension of size 1, which
        # autograd takes for equal and data parallel does not.
        x = x.expand(len(weight), -1, -1)
    if x.dim() == 3:
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
    k, _, h = weight.shape
    flat = None if bias is None else bias.flatten()
    return linear(x, weight.transpose(1, 2).flatten(0, 1), flat).view(-1, k, h).transpose(0, 1)


class MLP(nn.Module):
    """Layers of linear, norm, ReLU.

    Args:
        in_features: I.
        sizes: widths of the layers; none makes the identity.
        norm: none, batch (over all ranks), or layer.
        num_towers: K for K towers, one product a layer, on [K, B, I] or one [B, I] for all; None: one on [..., B, I].
    """

    def __init__(
        self, in_features: int, sizes: Sequence[int], *, norm: Norm = "none", num_towers: int | None = None
    ) -> None:
        """See the class."""
        super().__init__()
        widths = [in_features, *sizes]
        self.linears = nn.ModuleList(
            Linear(i, o) if num_towers is None else StackedLinear(num_towers, i, o) for i, o in pairwise(widths)
        )
        norms = [make_norm(norm, o, num_towers) for o in sizes]
        self.norms = nn.ModuleList(n for n in norms if n is not None)
        self.out_features = widths[-1]

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return [..., B, H], [K, B, H] from K towers; ``valid`` [B] tells batch norm which rows count."""
        for i, layer in enumerate(self.linears):
            x = layer(x)
            if not len(self.norms):
                x = torch.relu(x)
                continue
            # In place: the norms have no use for what they returned.
            x = torch.relu_(cast(Tensor, self.norms[i](x, valid)))
        return x
