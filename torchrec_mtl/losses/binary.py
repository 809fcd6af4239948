"""Losses of binary tasks, computed from logits."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from torchrec_mtl.losses.base import LabelScale, Loss, LossConfig


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy: ``-y log p - (1 - y) log(1 - p)``, ``p = sigmoid(logit)``."""

    kinds = ("binary",)

    class Config(LossConfig):
        """Options of ``loss: {type: bce}``."""

        type: str = "bce"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B]."""
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """Return probabilities [B]."""
        return torch.sigmoid(logits)


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
