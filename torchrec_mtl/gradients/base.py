"""The contract of a gradient rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig

Exactness = Literal["boundary", "rows", "dense"]


class RuleConfig(PluginConfig):
    """Options that all rules share."""

    at: Literal["embeddings", "representation"] = "embeddings"
    """Where the tasks' gradients meet: at the embeddings, or, cheaper, where the bottom ends."""
    exact: Exactness = "boundary"
    """What the Gramian is of: gradients at the boundary; true gradients of table rows, summed over all lookups of a row
    on all ranks; or dense gradients of tables that are ordinary parameters (for tests)."""

    def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
        """Return what makes this rule impossible for these tasks; each with the remedy."""
        return []


class GradientRule(nn.Module, ABC):
    """Task weights from the Gramian of the tasks' gradients, or from their losses.

    ``weights`` is called once a training step, on every rank with the same arguments and with torch's CPU generator
    seeded by (seed, step), so that rules that draw draw alike. What a rule remembers it keeps in buffers or parameters,
    which checkpoints hold; parameters are trained by the optimizer of the dense part.

    Args:
        config: options.
        tasks: names of tasks, and of a head's extra losses.
        num_groups: G, how many groups of tables are weighed apart; 1 unless ``groups`` is "table".

    Class attributes:
        needs: "losses": the losses are multiplied by the weights, towers included, at no extra pass; "gramian": the
            gradients below the boundary are.
        groups: "table": one Gramian, and one row of weights, for each table.
        scale_invariant: the weights stay when all gradients (or all losses) are multiplied by one number.
        core: the task that others are compared with, or None.
    """

    Config: ClassVar[type[RuleConfig]]
    needs: ClassVar[Literal["nothing", "losses", "gramian"]]
    groups: ClassVar[Literal["all", "table"]] = "all"
    scale_invariant: ClassVar[bool] = True
    core: int | None = None

    def __init__(self, config: RuleConfig, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__()
        self.config, self.tasks, self.num_groups = config, tuple(tasks), num_groups

    @abstractmethod
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return the tasks' weights.

        Args:
            gramian: [G, K, K] inner products of the tasks' gradients over all ranks, float32; None unless needed.
            losses: [K], means over all ranks, detached.

        Returns:
            [G, K], or [K] for all groups; the combined gradient is ``sum_k weight_k gradient_k``.
        """

    def penalty(self) -> Tensor | None:
        """Return a scalar of the rule's own parameters to add to the loss, or None."""
        return None
