"""CAGrad (NeurIPS 2021): near the mean gradient, the direction that helps the worst-off task most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import PositiveFloat
from scipy.optimize import brentq
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.gramians import min_norm_point, solve_groups

_STATIONARY = 1e-7  # part of the longest gradient


class CAGradRule(GradientRule):
    """CAGrad (NeurIPS 2021): near the mean gradient, the direction that helps the worst-off task most.

    ``d = g_0 + c |g_0| g_w / |g_w|`` with the mean ``g_0``, ``g_w = sum_k w_k g_k``, and
    ``w = argmin_{w in simplex} <g_w, g_0> + c |g_0| |g_w|`` (Eq. 4), which is exact here where the authors call SLSQP.
    ``d / (1 + c^2)`` is the authors' and LibMTL's default. Their mean becomes a sum: weights are K times theirs. Where
    ``g_w`` is 0 no direction helps all tasks, and the mean's is taken.

    Args:
        config: options.
        tasks: names.
        num_groups: G.

    Example:
        >>> rule = CAGradRule(CAGradRule.Config(c=0.5, rescale=False), ["click", "watch"])
        >>> rule.weights(torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]), torch.zeros(2)).sum()  # equal gradients: (1 + c) 2
        tensor(3.)
    """

    needs = "gramian"

    class Config(RuleConfig):
        """Options of ``gradient: {type: cagrad}``."""

        type: str = "cagrad"
        c: PositiveFloat = 0.5
        """How far from the mean gradient, in its length; the method converges for c < 1."""
        rescale: bool = True
        """Divide by 1 + c^2."""

    def __init__(self, config: Config, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.options = config

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [G, K] from the Gramian [G, K, K]."""
        assert gramian is not None
        c, scale = self.options.c, 1 / (1 + self.options.c**2) if self.options.rescale else 1.0
        return solve_groups(gramian, self.tasks, lambda part, _: scale * len(part) * _direction(part, c))


def _direction(gramian: Tensor, c: float) -> Tensor:
    """Return weights [K] of ``d``.

    With ``|g_w| = min_t (|g_w|^2 / t + t) / 2`` the objective is, for a given t, that of the shortest convex
    combination of ``g_k + t g_0 / (c |g_0|)``; t is right where it equals ``|g_w|``, and is found by root finding.
    """
    mean = torch.full_like(gramian.diagonal(), 1 / len(gramian))
    mean_length = _length(gramian, mean)
    largest = float(gramian.diagonal().max().sqrt())
    if mean_length <= _STATIONARY * largest:
        return mean

    def convex(t: float) -> Tensor:
        shift = torch.eye(len(gramian), dtype=gramian.dtype) + t / (c * mean_length) * mean
        shifted = shift @ gramian @ shift.T
        return min_norm_point(shifted / shifted.diagonal().mean())

    def excess(t: float) -> float:
        return _length(gramian, convex(t)) - t

    smallest = _STATIONARY * largest
    if excess(smallest) <= 0:
        return mean
    t = brentq(excess, smallest, largest * (1 + _STATIONARY), xtol=1e-12, rtol=1e-12)
    w = convex(t)
    return mean + c * mean_length / _length(gramian, w) * w


def _length(gramian: Tensor, weights: Tensor) -> float:
    return float((weights @ gramian @ weights).clamp_min(0).sqrt())
