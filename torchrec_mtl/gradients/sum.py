"""The plain sum of the tasks' losses."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule, RuleConfig


class SumRule(GradientRule):
    """Every task weighs 1: no boundary, no extra work."""

    needs = "nothing"

    class Config(RuleConfig):
        """Options of ``gradient: {type: sum}``."""

        type: str = "sum"

    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return ones [K]."""
        return torch.ones_like(losses)
