"""Dynamic weight average (CVPR 2019): a task whose loss falls slowly weighs more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule
from torchrec_mtl.gradients.conditions import PositiveLossesConfig


class DWARule(GradientRule):
    """DWA (CVPR 2019): a task whose loss falls more slowly than the others' weighs more.

    ``w_k = K softmax_k(r_k / T)`` with ``r_k = L_k(t - 1) / L_k(t - 2)`` (Liu, Johns, Davison, Eq. 7), T = 2; weights
    sum to K and are 1 until there are two means. The paper's means are over epochs, of which a recommender has one:
    here they are over windows of ``every`` steps. A step without a task's loss does not count to its mean; a window
    without any leaves its ratio.

    Args:
        config: options.
        tasks: names.
        num_groups: unused.

    Example:
        >>> rule = DWARule(DWARule.Config(every=1), ["click", "watch"])
        >>> for losses in ([1.0, 1.0], [1.0, 0.5], [1.0, 0.5]):
        ...     weights = rule.weights(None, torch.tensor(losses))
        >>> weights  # softmax([1 / 2, 0.5 / 2]) * 2
        tensor([1.1244, 0.8756])
    """

    needs = "losses"
    steps: Tensor
    sums: Tensor
    counts: Tensor
    newer: Tensor
    older: Tensor

    class Config(PositiveLossesConfig):
        """Options of ``gradient: {type: dwa}``."""

        type: str = "dwa"
        every: PositiveInt = 100
        """Steps over which losses are averaged before the weights change."""
        temperature: PositiveFloat = 2.0
        """T: the higher, the more even."""

    def __init__(self, config: Config, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.options = config
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for name in (
            "sums",
            "counts",
            "newer",
            "older",
        ):  # of this window; means of the last two, 0 before there is one
            self.register_buffer(name, torch.zeros(len(tasks)))

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [K], from the windows before this step."""
        known = (self.older > 0) & (self.newer > 0)
        rates = torch.where(known, self.newer / self.older, 1.0)
        self._count(losses)
        return len(losses) * torch.softmax(rates / self.options.temperature, dim=0)

    def _count(self, losses: Tensor) -> None:
        present = losses > 0
        self.sums += torch.where(present, losses, 0.0)
        self.counts += present
        self.steps += 1
        ends = self.steps >= self.options.every
        renewed = ends & (self.counts > 0)
        self.older.copy_(torch.where(renewed, self.newer, self.older))
        self.newer.copy_(torch.where(renewed, self.sums / self.counts, self.newer))
        for state in (self.sums, self.counts, self.steps):
            state.masked_fill_(ends, 0)
