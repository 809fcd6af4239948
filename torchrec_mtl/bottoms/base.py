"""The contract of a bottom, and what it hands to a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.features import Features, FeaturesSpec


@dataclass(frozen=True)
class Representation:
    """What a bottom hands a head.

    Attributes:
        shared: [B, D], what belongs to no task reads.
        per_task: one [B, D] a task, or all in one tensor [K, B, D]; None where every task reads ``shared``.
        features: what the bottom was given; None when a head is used on a plain tensor.
    """

    shared: Tensor
    per_task: tuple[Tensor, ...] | Tensor | None = None
    features: Features | None = None

    def of_task(self, k: int) -> Tensor:
        """Return [B, D], what task ``k`` reads."""
        return self.shared if self.per_task is None else self.per_task[k]

    def by_task(self) -> Tensor:
        """Return [K, B, D], what each task reads; just [B, D] where all read the same."""
        if self.per_task is None:
            return self.shared
        return self.per_task if isinstance(self.per_task, Tensor) else torch.stack(self.per_task)

    @property
    def valid(self) -> Tensor | None:
        """[B], 1 for a row of data, 0 for padding; None: all rows are data."""
        return None if self.features is None else self.features.valid


class Bottom(nn.Module, ABC):
    """Features to a `Representation`.

    Subclasses set ``out_features`` (D) in the constructor, ``per_task = True`` where they make one representation a
    task, and ``shares_histories = True`` where they can do with a `Jagged` that all rows read (``Jagged.pooled`` can).
    """

    Config: ClassVar[type[PluginConfig]]
    per_task: ClassVar[bool] = False
    shares_histories: ClassVar[bool] = False
    out_features: int

    def __init__(self, spec: FeaturesSpec, tasks: tuple[str, ...], config: PluginConfig) -> None:
        """Build for the features of ``spec`` and the named tasks."""
        super().__init__()

    @abstractmethod
    def forward(self, features: Features) -> Representation:
        """Return the representation of a batch."""

    def for_inference(self) -> Bottom:
        """Return what is exported: a module of equal representations, itself unless there is a cheaper one."""
        return self
