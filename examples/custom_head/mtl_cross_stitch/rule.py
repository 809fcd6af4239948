"""Random loss weighting (Lin, Ye, Zhang, Tsang, TMLR 2022)."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from torchrec_mtl import GradientRule, RuleConfig

# Shapes: G groups of tables, K tasks.


class RandomWeights(GradientRule):
    """RLW (TMLR 2022): each step, the losses' weights are the softmax of normal numbers.

    ``w = K softmax(std z)`` with ``z ~ N(0, 1)`` for each task; the paper's weights sum to 1, ours to K, as those of
    the other rules. A baseline that any rule which costs something should beat.

    Example:
        >>> rule = RandomWeights(RandomWeights.Config(), ["click", "watch"])
        >>> rule.weights(None, torch.ones(2)).sum()
        tensor(2.)
    """

    needs = "losses"

    class Config(RuleConfig):
        """Options of ``gradient: {type: random_weights}``."""

        type: str = "random_weights"
        std: PositiveFloat = 1.0
        """Standard deviation of the normal numbers: how far the weights are from 1."""

    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [K]."""
        assert isinstance(self.config, RandomWeights.Config)
        # From torch's CPU generator, which is seeded by run and step on every rank: all draw alike, also when resumed.
        drawn = torch.randn(len(losses)).to(losses)
        return len(losses) * torch.softmax(self.config.std * drawn, dim=0)
