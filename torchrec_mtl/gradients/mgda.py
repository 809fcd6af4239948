"""MGDA (Comptes Rendus 2012, NeurIPS 2018): the shortest convex combination of the tasks' gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.gramians import min_norm_point, solve_groups


class MGDARule(GradientRule):
    """MGDA (2012): the shortest convex combination of the gradients, which harms no task.

    ``w = K argmin_{w in simplex} |sum_k w_k g_k|^2`` (Sener and Koltun, NeurIPS 2018, Eq. 3). The paper's weights sum
    to 1, ours to K, so that they are those of the plain sum where all gradients are equal. Exact, where the paper
    takes Frank-Wolfe steps. The task of the shortest gradient decides: without normalising, as here, long ones hardly
    count.

    Args:
        config: options.
        tasks: names.
        num_groups: G.

    Example:
        >>> rule = MGDARule(MGDARule.Config(), ["click", "watch"])
        >>> rule.weights(torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]), torch.zeros(2))
        tensor([[1.5000, 0.5000]])
    """

    needs = "gramian"

    class Config(RuleConfig):
        """Options of ``gradient: {type: mgda}``."""

        type: str = "mgda"

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [G, K] from the Gramian [G, K, K]."""
        assert gramian is not None
        return solve_groups(gramian, self.tasks, lambda part, _: len(part) * min_norm_point(part))
