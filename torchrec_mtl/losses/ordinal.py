"""Regression by classification: is the label above this threshold, and this one, and what does that make on average."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from torchrec_mtl.data.arrow import Doubles
from torchrec_mtl.losses.base import LabelScale, Loss, LossConfig

# Shapes: B batch, M thresholds, Q bins of the statistics.


class Ordinal(Loss):
    """Threshold classifiers and the value restored from them (after CREAD, Sun et al., AAAI 2024).

    ``phi_m = P(y > t_m) = sigmoid(z_m + base_m)`` for thresholds t at quantiles of the training labels, each once, and

        ``y' = c_0 + sum_m phi_m (c_m - c_(m-1))``

    with c_m the mean training label from t_m to t_(m+1), so that true phi give the true mean; CREAD has
    ``sum_m phi_m (t_m - t_(m-1))``. The loss is

        ``mean_m BCE(phi_m, 1[y > t_m]) + restoration Huber((y' - y) / std) + order sum_m max(0, phi_(m+1) - phi_m)``.

    base_m are the log-odds of the training data: logits of 0 predict its mean (unweighted, of the sample that the
    quantiles are of). Predictions lie between c_0 and c_M. They are calibrated while Huber's loss is quadratic, as by
    default; a ``delta`` makes it linear beyond, and predictions of skewed labels too low.

    Example:
        >>> scale = LabelScale(quantiles=(0.0, 0.0, 8.0), shares=(0.75, 0.75, 1.0), bin_means=(0.0, 6.0))
        >>> loss = Ordinal(Ordinal.Config(), scale)
        >>> loss.num_outputs, loss.predict(torch.zeros(1))
        (1, tensor([1.5000]))
    """

    kinds = ("regression",)
    thresholds: Tensor
    means: Tensor
    log_odds: Tensor
    std: Tensor

    class Config(LossConfig):
        """Options of ``loss: {type: ordinal}``."""

        wants_spread: ClassVar[bool] = True
        type: str = "ordinal"
        num_thresholds: Annotated[int, Field(ge=1, le=255)] = 32
        """At even quantiles; those that coincide, as where many labels are 0, count once, so that fewer are left. Where
        all coincide with the largest label, the smallest label is the one threshold."""
        restoration_weight: NonNegativeFloat = 1.0
        """Of the Huber loss of the restored value."""
        delta: PositiveFloat | None = None
        """Where that turns from quadratic to linear, in standard deviations of the label; None: nowhere."""
        order_weight: NonNegativeFloat = 1.0
        """Of the penalty where a higher threshold is likelier passed than a lower one."""

    def __init__(self, config: Config, scale: LabelScale) -> None:
        """See the class.

        Raises:
            ValueError: the quantiles of the labels are not known, or all labels are equal.
        """
        super().__init__(config, scale)
        self.config = config
        thresholds, means, rates = _buckets(scale, config.num_thresholds)
        self.num_outputs = len(thresholds)
        self.register_buffer("thresholds", torch.tensor(thresholds, dtype=torch.float32))
        self.register_buffer("means", torch.tensor(means, dtype=torch.float32))
        self.register_buffer("log_odds", torch.tensor(np.log(rates) - np.log1p(-rates), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(scale.std, dtype=torch.float32))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B] of logits [B, M], or [B] for one threshold."""
        z_BM = self._shifted(logits)
        above_BM = (labels.unsqueeze(1) > self.thresholds).to(z_BM.dtype)
        classified = F.binary_cross_entropy_with_logits(z_BM, above_BM, reduction="none").mean(1)
        phi_BM = torch.sigmoid(z_BM)
        disorder = (phi_BM[:, 1:] - phi_BM[:, :-1]).clamp_min(0).sum(1)
        restoration = self._restoration((self._restored(phi_BM) - labels) / self.std)
        return classified + self.config.restoration_weight * restoration + self.config.order_weight * disorder

    def predict(self, logits: Tensor) -> Tensor:
        """Return restored values [B]."""
        return self._restored(torch.sigmoid(self._shifted(logits)))

    def _shifted(self, logits: Tensor) -> Tensor:
        return logits.reshape(-1, self.num_outputs) + self.log_odds

    def _restoration(self, error: Tensor) -> Tensor:
        if self.config.delta is None:
            return 0.5 * error**2
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.config.delta)

    def _restored(self, phi_BM: Tensor) -> Tensor:
        return self.means[0] + phi_BM @ self.means.diff()


def _buckets(scale: LabelScale, num_thresholds: int) -> tuple[Doubles, Doubles, Doubles]:
    """Return thresholds [M], means of the labels between them [M + 1], and shares of labels above them [M]."""
    quantiles = np.array(scale.quantiles)
    if not len(quantiles):
        raise ValueError(
            "ordinal: the quantiles of the training labels are not known: statistics.json is of an older version, or "
            "the loss was built without statistics; start a new run, or give LabelScale quantiles, shares, bin_means"
        )
    picked = np.linspace(0, len(quantiles) - 1, num_thresholds + 2)[1:-1].round().astype(int)
    thresholds = np.unique(quantiles[picked])
    thresholds = thresholds[thresholds < quantiles[-1]]
    if not len(thresholds):  # fewer labels than between two quantiles differ from the largest
        thresholds = quantiles[:1]
    if thresholds[0] == quantiles[-1]:
        raise ValueError(
            f"ordinal: all training labels equal {quantiles[-1]:g}, which leaves nothing to tell apart; use another "
            "loss, or leave the task out"
        )
    # The labels equal to the smallest, then those of each bin; no threshold lies inside a bin.
    masses, values = np.diff(scale.shares, prepend=0.0), np.array([quantiles[0], *scale.bin_means])
    bucket = np.searchsorted(thresholds, quantiles)
    mass = np.bincount(bucket, masses).astype(np.float64)
    means = np.bincount(bucket, masses * values).astype(np.float64) / mass
    return thresholds, means, mass[::-1].cumsum()[::-1][1:]
