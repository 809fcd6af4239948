"""FAMO (NeurIPS 2023): weights under which all losses fall at one rate, from the losses alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule
from torchrec_mtl.gradients.conditions import PositiveLossesConfig

_DECAY1, _DECAY2, _EPS = 0.9, 0.999, 1e-8  # Adam's


class FAMORule(GradientRule):
    """FAMO (NeurIPS 2023): all losses shall fall at one rate; needs the losses alone.

    The gradient of ``c sum_k z_k log L_k`` with ``z = softmax(xi)`` and ``c`` such that its weights ``c z_k / L_k``
    sum to 1 (Algorithm 1); ours sum to K. ``xi`` then moves against ``J^T (log L(t) - log L(t + 1))``, J of the
    softmax, by an Adam step with ``gamma xi`` added, as the authors' code does. They evaluate ``L(t + 1)`` by a second
    forward pass on the batch of step t; here it is the loss of the NEXT step's batch: no extra pass, more noise, which
    Adam's moving mean cancels (what one batch adds, the next takes off). A task without loss in a step has no part in
    it.

    Args:
        config: options.
        tasks: names.
        num_groups: unused.

    Example:
        >>> rule = FAMORule(FAMORule.Config(), ["click", "watch"])
        >>> rule.weights(None, torch.tensor([1.0, 3.0]))
        tensor([1.5000, 0.5000])
        >>> _ = rule.weights(None, torch.tensor([0.5, 3.0]))  # click's loss fell: it shall weigh less
        >>> rule.logits
        tensor([-0.0250,  0.0250])
    """

    needs = "losses"
    logits: Tensor
    previous: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    class Config(PositiveLossesConfig):
        """Options of ``gradient: {type: famo}``."""

        type: str = "famo"
        lr: PositiveFloat = 0.025
        """Of the logits xi."""
        gamma: NonNegativeFloat = 1e-3
        """Pulls the logits to 0."""

    def __init__(self, config: Config, tasks: Sequence[str], num_groups: int = 1) -> None:
        """See the class."""
        super().__init__(config, tasks, num_groups)
        self.options = config
        # xi; losses when last seen, 0 before; Adam's moments and, a task, the number of its steps.
        for name in ("logits", "previous", "mean", "square", "steps"):
            self.register_buffer(name, torch.zeros(len(tasks)))

    @torch.no_grad()
    def weights(self, gramian: Tensor | None, losses: Tensor) -> Tensor:
        """Return [K]."""
        present = losses > 0
        self._learn(losses, present & (self.previous > 0))
        self.previous.copy_(torch.where(present, losses, self.previous))
        # z_k / L_k over its sum is a softmax too.
        scores = torch.where(present, self.logits - losses.log(), -torch.inf)
        shares = torch.softmax(scores, dim=0)
        return torch.where(present, present.sum() * shares, 1.0)

    def _learn(self, losses: Tensor, seen: Tensor) -> None:
        """Take the step that was due after the last batch, for the tasks of which both losses are known."""
        fall = torch.where(seen, self.previous.log() - losses.log(), 0.0)
        shares = torch.softmax(self.logits, dim=0) * seen
        common = (shares * fall).sum() / shares.sum().clamp_min(torch.finfo(shares.dtype).tiny)
        gradient = shares * (fall - common) + self.options.gamma * self.logits
        steps = self.steps + 1
        mean = _DECAY1 * self.mean + (1 - _DECAY1) * gradient
        square = _DECAY2 * self.square + (1 - _DECAY2) * gradient.square()
        unbiased = mean / (1 - _DECAY1**steps), square / (1 - _DECAY2**steps)
        logits = self.logits - self.options.lr * unbiased[0] / (unbiased[1].sqrt() + _EPS)
        renewed = {"steps": steps, "mean": mean, "square": square, "logits": logits}
        for name, value in renewed.items():
            state = self.get_buffer(name)
            state.copy_(torch.where(seen, value, state))
