"""Losses of regressions on standardised labels: the scale of seconds or euros must not decide the size of gradients."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from torchrec_mtl.data.arrow import Doubles
from torchrec_mtl.losses.base import LARGEST_LOG, Domain, LabelScale, Loss, LossConfig


class _Standardised(Loss):
    """Labels are transformed and standardised before the loss, predictions brought back to the label's scale."""

    kinds = ("regression",)
    mean: Tensor
    std: Tensor

    class Config(LossConfig):
        """Options that regressions share."""

        standardize: bool = True
        """Subtract the training mean and divide by the training standard deviation, both of the transformed label."""
        transform: Literal["none", "log1p"] = "none"
        """log1p: the loss is that of ``log(1 + y)``, for labels from 0 up; predictions are ``exp(.) - 1``."""
        clip: PositiveFloat | None = None
        """Labels above count as this in the loss, before the transform; metrics see the labels as they are."""
        minimum: float | None = None
        """Predictions below are raised to it (0 for amounts); the loss does not see this."""

        @property
        def domain(self) -> Domain:
            """Labels from 0 up for a logarithm."""
            return "non_negative" if self.transform == "log1p" else "real"

        def target(self, labels: Doubles) -> Doubles:
            """Return labels [n], clipped and transformed."""
            clipped = labels if self.clip is None else np.minimum(labels, self.clip)
            return np.log1p(np.maximum(clipped, 0.0)) if self.transform == "log1p" else clipped

    def __init__(self, config: Config, scale: LabelScale) -> None:
        super().__init__(config, scale)
        self.transform, self.clip, self.minimum = config.transform, config.clip, config.minimum
        changed = config.transform != "none" or config.clip is not None
        mean, std = (scale.target_mean, scale.target_std) if changed else (scale.mean, scale.std)
        if not config.standardize:
            mean, std = 0.0, 1.0
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def standardised(self, labels: Tensor) -> Tensor:
        """Return labels [B], transformed, with mean 0 and standard deviation 1 over the training rows."""
        if self.clip is not None:
            labels = labels.clamp_max(self.clip)
        if self.transform == "log1p":
            labels = torch.log1p(labels.clamp_min(0))
        return (labels - self.mean) / self.std

    def predict(self, logits: Tensor) -> Tensor:
        """Return predictions [B] on the label's scale."""
        prediction = logits * self.std + self.mean
        if self.transform == "log1p":
            prediction = torch.expm1(prediction.clamp_max(LARGEST_LOG))
        return prediction if self.minimum is None else prediction.clamp_min(self.minimum)


class MeanSquaredError(_Standardised):
    """Squared error of the standardised label.

    ``(z - (t(y) - mean) / std)^2``. Predicts the mean, and its predictions add up to the labels; with ``log1p`` or
    ``clip`` that holds for the transformed label only, and predictions are too low on the label's own scale.

    Example:
        >>> loss = MeanSquaredError(MeanSquaredError.Config(), LabelScale(mean=40.0, std=8.0))
        >>> loss(torch.tensor([0.5]), torch.tensor([40.0])), loss.predict(torch.tensor([0.5]))
        (tensor([0.2500]), tensor([44.]))
    """

    class Config(_Standardised.Config):
        """Options of ``loss: {type: mse}``."""

        type: str = "mse"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B]."""
        return F.mse_loss(logits, self.standardised(labels), reduction="none")


class MeanAbsoluteError(_Standardised):
    """Absolute error of the standardised label: predicts the median.

    ``|z - (t(y) - mean) / std|``. For skewed labels the median is not the mean: predictions do not add up to the labels
    (calibration is not 1), and are 0 where most labels are.

    Example:
        >>> loss = MeanAbsoluteError(MeanAbsoluteError.Config(), LabelScale(mean=40.0, std=8.0))
        >>> loss(torch.tensor([0.5]), torch.tensor([40.0]))
        tensor([0.5000])
    """

    class Config(_Standardised.Config):
        """Options of ``loss: {type: mae}``."""

        type: str = "mae"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B]."""
        return F.l1_loss(logits, self.standardised(labels), reduction="none")


class Huber(_Standardised):
    """Huber loss of the standardised label: quadratic up to ``delta`` standard deviations, linear beyond.

    Predicts something between mean and median (Huber, 1964): for skewed labels calibration is not 1.

    Example:
        >>> loss = Huber(Huber.Config(delta=1.0), LabelScale(mean=40.0, std=8.0))
        >>> loss(torch.zeros(2), torch.tensor([44.0, 64.0]))
        tensor([0.1250, 2.5000])
    """

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


class Quantile(_Standardised):
    """Pinball loss of the standardised label: predicts its ``q``-quantile (Koenker and Bassett, 1978).

    ``max(q e, (q - 1) e)`` with ``e = (t(y) - mean) / std - z``. Not the mean: calibration is not 1. A transform keeps
    the order of labels, so that the prediction is the quantile on the label's own scale with ``log1p`` too.

    Example:
        >>> loss = Quantile(Quantile.Config(q=0.9), LabelScale(mean=40.0, std=8.0))
        >>> loss(torch.zeros(2), torch.tensor([48.0, 32.0]))
        tensor([0.9000, 0.1000])
    """

    class Config(_Standardised.Config):
        """Options of ``loss: {type: quantile}``."""

        type: str = "quantile"
        q: Annotated[float, Field(gt=0, lt=1)] = 0.5
        """Share of labels that the prediction is to lie above."""

    def __init__(self, config: Config, scale: LabelScale) -> None:
        """See the class."""
        super().__init__(config, scale)
        self.q = config.q

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B]."""
        error = self.standardised(labels) - logits
        return torch.maximum(self.q * error, (self.q - 1) * error)
