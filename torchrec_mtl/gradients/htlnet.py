"""HTLNet's gradient adjustment (arXiv 2403.17442): the core's gradient corrects the others and is never changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from torchrec_mtl.config.base import Name
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.conditions import core_problems

_TINY = 1e-24
_ROUNDING = 1e-5  # float32: what the projection leaves of a squared norm is noise below this part of it


class HTLNetRule(GradientRule):
    """Direction, then magnitude, of each preceding task's gradient, both relative to the core's.

    For each task t but the core: where ``<G_t, G_core> < 0``, ``G_t -= alpha <G_t, G_core> / |G_core|^2 G_core``
    (Eq. 16); then ``G_t = gamma w G_t + (1 - gamma) G_t`` with ``w = clip(|G_core| / |G_t|, 1 / C, C)`` (Eq. 17). The
    combined gradient is ``G_core + sum_t G_t``: linear in the tasks' gradients, so the Gramian is all it takes.

    Args:
        config: options.
        tasks: names, in causal order.
        num_groups: G.

    Example:
        >>> rule = HTLNetRule(HTLNetRule.Config(core="watch", alpha=1.0, gamma=0.0), ["click", "watch"])
        >>> rule.weights(torch.tensor([[[4.0, -1.0], [-1.0, 1.0]]]), torch.zeros(2))  # the core weighs 1 + 1
        tensor([[1., 2.]])
    """

    needs = "gramian"
    norms: Tensor

    class Config(RuleConfig):
        """Options of ``gradient: {type: htlnet}``."""

        type: str = "htlnet"
        core: Name
        """The regression task on which the rule is registered."""
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
        """Strength of the direction step; 1 projects onto the normal plane of the core's gradient, 0 is off."""
        gamma: Annotated[float, Field(ge=0, le=1)] = 0.1
        """Strength of the magnitude step; 0 is off."""
        clip: Annotated[float, Field(ge=1)] = 10.0
        """C."""
        clip_two_sided: bool = True
        """Off: only from above."""
        norm_source: Literal["projected", "raw"] = "projected"
        """Norm of the task's gradient in Eq. 17: after the direction step, or before it."""
        ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """Decay of moving averages that stand for the norms in Eq. 17 (MetaBalance, WWW 2022: 0.9); 0 is off."""

        def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
            """The core must be a regression among at least two tasks."""
            if found := core_problems(self.core, tasks):
                return found
            if {task.name: task.kind for task in tasks}[self.core] != "regression":
                return [f"core: '{self.core}' is a binary task; the rule is registered on the regression task"]
            if self.alpha == 0 and self.gamma == 0:
                return ["alpha and gamma are both 0, so the rule does nothing; use gradient: {type: sum}"]
            return []

    def __init__(self, config: Config, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.options = config
        self.core = list(tasks).index(config.core)
        if config.ema:
            self.register_buffer("norms", torch.zeros(num_groups, len(self.tasks)))

    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [G, K] from the Gramian [G, K, K]."""
        assert gramian is not None
        c = self.options
        dot, norm2 = gramian[:, :, self.core], torch.diagonal(gramian, dim1=1, dim2=2)
        core2 = norm2[:, self.core].unsqueeze(1)
        # A core or a task without gradient (no valid row in the batch) is left alone.
        acts = (core2 > _TINY) & (norm2 > _TINY)
        removed = torch.where(acts & (dot < 0), c.alpha * dot / core2.clamp_min(_TINY), 0.0)
        projected2 = norm2 - 2 * removed * dot + removed.square() * core2
        task2 = projected2 if c.norm_source == "projected" else norm2
        ratio = self._ratio(task2).clamp(1 / c.clip if c.clip_two_sided else 0.0, c.clip)
        # Nor is a gradient raised of which the projection left nothing but rounding (it was opposed to the core's).
        scale = torch.where(acts & (task2 > _ROUNDING * norm2), c.gamma * ratio + 1 - c.gamma, 1.0)
        others = torch.ones_like(scale)
        others[:, self.core] = 0.0
        weights = scale * others
        weights[:, self.core] = 1 - (scale * removed * others).sum(1)
        return weights

    def _ratio(self, norm2: Tensor) -> Tensor:
        """Return [G, K], the norm of the core over that of the task, from their squares."""
        norm = norm2.clamp_min(_TINY).sqrt()
        if self.options.ema:
            kept = self.options.ema * self.norms + (1 - self.options.ema) * norm
            # The first gradient of a task starts its average; a batch without one leaves it as it is.
            kept = torch.where(self.norms > 0, kept, norm)
            self.norms.copy_(torch.where(norm2 > _TINY, kept, self.norms))
            norm = torch.where(self.norms > 0, self.norms, norm)
        assert self.core is not None, "the config names it"
        return norm.narrow(1, self.core, 1) / norm
