"""MetaBalance (WWW 2022): in each table, the other tasks' gradients move towards the core's in length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from torchrec_mtl.config.base import Name
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.conditions import core_problems

_LARGEST = 1e6  # ratio of lengths: beyond, a gradient is rounding


class MetaBalanceRule(GradientRule):
    """MetaBalance (WWW 2022): table by table, other tasks' gradients move towards the core's in length.

    ``w_k = r m_core / m_k + (1 - r)`` for every task but the core, whose weight is 1; ``m`` are moving averages
    ``beta m + (1 - beta) |g|`` of the lengths, one a table and task (Algorithm 1, its strategy that both raises and
    lowers). The paper has a core and auxiliary tasks in every parameter tensor; here it is in every table. Averages
    begin at 0, which cancels in the ratio; they are divided by what they have seen, so that it cancels too where a task
    had no gradient in some steps: such steps do not count to its average. Where the core has none, the others are left
    alone.

    Args:
        config: options.
        tasks: names.
        num_groups: G, the number of tables.

    Example:
        >>> rule = MetaBalanceRule(MetaBalanceRule.Config(core="watch"), ["click", "watch"])
        >>> rule.weights(torch.tensor([[[4.0, -1.0], [-1.0, 1.0]]]), torch.zeros(2))  # 0.7 * 1 / 2 + 0.3
        tensor([[0.6500, 1.0000]])
    """

    needs = "gramian"
    groups = "table"
    lengths: Tensor
    shares: Tensor

    class Config(RuleConfig):
        """Options of ``gradient: {type: metabalance}``."""

        type: str = "metabalance"
        core: Name
        """The task that the others' gradients are compared with."""
        relax: Annotated[float, Field(gt=0, le=1)] = 0.7
        """r: 1 makes all gradients as long as the core's."""
        beta: Annotated[float, Field(ge=0, lt=1)] = 0.9
        """How much of the moving averages stays each step."""

        def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
            """The core must be one of two tasks or more."""
            return core_problems(self.core, tasks)

    def __init__(self, config: Config, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.options = config
        self.core = self._core = list(tasks).index(config.core)
        for name in ("lengths", "shares"):  # moving averages from 0, of the lengths and of 1
            self.register_buffer(name, torch.zeros(num_groups, len(tasks)))

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [G, K] from the Gramian [G, K, K]."""
        assert gramian is not None
        c, core = self.options, [self._core]
        now = gramian.diagonal(dim1=1, dim2=2).sqrt()
        present = now > 0
        for state, value in ((self.lengths, now), (self.shares, torch.ones_like(now))):
            state.copy_(torch.where(present, c.beta * state + (1 - c.beta) * value, state))
        means = self.lengths / self.shares
        ratio = (means[:, core] / means).clamp(max=_LARGEST)
        weights = torch.where(present & present[:, core], c.relax * ratio + 1 - c.relax, 1.0)
        weights[:, self._core] = 1.0
        return weights
