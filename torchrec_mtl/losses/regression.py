"""Losses of regressions on standardised labels: the scale of seconds or euros must not decide the size of gradients."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from torchrec_mtl.losses.base import LabelScale, Loss, LossConfig


class _Standardised(Loss):
    """Labels are standardised before the loss, predictions brought back to the label's scale."""

    kinds = ("regression",)
    mean: Tensor
    std: Tensor

    class Config(LossConfig):
        """Options that regressions share."""

        standardize: bool = True
        """Subtract the training mean and divide by the training standard deviation."""
        minimum: float | None = None
        """Predictions below are raised to it (0 for amounts); the loss does not see this."""

    def __init__(self, config: Config, scale: LabelScale) -> None:
        super().__init__(config, scale)
        used = scale if config.standardize else LabelScale()
        self.minimum = config.minimum
        self.register_buffer("mean", torch.tensor(used.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(used.std, dtype=torch.float32))

    def standardised(self, labels: Tensor) -> Tensor:
        """Return labels [B] with mean 0 and standard deviation 1 over the training rows."""
        return (labels - self.mean) / self.std

    def predict(self, logits: Tensor) -> Tensor:
        """Return predictions [B] on the label's scale."""
        prediction = logits * self.std + self.mean
        return prediction if self.minimum is None else prediction.clamp_min(self.minimum)


class MeanSquaredError(_Standardised):
    """Squared error of the standardised label."""

    class Config(_Standardised.Config):
        """Options of ``loss: {type: mse}``."""

        type: str = "mse"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B]."""
        return F.mse_loss(logits, self.standardised(labels), reduction="none")


class Huber(_Standardised):
    """Huber loss of the standardised label: quadratic up to ``delta`` standard deviations, linear beyond."""

    class Config(_Standardised.Config):
        """Options of ``loss: {type: huber}``."""

        type: str = "huber"
        delta: PositiveFloat = 1.0

    def __init__(self, config: Config, scale: LabelScale) -> None:
        """See the class."""
        super().__init__(config, scale)
        self.delta = config.delta

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B]."""
        return F.huber_loss(logits, self.standardised(labels), reduction="none", delta=self.delta)
