"""The contract of a loss."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import Tensor, nn

from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.data.arrow import Doubles
from torchrec_mtl.data.statistics import LabelStatistics

Domain = Literal["real", "non_negative", "positive"]

LARGEST_LOG = 80.0  # of a prediction: exp of it is finite in float32


class LossConfig(PluginConfig):
    """Base of the losses' options."""

    wants_spread: ClassVar[bool] = False
    """Whether it can learn nothing of labels that are all equal; the pass over the training data refuses them."""

    @property
    def domain(self) -> Domain:
        """Which labels the loss is for; the pass over the data before training refuses all others."""
        return "real"

    def target(self, labels: Doubles) -> Doubles:
        """Return what the loss regresses instead of labels [n], such as their logarithms."""
        return labels


@dataclass(frozen=True)
class LabelScale:
    """A task's label over the training rows that its loss sees.

    Attributes:
        mean: of the labels.
        std: of the labels.
        target_mean: of ``LossConfig.target(labels)``.
        target_std: of the same.
        positive_rate: share of labels above 0.
        log_mean: mean of the logarithms of the labels above 0.
        log_std: their standard deviation.
        quantiles: [Q + 1] quantiles of the labels at even distances, smallest and largest included; empty: unknown.
        shares: [Q + 1] shares of the labels at or below each quantile.
        bin_means: [Q] means of the labels above each quantile up to the next; where there is none, the next.

    Example:
        >>> LabelScale.of(LabelStatistics(rows=2, weight=2.0, mean=5.0, std=1.0, positive_rate=1.0)).mean
        5.0
    """

    mean: float = 0.0
    std: float = 1.0
    target_mean: float = 0.0
    target_std: float = 1.0
    positive_rate: float = 0.5
    log_mean: float = 0.0
    log_std: float = 1.0
    quantiles: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    bin_means: tuple[float, ...] = ()

    @classmethod
    def of(cls, statistics: LabelStatistics) -> Self:
        """Take everything from the statistics of the training data."""
        return cls(**{field.name: getattr(statistics, field.name) for field in dataclasses.fields(cls)})


class Loss(nn.Module, ABC):
    """Elementwise loss of one task.

    ``num_outputs`` logits a row are asked of the head (more than one for a distribution), read from the built loss;
    ``kinds`` are the kinds of task that it fits; ``may_be_negative`` says that its value has no lower bound at 0, as
    that of a density; ``models_zeros`` that a part of its own stands for labels of 0.
    """

    Config: ClassVar[type[LossConfig]]
    kinds: ClassVar[tuple[Literal["binary", "regression"], ...]]
    num_outputs: int = 1
    may_be_negative: ClassVar[bool] = False
    models_zeros: ClassVar[bool] = False

    def __init__(self, config: LossConfig, scale: LabelScale) -> None:
        """Build from the config and the label's statistics."""
        super().__init__()

    @abstractmethod
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss [B] of logits [B] (or [B, P]) and labels [B]."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Return predictions [B] on the label's scale."""
