"""EPNet, the lower half of PEPNet (Chang et al., KDD 2023): a domain decides how much each embedding counts."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt

from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.config.base import Name, PluginConfig, Targets, Widths
from torchrec_mtl.features import Features, FeaturesSpec
from torchrec_mtl.heads.gates import GateNU, named_problems


class EPNet(Bottom):
    """Concatenate as ``concat`` does, and scale every column by a gate that knows the domain.

    ``e * GateNU([E(domain), sg(e)])`` (Section "EPNet"): domain features are ids of the page, tab, or scene that a row
    comes from. No gradient passes from the gate to e; the domain's embeddings are trained by it. They are part of e
    too, and the dense columns are scaled as the embeddings are (both choices of ours).

    Args:
        spec: features to read.
        tasks: names of the tasks; every one reads the same.
        config: names of the domain features.
    """

    shares_histories = True

    class Config(PluginConfig):
        """Options of ``bottom: {type: epnet}``."""

        type: str = "epnet"
        domain: Annotated[tuple[Name, ...], Field(min_length=1)]
        """Sparse features that tell the domain of a row."""
        hidden: PositiveInt = 64
        """Width of the gate's hidden layer."""
        pooling: Literal["mean", "sum"] = "mean"
        """How a sequence becomes one vector."""

        def feature_problems(self, fields: Widths, sequences: Widths, targets: Targets) -> list[str]:
            """Each domain feature must be there, and be named once."""
            return named_problems("domain", self.domain, fields)

    def __init__(self, spec: FeaturesSpec, tasks: tuple[str, ...], config: Config) -> None:
        """See the class."""
        super().__init__(spec, tasks, config)
        self.domain = config.domain
        self.concat = Concat(spec, tasks, Concat.Config(pooling=config.pooling))
        self.out_features = self.concat.out_features
        width = sum(f.dim for f in spec.select(names=config.domain).fields)
        self.gate = GateNU(width + self.out_features, config.hidden, self.out_features)

    def forward(self, features: Features) -> Representation:
        """Return ``shared`` [B, D] with D the sum of all widths."""
        e = self.concat(features).shared
        known = torch.cat([*(features.fields[name] for name in self.domain), e.detach()], dim=1)
        return Representation(shared=e * self.gate(known), features=features)
