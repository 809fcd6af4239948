"""The plain bottom: fields, pooled sequences, and dense columns side by side."""

from __future__ import annotations

from typing import Literal

import torch

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

    class Config(PluginConfig):
        """Options of ``bottom: {type: concat}``."""

        type: str = "concat"
        pooling: Literal["mean", "sum"] = "mean"
        """How a sequence becomes one vector."""

    def __init__(self, spec: FeaturesSpec, tasks: tuple[str, ...], config: Config) -> None:
        """See the class."""
        super().__init__(spec, tasks, config)
        self.pooling = config.pooling
        self.out_features = sum(f.dim for f in (*spec.fields, *spec.sequences)) + len(spec.dense)

    def forward(self, features: Features) -> Representation:
        """Return ``shared`` [B, D] with D the sum of all widths."""
        parts = [features.fields[f.name] for f in features.spec.fields]
        parts += [features.sequences[s.name].pooled(self.pooling) for s in features.spec.sequences]
        return Representation(shared=torch.cat([*parts, features.dense], dim=1), features=features)
