"""Gates that scale what they are given, from 0 to a bound, rather than choose among experts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.config.base import did_you_mean
from torchrec_mtl.heads.layers import StackedLinear

# Shapes: B batch, K towers or sets, I input width, O output width.


class GateNU(nn.Module):
    """Gate neural unit: ``gamma sigmoid(W2 relu(W1 x + b1) + b2)`` with gamma = 2 (PEPNet, KDD 2023).

    The factors lie in (0, 2) and start near 1, where the gate changes nothing.

    Args:
        in_features: I.
        hidden: width of the layer between.
        out_features: O.
        num_towers: K for K gates, one product a layer; None: one gate.
    """

    gamma = 2.0

    def __init__(self, in_features: int, hidden: int, out_features: int, num_towers: int | None = None) -> None:
        """See the class."""
        super().__init__()
        if num_towers is None:
            self.first: nn.Module = nn.Linear(in_features, hidden)
            self.second: nn.Module = nn.Linear(hidden, out_features)
        else:
            self.first = StackedLinear(num_towers, in_features, hidden)
            self.second = StackedLinear(num_towers, hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return factors [B, O] for x [B, I]; [K, B, O] from K gates, for x [K, B, I] or one [B, I] for all."""
        return self.gamma * torch.sigmoid(self.second(torch.relu(self.first(x))))


class FeatureGates(nn.Module):
    """Low-rank gates on the input of K sets of experts: ``x * 2 sigmoid(x B A)`` (HoME, 2024).

    Args:
        num_sets: K.
        in_features: I.
        rank: width of x B.
    """

    def __init__(self, num_sets: int, in_features: int, rank: int) -> None:
        """See the class."""
        super().__init__()
        self.down = StackedLinear(num_sets, in_features, rank, bias=False)
        self.up = StackedLinear(num_sets, rank, in_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return each set's own version of the input [K, B, I], for x [K, B, I] or one [B, I] for all."""
        return (2 * x) * torch.sigmoid(self.up(self.down(x)))


def named_problems(option: str, names: Sequence[str], fields: Collection[str]) -> list[str]:
    """Return what is wrong with the features that a gate reads: those not there, and those named twice.

    Args:
        option: key of the config that names them.
        names: the features.
        fields: sparse features that there are.
    """
    problems = [
        f"{option}: no sparse feature is called '{name}'.{did_you_mean(name, fields)}"
        for name in names
        if name not in fields
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    return problems + [f"{option}: '{name}' is named more than once; name it once" for name in twice]
