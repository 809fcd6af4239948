"""The plain sum of the tasks' losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec_mtl.gradients.base import RuleConfig


class SumRule:
    """Every task weighs 1: no boundary, no extra work."""

    needs = "nothing"

    class Config(RuleConfig):
        """Options of ``gradient: {type: sum}``."""

        type: str = "sum"

    def __init__(self, config: RuleConfig, tasks: Sequence[str]) -> None:
        """See `GradientRule`."""

    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return ones [K]."""
        return torch.ones_like(losses)
