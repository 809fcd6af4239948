"""The contract of a gradient rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig


class RuleConfig(PluginConfig):
    """Options that all rules share."""

    at: Literal["embeddings", "representation"] = "embeddings"
    """Where the tasks' gradients meet: at the embeddings, or, cheaper, where the bottom ends."""
    exact: Literal["boundary"] = "boundary"
    """Gramian of the gradients at the boundary."""

    def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
        """Return what makes this rule impossible for these tasks; each with the remedy."""
        return []


class GradientRule(Protocol):
    """Task weights from the Gramian of the tasks' gradients, or from their losses.

    A rule is a pure function of what all ranks share, so that every rank finds the same weights.
    """

    Config: ClassVar[type[RuleConfig]]
    needs: ClassVar[Literal["nothing", "losses", "gramian"]]

    def __init__(self, config: RuleConfig, tasks: Sequence[str]) -> None:
        """Build for the named tasks."""

    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return the tasks' weights.

        Args:
            gramian: [G, K, K] inner products of the tasks' gradients over all ranks, by group of tables; None unless
                asked.
            losses: [K], means over all ranks.

        Returns:
            [G, K], or [K] for all groups; the combined gradient is ``sum_k weight_k gradient_k``.
        """
