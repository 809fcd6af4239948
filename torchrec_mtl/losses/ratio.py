"""The loss of NCS4CVR's regression (Xiao et al., 2020): how much of a thing, such as a video, somebody consumed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from torchrec_mtl.data.arrow import Doubles
from torchrec_mtl.losses.base import Domain, Loss, LossConfig


class Ratio(Loss):
    """Squared error of a fraction: ``(sigmoid(z) - c)^2`` with ``c = min(max(y, 0), 1)``.

    Predicts the mean of c, always between 0 and 1. It is not standardised, so that a logit of 0 predicts 1/2.

    NCS4CVR (arXiv 2008.09872) trains it on rows with c > 0 alone, and divides by their number. That is not this class's
    doing but that of the task's ``space``: rows outside have no loss, and only rows inside are counted. With the
    paper's weight beside a click of weight 1:

        - {name: play_ratio, kind: regression, label: play_ratio, space: played, weight: 1.5, loss: {type: ratio}}

    Predictions are then means over the rows of the space.

    Example:
        >>> from torchrec_mtl.losses.base import LabelScale
        >>> loss = Ratio(Ratio.Config(), LabelScale())
        >>> loss(torch.zeros(3), torch.tensor([0.5, 1.0, 7.0])), loss.predict(torch.zeros(1))
        (tensor([0.0000, 0.2500, 0.2500]), tensor([0.5000]))
    """

    kinds = ("regression",)

    class Config(LossConfig):
        """Options of ``loss: {type: ratio}``."""

        type: str = "ratio"

        @property
        def domain(self) -> Domain:
            """Labels from 0 up; above 1 they count as 1."""
            return "non_negative"

        def target(self, labels: Doubles) -> Doubles:
            """Return labels [n], clipped."""
            return np.clip(labels, 0.0, 1.0)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B]."""
        return F.mse_loss(torch.sigmoid(logits), labels.clamp(0, 1), reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """Return fractions [B]."""
        return torch.sigmoid(logits)
