"""Rules whose arithmetic is torchjd's: PCGrad, GradVac, IMTL-G, Aligned-MTL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torchjd.aggregation import AlignedMTLWeighting, GradVacWeighting, IMTLGWeighting, PCGradWeighting

from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.gramians import free_of_rounding, solve_groups


class PCGradRule(GradientRule):
    """PCGrad (NeurIPS 2020): each task's gradient loses what opposes another's, in random order.

    For every i and every j other than i, in random order: where ``<g_i, g_j> < 0``,
    ``g_i -= <g_i, g_j> / |g_j|^2 g_j`` with the others as they were (Algorithm 1). The combined gradient is the sum of
    the changed ``g_i``, as in the paper: the plain sum where no gradients are opposed.

    Args:
        config: options.
        tasks: names.
        num_groups: G.

    Example:
        >>> rule = PCGradRule(PCGradRule.Config(), ["click", "watch"])
        >>> rule.weights(torch.tensor([[[4.0, -1.0], [-1.0, 1.0]]]), torch.zeros(2))
        tensor([[1.2500, 2.0000]])
    """

    needs = "gramian"

    class Config(RuleConfig):
        """Options of ``gradient: {type: pcgrad}``."""

        type: str = "pcgrad"

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [G, K] from the Gramian [G, K, K]."""
        assert gramian is not None
        weighting = PCGradWeighting()
        return solve_groups(gramian, self.tasks, lambda part, _: weighting(part))


class IMTLRule(GradientRule):
    """IMTL-G (ICLR 2021): the combined gradient has the same projection onto every task's.

    ``w = K v / sum(v)`` with ``v = G^+ d`` and the lengths ``d_k = |g_k|``: the closed form of the paper, in torchjd's
    generalisation to linearly dependent gradients. The paper's weights sum to 1, ours to K. For three tasks or more
    some weights may be negative, and where ``sum(v)`` nears 0 they grow without bound, as in the paper; opposed
    gradients of two tasks get weight 0.

    Args:
        config: options.
        tasks: names.
        num_groups: G.

    Example:
        >>> rule = IMTLRule(IMTLRule.Config(), ["click", "watch"])
        >>> rule.weights(torch.tensor([[[1.0, 0.0], [0.0, 9.0]]]), torch.zeros(2))  # g_click at 1.5, g_watch at 0.5 * 3
        tensor([[1.5000, 0.5000]])
    """

    needs = "gramian"

    class Config(RuleConfig):
        """Options of ``gradient: {type: imtl}``."""

        type: str = "imtl"

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [G, K] from the Gramian [G, K, K]."""
        assert gramian is not None
        weighting = IMTLGWeighting()
        return solve_groups(gramian, self.tasks, lambda part, _: len(part) * weighting(free_of_rounding(part)))


class AlignedRule(GradientRule):
    """Aligned-MTL (CVPR 2023): the gradients turned until they are orthogonal and of one length.

    ``w = B 1`` with ``B = sigma V S^(-1/2) V^T`` from ``G = V S V^T`` (Algorithm 1): the matrix of gradients has
    condition number 1 after it. The paper averages the aligned gradients, we sum them. Their length ``sigma`` is that
    of the smallest principal component (``min``, the paper's), so nearly parallel gradients make small steps.

    Args:
        config: options.
        tasks: names.
        num_groups: G.

    Example:
        >>> rule = AlignedRule(AlignedRule.Config(), ["click", "watch"])
        >>> rule.weights(torch.tensor([[[1.0, 0.0], [0.0, 4.0]]]), torch.zeros(2))
        tensor([[1.0000, 0.5000]])
    """

    needs = "gramian"

    class Config(RuleConfig):
        """Options of ``gradient: {type: aligned}``."""

        type: str = "aligned"
        scale_mode: Literal["min", "median", "rmse"] = "min"
        """Whose length all components get: the smallest's, the median's, or the root mean square."""

    def __init__(self, config: Config, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.options = config

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [G, K] from the Gramian [G, K, K]."""
        assert gramian is not None
        weighting = AlignedMTLWeighting(scale_mode=self.options.scale_mode)
        return solve_groups(gramian, self.tasks, lambda part, _: len(part) * weighting(free_of_rounding(part)))


class GradVacRule(GradientRule):
    """GradVac (ICLR 2021): gradients are turned towards each other until they agree as much as they used to.

    For every i and every j other than i, in random order: where the cosine ``phi`` of g_i and g_j is below its target
    ``phi_hat``, ``g_i += |g_i| (phi_hat sqrt(1 - phi^2) - phi sqrt(1 - phi_hat^2)) / (|g_j| sqrt(1 - phi_hat^2))
    g_j``; then ``phi_hat = (1 - beta) phi_hat + beta phi`` (Eq. 3). The combined gradient is the sum, as in the paper:
    the plain sum where all agree enough. Two deviations: targets stop at 0.99, for the equation divides by 0 at 1, and
    a pair of which one task has no gradient keeps its target.

    Args:
        config: options.
        tasks: names.
        num_groups: G.

    Example:
        >>> rule = GradVacRule(GradVacRule.Config(), ["click", "watch"])
        >>> rule.weights(torch.tensor([[[4.0, -1.0], [-1.0, 1.0]]]), torch.zeros(2))  # the first target is 0: PCGrad
        tensor([[1.2500, 2.0000]])
        >>> rule.target
        tensor([[ 0.0000, -0.2500],
                [-0.2500,  0.0000]], dtype=torch.float64)
    """

    needs = "gramian"
    target: Tensor

    class Config(RuleConfig):
        """Options of ``gradient: {type: gradvac}``."""

        type: str = "gradvac"
        beta: Annotated[float, Field(gt=0, le=1)] = 0.5
        """Part of the targets that is renewed each step (0.5 is LibMTL's)."""

    def __init__(self, config: Config, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.options = config
        self.register_buffer("target", torch.zeros(len(tasks), len(tasks), dtype=torch.float64))

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [1, K] from the Gramian [1, K, K]."""
        assert gramian is not None
        return solve_groups(gramian, self.tasks, self._solve)

    def _solve(self, gramian: Tensor, active: Tensor) -> Tensor:
        """Run torchjd's rule on the targets of the tasks that have a gradient; its own state lasts for one call."""
        target = self.target.cpu()
        pairs = active.unsqueeze(1) & active
        weighting = GradVacWeighting(beta=self.options.beta, eps=_EPS)
        weighting.register_buffer("_phi_t", target[pairs].view_as(gramian))
        weighting._state_key = (len(gramian), gramian.dtype)
        weights: Tensor = weighting(gramian)
        target[pairs] = weighting.get_buffer("_phi_t").clamp(max=_HIGHEST_TARGET).flatten()
        self.target.copy_(target)
        return weights


_EPS = 1e-12  # gradients have a mean squared length of 1
_HIGHEST_TARGET = 0.99
