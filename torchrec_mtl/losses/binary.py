"""Losses of binary tasks, computed from logits."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from torchrec_mtl.losses.base import LabelScale, Loss, LossConfig


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy: ``-w y log p - (1 - y) log(1 - p)``, ``p = sigmoid(logit)``, w = ``pos_weight``.

    With w other than 1 the optimum is the log-odds of y plus ``log w`` (King and Zeng, 2001), which predictions take
    off again: they are calibrated for any w. Smoothed labels are ``y (1 - e) + e / 2``; predictions then lie between
    ``e / 2`` and ``1 - e / 2``, nearer to 1/2 than the data.

    Example:
        >>> loss = BinaryCrossEntropy(BinaryCrossEntropy.Config(pos_weight=3.0), LabelScale())
        >>> loss.predict(torch.tensor([3.0]).log())  # trained to odds of 3, of which the weight made a factor of 3
        tensor([0.5000])
    """

    kinds = ("binary",)
    pos_weight: Tensor | None

    class Config(LossConfig):
        """Options of ``loss: {type: bce}``."""

        type: str = "bce"
        pos_weight: PositiveFloat = 1.0
        """Weight of rows with label 1 in the loss; predictions are corrected for it."""
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """e: labels 0 and 1 become e / 2 and 1 - e / 2 in the loss."""

    def __init__(self, config: Config, scale: LabelScale) -> None:
        """See the class."""
        super().__init__(config, scale)
        self.smoothing, self.shift = config.label_smoothing, math.log(config.pos_weight)
        weight = None if config.pos_weight == 1 else torch.tensor(config.pos_weight, dtype=torch.float32)
        self.register_buffer("pos_weight", weight, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B]."""
        if self.smoothing:
            labels = labels * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=self.pos_weight, reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """Return probabilities [B]."""
        return torch.sigmoid(logits - self.shift)


class Focal(Loss):
    """Focal loss: ``-a (1 - p)^g log p`` for y = 1, ``-(1 - a) p^g log(1 - p)`` for y = 0 (Lin et al., ICCV 2017).

    Its probabilities are not calibrated.
    """

    kinds = ("binary",)

    class Config(LossConfig):
        """Options of ``loss: {type: focal}``."""

        type: str = "focal"
        alpha: Annotated[float, Field(gt=0, lt=1)] = 0.75
        gamma: NonNegativeFloat = 2.0

    def __init__(self, config: Config, scale: LabelScale) -> None:
        """See the class."""
        super().__init__(config, scale)
        self.alpha, self.gamma = config.alpha, config.gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B]."""
        # With t = p for y = 1 and 1 - p for y = 0, both cases are -a_t (1 - t)^g log t. In logarithms, since the
        # gradient of a power of 1 - t is infinite at t = 1 for g < 1.
        signed = logits * (2 * labels - 1)
        weight = self.alpha * labels + (1 - self.alpha) * (1 - labels)
        return -weight * torch.exp(self.gamma * F.logsigmoid(-signed)) * F.logsigmoid(signed)

    def predict(self, logits: Tensor) -> Tensor:
        """Return probabilities [B]."""
        return torch.sigmoid(logits)
