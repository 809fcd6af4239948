"""Likelihoods of amounts whose logarithm is normal: of positive amounts, and of amounts of which many are 0."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from torchrec_mtl.losses.base import LARGEST_LOG, Domain, LabelScale, Loss, LossConfig

_REACH = 20.0
_SMALLEST_RATE = 1e-6


class _LogNormalPart(Loss):
    """Density and mean of a lognormal, relative to the one fitted to the positive training labels.

    ``mu = log_mean + log_std m`` and ``sigma = log_std s'`` with ``s' = min_sigma + softplus(s + c)``, at most
    ``max_sigma``; c makes s' = 1 for s = 0.
    """

    kinds = ("regression",)
    may_be_negative = True
    log_mean: Tensor
    log_std: Tensor

    class Config(LossConfig):
        """Options of both."""

        min_sigma: Annotated[float, Field(gt=0, lt=1)] = 0.01
        """Least sigma, in standard deviations of the logarithms of the positive training labels."""
        max_sigma: Annotated[float, Field(gt=1)] = 3.0
        """Largest sigma, in the same; the mean grows as ``exp(sigma^2 / 2)``."""

    def __init__(self, config: Config, scale: LabelScale) -> None:
        super().__init__(config, scale)
        self.min_sigma, self.max_sigma = config.min_sigma, config.max_sigma
        self._start = math.log(math.expm1(1 - config.min_sigma))
        self.register_buffer("log_mean", torch.tensor(scale.log_mean, dtype=torch.float32))
        self.register_buffer("log_std", torch.tensor(scale.log_std, dtype=torch.float32))

    def density(self, location: Tensor, width: Tensor, labels: Tensor) -> Tensor:
        """Return ``-log p(y)`` [B] of the lognormal, 0 for labels of 0 and below."""
        positive = labels > 0
        logs = torch.log(torch.where(positive, labels, torch.ones_like(labels)))  # log 0 has no gradient, not even 0 *
        sigma = self._sigma(width)
        inside = sigma.clamp_max(self.max_sigma)
        error = ((logs - self.log_mean) / self.log_std - location) / inside
        value = logs + torch.log(self.log_std * inside) + 0.5 * math.log(2 * math.pi) + 0.5 * error**2
        # Beyond the bound the loss goes on as a straight line where that leads back.
        back = ((1 - error**2) / inside).detach().clamp_min(0)
        return torch.where(positive, value + back * (sigma - inside), torch.zeros_like(value))

    def positive_mean(self, location: Tensor, width: Tensor) -> Tensor:
        """Return ``exp(mu + sigma^2 / 2)`` [B], at most e^20 times that of the fitted lognormal, and at most e^80."""
        sigma = self._sigma(width).clamp_max(self.max_sigma)
        log = self.log_std * location + 0.5 * (self.log_std * sigma) ** 2
        log = self.log_mean + log.clamp_max(0.5 * self.log_std**2 + _REACH)
        return torch.exp(log.clamp_max(LARGEST_LOG))

    def _sigma(self, width: Tensor) -> Tensor:
        return self.min_sigma + F.softplus(width + self._start)


class LogNormal(_LogNormalPart):
    """Lognormal likelihood of positive amounts, from 2 logits (mu, s).

    ``-log p(y) = log y + log sigma + log(2 pi) / 2 + (log y - mu)^2 / (2 sigma^2)``; predicts the mean
    ``exp(mu + sigma^2 / 2)``, which is calibrated as far as logarithms are normal. For labels above 0: with many zeros
    use it together with ``gate``, or ``zero_inflated_lognormal`` alone. Labels of 0 are refused by the pass over the
    data; where that did not look, they count nothing.

    Example:
        >>> loss = LogNormal(LogNormal.Config(), LabelScale(log_mean=2.0, log_std=1.0))
        >>> loss.predict(torch.zeros(1, 2)).log()
        tensor([2.5000])
    """

    num_outputs = 2

    class Config(_LogNormalPart.Config):
        """Options of ``loss: {type: lognormal}``."""

        type: str = "lognormal"

        @property
        def domain(self) -> Domain:
            """Labels above 0."""
            return "positive"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B] of logits [B, 2]."""
        return self.density(logits[:, 0], logits[:, 1], labels)

    def predict(self, logits: Tensor) -> Tensor:
        """Return means [B] of logits [B, 2]."""
        return self.positive_mean(logits[:, 0], logits[:, 1])


class ZeroInflatedLogNormal(_LogNormalPart):
    """Likelihood of amounts that are 0 or lognormal, from 3 logits (a, mu, s).

    ``BCE(a, 1[y > 0]) - 1[y > 0] log LogNormal(y; mu, sigma)`` (ZILN, Wang et al. 2019, arXiv 1912.07753); predicts the
    mean ``sigmoid(a) exp(mu + sigma^2 / 2)``. Logits are relative to the training data: zeros stand for its share of
    positive labels and the lognormal fitted to them. With ``gate``, which has a P(y > 0) of its own, use ``lognormal``.

    Example:
        >>> loss = ZeroInflatedLogNormal(
        ...     ZeroInflatedLogNormal.Config(), LabelScale(positive_rate=0.25, log_mean=-0.5, log_std=1.0)
        ... )
        >>> loss.predict(torch.zeros(1, 3))
        tensor([0.2500])
    """

    num_outputs = 3
    models_zeros = True
    log_odds: Tensor

    class Config(_LogNormalPart.Config):
        """Options of ``loss: {type: zero_inflated_lognormal}``."""

        type: str = "zero_inflated_lognormal"

        @property
        def domain(self) -> Domain:
            """Labels from 0 up."""
            return "non_negative"

    def __init__(self, config: Config, scale: LabelScale) -> None:
        """See the class."""
        super().__init__(config, scale)
        rate = torch.tensor(scale.positive_rate, dtype=torch.float64)
        self.register_buffer("log_odds", torch.logit(rate, eps=_SMALLEST_RATE).float())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B] of logits [B, 3]."""
        positive = (labels > 0).to(logits.dtype)
        zero_part = F.binary_cross_entropy_with_logits(logits[:, 0] + self.log_odds, positive, reduction="none")
        return zero_part + self.density(logits[:, 1], logits[:, 2], labels)

    def predict(self, logits: Tensor) -> Tensor:
        """Return means [B] of logits [B, 3]."""
        return torch.sigmoid(logits[:, 0] + self.log_odds) * self.positive_mean(logits[:, 1], logits[:, 2])
