"""The contract of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from torchrec_mtl.config.base import PluginConfig


@dataclass(frozen=True)
class LabelScale:
    """Mean and standard deviation of a task's label over the training rows in its space."""

    mean: float = 0.0
    std: float = 1.0


class Loss(nn.Module, ABC):
    """Elementwise loss of one task.

    ``num_outputs`` logits a row are asked of the head (more than one for a distribution); ``kinds`` are the kinds of
    task that it fits.
    """

    Config: ClassVar[type[PluginConfig]]
    kinds: ClassVar[tuple[Literal["binary", "regression"], ...]]
    num_outputs: ClassVar[int] = 1

    def __init__(self, config: PluginConfig, scale: LabelScale) -> None:
        """Build from the config and the label's statistics."""
        super().__init__()

    @abstractmethod
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss [B] of logits [B] (or [B, P]) and labels [B]."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Return predictions [B] on the label's scale."""
