"""Which feature counts for which task: gates like those of squeeze-and-excitation, one set a task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.heads.gates import GateNU

# Shapes: B batch, T gates (K, one a task, or 1), F features, D their columns.

Granularity = Literal["field", "bit"]
Squeeze = Literal["mean", "flat"]


class Refinement(nn.Module):
    """``o_k = z_k * 2 sigmoid(W2_k relu(W1_k squeeze(z_k)))`` with z_k the columns of all features (DTRN, TRM).

    The last layer starts at zero, so that all factors are 1.

    Args:
        num_gates: T.
        widths: columns of each of the F features, in their order; they add up to D.
        granularity: a factor for each feature, or for each column ("bit").
        squeeze: what a gate reads: the mean of each feature's columns, or all columns.
        reduction: the hidden layer is this many times narrower than what the gate reads.
    """

    def __init__(
        self,
        num_gates: int,
        widths: Sequence[int],
        *,
        granularity: Granularity = "field",
        squeeze: Squeeze = "mean",
        reduction: int = 4,
    ) -> None:
        """See the class."""
        super().__init__()
        # Neighbours of one width are a table of numbers [count, width].
        self.runs = [(len(list(group)), width) for width, group in groupby(widths)]
        self.num_gates, self.granularity, self.squeeze = num_gates, granularity, squeeze
        columns, fields = sum(widths), len(widths)
        reads = fields if squeeze == "mean" else columns
        gives = fields if granularity == "field" else columns
        self.gate = GateNU(reads, max(reads // reduction, 1), gives, num_towers=num_gates)
        for parameter in self.gate.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor) -> Tensor:
        """Return [K, B, D], or [T, B, D], for z [K, B, D] or one [B, D] for all."""
        factors = self.factors(z)
        if self.granularity == "bit":
            return z * factors
        parts = zip(self._by_run(z), torch.split(factors, [n for n, _ in self.runs], dim=-1), strict=True)
        return torch.cat([(part * factor.unsqueeze(-1)).flatten(-2) for part, factor in parts], dim=-1)

    def factors(self, z: Tensor) -> Tensor:
        """Return the factors, [.., B, F] or [.., B, D], in (0, 2)."""
        if self.squeeze == "mean":
            z = torch.cat([part.mean(-1) for part in self._by_run(z)], dim=-1)
        if z.dim() == 3 and self.num_gates == 1:
            # One gate reads every task's columns: as rows of one batch.
            found: Tensor = self.gate(z.flatten(0, 1))
            return found.view(*z.shape[:2], -1)
        factors: Tensor = self.gate(z)
        return factors

    def _by_run(self, z: Tensor) -> list[Tensor]:
        """Cut [.., D] into [.., count, width] a run."""
        parts = torch.split(z, [n * width for n, width in self.runs], dim=-1)
        return [torch.unflatten(part, -1, run) for part, run in zip(parts, self.runs, strict=True)]
