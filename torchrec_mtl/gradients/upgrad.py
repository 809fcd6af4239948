"""UPGrad (arXiv 2406.16232): each task's gradient, projected to where it harms no task; then their sum."""

from __future__ import annotations

import torch
from scipy.optimize import nnls
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.gramians import root, solve_groups, unit


class UPGradRule(GradientRule):
    """UPGrad (2024): the sum of the gradients, each projected to where it harms no task.

    The projection of ``g_i`` onto the dual cone ``{x: <x, g_k> >= 0 for all k}`` is ``sum_k w_k g_k`` with
    ``w = argmin_{w >= e_i} w^T G w`` (Prop. 1); ``w = e_i + v`` makes it a least-squares problem in ``v >= 0``, solved
    exactly. The paper averages the projections, we sum them: where no gradients are opposed, it is the plain sum.

    Args:
        config: options.
        tasks: names.
        num_groups: G.

    Example:
        >>> rule = UPGradRule(UPGradRule.Config(), ["click", "watch"])
        >>> rule.weights(torch.tensor([[[4.0, -1.0], [-1.0, 1.0]]]), torch.zeros(2))  # 1 + 1/4, and 1 + 1/1
        tensor([[1.2500, 2.0000]])
    """

    needs = "gramian"

    class Config(RuleConfig):
        """Options of ``gradient: {type: upgrad}``."""

        type: str = "upgrad"

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [G, K] from the Gramian [G, K, K]."""
        assert gramian is not None
        return solve_groups(gramian, self.tasks, lambda part, _: _projections(part).sum(0))


def _projections(gramian: Tensor) -> Tensor:
    """Return the weights [K, K] of each gradient's projection, a row a gradient.

    At length 1 (``v_k |g_k|`` instead of ``v_k``) the problem is as well posed for gradients of any size.
    """
    cosines, lengths = unit(gramian)
    columns = root(cosines).numpy()
    added = [torch.from_numpy(nnls(columns, -column, maxiter=100 * len(lengths))[0]) for column in columns.T]
    return torch.eye(len(lengths), dtype=gramian.dtype) + torch.stack(added) * lengths.unsqueeze(1) / lengths
