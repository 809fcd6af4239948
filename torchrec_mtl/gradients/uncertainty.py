"""Weighting by homoscedastic uncertainty (CVPR 2018): each task's noise is learned, and divides its loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.gradients.base import GradientRule
from torchrec_mtl.gradients.conditions import PositiveLossesConfig


class UncertaintyRule(GradientRule):
    """Uncertainty (CVPR 2018): each loss is divided by a variance that is learned with the model.

    ``sum_k L_k / (2 e^(s_k)) + s_k / 2`` (Kendall, Gal, Cipolla), with ``s_k`` = -0.5 at first (LibMTL), trained by
    the dense optimizer, its weight decay included. The optimum is ``e^(s_k) = L_k``, so weights follow the scale of
    the losses and are not comparable with the plain sum's: they begin at 0.82 and go to ``1 / (2 L_k)``. One form for
    both kinds of tasks, as in most libraries (the paper drops the 2 for classification). A task without loss (no valid
    row, or not trained in this phase) has no penalty in that step, else its ``s_k`` would run away.

    Args:
        config: options.
        tasks: names.
        num_groups: unused.

    Example:
        >>> rule = UncertaintyRule(UncertaintyRule.Config(initial=0.0), ["click", "watch"])
        >>> rule.weights(None, torch.ones(2))
        tensor([0.5000, 0.5000], grad_fn=<DivBackward0>)
        >>> rule.penalty()
        tensor(0., grad_fn=<DivBackward0>)
    """

    needs = "losses"
    scale_invariant = False
    present: Tensor

    class Config(PositiveLossesConfig):
        """Options of ``gradient: {type: uncertainty}``."""

        type: str = "uncertainty"
        initial: float = -0.5
        """s of every task before the first step: the logarithm of its variance."""

    def __init__(self, config: Config, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.log_variance = nn.Parameter(torch.full((len(tasks),), config.initial))
        self.register_buffer("present", torch.ones(len(tasks)), persistent=False)  # from weights() to penalty()

    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [K], with a gradient to the variances."""
        self.present = (losses > 0).to(losses)
        return torch.exp(-self.log_variance) / 2

    def penalty(self) -> Tensor:
        """Return ``sum_k s_k / 2`` over the tasks that had a loss in this step."""
        return (self.log_variance * self.present).sum() / 2
