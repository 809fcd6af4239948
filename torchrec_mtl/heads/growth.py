"""Gradients of connections as if none were masked, summed over a round: which pruned ones should come back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.collectives import all_sum, world_size

# Shapes: A networks, N connections of all layers, I input width, H output width of a layer.


class Growth(nn.Module):
    """Sums gradients of effective weights over the steps of a round and over all ranks (RigL's criterion).

    Args:
        num_connections: N.

    Attributes:
        summed: [N], a buffer that a checkpoint carries.
    """

    summed: Tensor

    def __init__(self, num_connections: int) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("summed", torch.zeros(num_connections))
        self._of_step: dict[int, Tensor] = {}

    def watch(self, weights: Sequence[Tensor], network: int) -> None:
        """Take the gradients of one network's effective weights in the backward to come.

        Args:
            weights: [A, H, I] a layer.
            network: which of the A.
        """
        for number, weight in enumerate(weights):
            weight.register_hook(lambda g, n=number: self._hold(n, g[network]))  # type: ignore[no-untyped-call]

    def _hold(self, number: int, gradient: Tensor) -> None:
        self._of_step[number] = gradient.detach().flatten()

    def take(self) -> None:
        """Add the last step's gradients, once; on all ranks together."""
        if not self._of_step:
            return
        local = torch.cat([self._of_step[number] for number in sorted(self._of_step)])
        self._of_step.clear()
        self.summed += all_sum(local) / world_size()

    def clear(self) -> None:
        """Begin a round."""
        self.summed.zero_()
