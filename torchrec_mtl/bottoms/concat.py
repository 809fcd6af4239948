"""The plain bottom: fields, pooled sequences, and dense columns side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.features import Features, FeaturesSpec


class Concat(Bottom):
    """Concatenate all fields, the pooled sequences, and the dense columns.

    Args:
        spec: features to read.
        tasks: names of the tasks; every one reads the same.
        config: ``pooling`` of the sequences.
    """

    shares_histories = True

    class Config(PluginConfig):
        """Options of ``bottom: {type: concat}``."""

        type: str = "concat"
        pooling: Literal["mean", "sum"] = "mean"
        """How a sequence becomes one vector."""

    def __init__(self, spec: FeaturesSpec, tasks: tuple[str, ...], config: Config) -> None:
        """See the class."""
        super().__init__(spec, tasks, config)
        self.pooling = config.pooling
        self.out_features = sum(spec.widths)

    def forward(self, features: Features) -> Representation:
        """Return ``shared`` [B, D] with D the sum of all widths."""
        pooled = [features.sequences[s.name].pooled(self.pooling) for s in features.spec.sequences]
        return Representation(shared=side_by_side(features, pooled), features=features)


def side_by_side(features: Features, sequences: Sequence[Tensor]) -> Tensor:
    """Return the columns [B, D] of all features, in the order of ``FeaturesSpec.widths``.

    Args:
        features: fields and dense columns.
        sequences: what became of the sequences, in their order: one [B, d] each, or several in one tensor.
    """
    fields = (features.fields[f.name] for f in features.spec.fields)
    return torch.cat([*fields, *sequences, features.dense], dim=1)
