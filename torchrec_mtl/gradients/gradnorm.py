"""GradNorm (ICML 2018): weights under which gradients have the lengths that the tasks' progress asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule
from torchrec_mtl.gradients.conditions import PositiveLossesConfig


class GradNormRule(GradientRule):
    """GradNorm (ICML 2018): slow tasks get long gradients, by weights that are learned.

    ``w`` descends on ``sum_k |w_k |g_k| - target_k|`` with ``target_k = mean_i(w_i |g_i|) r_k^alpha`` held constant,
    ``r_k = (L_k / L_k(0)) / mean_i(L_i / L_i(0))`` (Eq. 1 and 2), and is renormalised to sum to K. Deviations: the
    step is taken in ``log w``, where weights stay positive and a long gradient cannot throw its weight past 0
    (LibMTL's softmax does the same), and on the loss divided by ``mean_i(w_i |g_i|)``, so that no learning rate
    depends on the gradients' scale; weights act below the boundary, not in the towers. A task without loss or gradient
    has no part in a step.

    Args:
        config: options.
        tasks: names.
        num_groups: G, 1.

    Example:
        >>> rule = GradNormRule(GradNormRule.Config(), ["click", "watch"])
        >>> gramian = torch.tensor([[[1.0, 0.0], [0.0, 9.0]]])
        >>> [rule.weights(gramian, torch.ones(2)).tolist() for _ in range(2)][0]
        [1.0, 1.0]
        >>> rule.log_weights.exp()  # after two steps: of one length they would be [1.5, 0.5]
        tensor([1.0500, 0.9500])
    """

    needs = "gramian"
    log_weights: Tensor
    first: Tensor

    class Config(PositiveLossesConfig):
        """Options of ``gradient: {type: gradnorm}``."""

        type: str = "gradnorm"
        alpha: NonNegativeFloat = 1.5
        """How much longer the gradients of slow tasks shall be; 0: all of one length."""
        lr: PositiveFloat = 0.025
        """Of the weights' logarithms."""

    def __init__(self, config: Config, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.options = config
        for name in ("log_weights", "first"):  # ``first``: the tasks' first losses, 0 before there is one
            self.register_buffer(name, torch.zeros(len(tasks)))

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [K] as learned up to the step before."""
        assert gramian is not None
        norms = gramian[0].diagonal().sqrt()
        weights = self.log_weights.exp()
        present = (losses > 0) & (norms > 0)
        self.first.copy_(torch.where(present & (self.first == 0), losses, self.first))
        self._learn(norms * weights, losses, present)
        return weights

    def _learn(self, lengths: Tensor, losses: Tensor, present: Tensor) -> None:
        count = present.sum().clamp_min(1)
        ratios = torch.where(present, losses / self.first, 0.0)
        lengths = torch.where(present, lengths, 0.0)
        # In units of the mean length; 1 where nothing is present.
        relative = lengths / (lengths.sum() / count).clamp_min(torch.finfo(lengths.dtype).tiny)
        target = (ratios / (ratios.sum() / count).clamp_min(torch.finfo(ratios.dtype).tiny)) ** self.options.alpha
        moved = self.log_weights - self.options.lr * torch.sign(relative - target) * relative
        # The weights of those present keep their sum, and so all keep K.
        shift = _log_sum(self.log_weights, present) - _log_sum(moved, present)
        self.log_weights.copy_(torch.where(present, moved + shift, self.log_weights))


def _log_sum(log_weights: Tensor, present: Tensor) -> Tensor:
    return torch.where(present, log_weights, -torch.inf).logsumexp(0)
