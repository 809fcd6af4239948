"""Deviances with a logarithmic link: means that are positive whatever the logit, errors that count by their ratio.

All are of the Tweedie family (Jorgensen, 1987), whose variance grows as ``mu^p``: Poisson for p = 1, gamma for p = 2.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from torchrec_mtl.losses.base import LARGEST_LOG, Domain, LabelScale, Loss, LossConfig

_REACH = 20.0
_SMALLEST, _LARGEST = 1e-12, 1e12


class _Deviance(Loss):
    """Unit deviance of the label over the training mean.

    With ``r = y / mean`` and ``d = log r - z``, predictions being ``mean exp(z)``, it is

        ``2 r^(2-p) [expm1((p - 1) d) / (p - 1) + expm1(-(2 - p) d) / (2 - p)] >= 0``

    and ``2 exp((2 - p) z) / (2 - p)`` for a label of 0. Its mean over rows is least where predictions add up to the
    labels. Being relative, it does not change with the label's unit; the deviance of y itself is ``mean^(2-p)`` times.
    """

    kinds = ("regression",)
    mean: Tensor

    def __init__(self, config: LossConfig, scale: LabelScale, power: float) -> None:
        super().__init__(config, scale)
        self.power = power
        # Without statistics, or where all labels are 0, the unit is 1.
        self.register_buffer("mean", torch.tensor(scale.mean if scale.mean > 0 else 1.0, dtype=torch.float32))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B].

        Past +-20 the loss goes on as a straight line where that leads back, and stays as it is elsewhere, so that no
        logit makes it overflow and none loses its way. Labels count as 1e-12 to 1e12 means.
        """
        inside = logits.clamp(-_REACH, _REACH)
        ratio = (labels / self.mean).clamp_max(_LARGEST)
        with torch.no_grad():
            slope = 2 * (torch.exp((2 - self.power) * inside) - ratio * torch.exp((1 - self.power) * inside))
            back = torch.where(logits > inside, slope.clamp_min(0), slope.clamp_max(0))
        return self._unit_deviance(ratio, inside) + back * (logits - inside)

    def predict(self, logits: Tensor) -> Tensor:
        """Return means [B]: the training mean times ``exp(z)``, z within +-20, and at most e^80."""
        return (self.mean * torch.exp(logits.clamp(-_REACH, _REACH))).clamp_max(math.exp(LARGEST_LOG))

    def _unit_deviance(self, ratio: Tensor, z: Tensor) -> Tensor:
        bounded = ratio.clamp_min(_SMALLEST)
        gap, left = bounded.log() - z, 2 - self.power
        positive = 2 * bounded**left * (_growth(self.power - 1, gap) - _growth(-left, gap))
        return torch.where(ratio > 0, positive, 2 * torch.exp(left * z) / left) if left else positive


def _growth(rate: float, x: Tensor) -> Tensor:
    """Return ``(exp(rate x) - 1) / rate``, which is x for a rate of 0."""
    return torch.expm1(rate * x) / rate if rate else x


class Tweedie(_Deviance):
    """Tweedie deviance: amounts of which many are 0, as a sum of a Poisson number of gamma amounts.

    ``2 [y^(2-p) / ((1-p)(2-p)) - y mu^(1-p) / (1-p) + mu^(2-p) / (2-p)]``, ``mu = mean exp(z)``, with y and mu in units
    of the training mean (Jorgensen, 1987). Predicts the mean; labels from 0 up.

    Example:
        >>> loss = Tweedie(Tweedie.Config(power=1.5), LabelScale(mean=10.0))
        >>> loss(torch.zeros(2), torch.tensor([10.0, 0.0])), loss.predict(torch.zeros(1))
        (tensor([0., 4.]), tensor([10.]))
    """

    class Config(LossConfig):
        """Options of ``loss: {type: tweedie}``."""

        type: str = "tweedie"
        power: Annotated[float, Field(gt=1, lt=2)] = 1.5
        """p: the variance is taken to grow as the mean to this power."""

        @property
        def domain(self) -> Domain:
            """Labels from 0 up."""
            return "non_negative"

    def __init__(self, config: Config, scale: LabelScale) -> None:
        """See the class."""
        super().__init__(config, scale, config.power)


class Gamma(_Deviance):
    """Gamma deviance: positive amounts whose spread grows with their mean.

    ``2 [y / mu - 1 - log(y / mu)]``, ``mu = mean exp(z)`` (McCullagh and Nelder, 1989). Predicts the mean. Labels must
    be above 0: with many zeros use it together with ``gate``. A label of 0, whose deviance is infinite, is refused by
    the pass over the data; where that did not look, it counts as 1e-12 of the mean.

    Example:
        >>> loss = Gamma(Gamma.Config(), LabelScale(mean=10.0))
        >>> loss(torch.zeros(1), torch.tensor([20.0]))
        tensor([0.6137])
    """

    class Config(LossConfig):
        """Options of ``loss: {type: gamma}``."""

        type: str = "gamma"

        @property
        def domain(self) -> Domain:
            """Labels above 0."""
            return "positive"

    def __init__(self, config: Config, scale: LabelScale) -> None:
        """See the class."""
        super().__init__(config, scale, 2.0)


class Poisson(_Deviance):
    """Poisson deviance: counts, or amounts whose variance grows as their mean.

    ``2 [y log(y / mu) - y + mu]``, ``mu = mean exp(z)``, with y and mu in units of the training mean. Predicts the
    mean; labels from 0 up, whole or not.

    Example:
        >>> loss = Poisson(Poisson.Config(), LabelScale(mean=4.0))
        >>> loss(torch.zeros(2), torch.tensor([4.0, 0.0]))
        tensor([0., 2.])
    """

    class Config(LossConfig):
        """Options of ``loss: {type: poisson}``."""

        type: str = "poisson"

        @property
        def domain(self) -> Domain:
            """Labels from 0 up."""
            return "non_negative"

    def __init__(self, config: Config, scale: LabelScale) -> None:
        """See the class."""
        super().__init__(config, scale, 1.0)
