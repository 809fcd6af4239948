"""PPNet, the upper half of PEPNet (Chang et al., KDD 2023): prior knowledge of a row scales the units of its towers.

The lower half is the bottom ``epnet``; either works without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import Name, Targets, Widths
from torchrec_mtl.features import FeaturesSpec
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput
from torchrec_mtl.heads.gates import GateNU, named_problems
from torchrec_mtl.heads.layers import MLP, Norm, StackedLinear
from torchrec_mtl.heads.towers import split_logits

# Shapes: B batch, D representation, K tasks, Q width of the prior.


class PEPNet(Head):
    """A tower a task, whose hidden units are scaled by gates that read who watches what (PPNet).

    ``h_l = f(W_l h_(l-1)) * GateNU_l([E(prior), sg(e)])``, with gates of their own for every layer and task, e the
    representation, and the prior the ids of user, item, and author (Section "PPNet"). No gradient passes from a gate
    to e; the prior's embeddings are trained by the gates. The input of the first layer is for EPNet to scale.

    Under a bottom that makes one representation a task, e is that of the task, for its tower and for its gates.

    Args:
        in_features: D.
        outputs: task -> number of logits, in causal order; a sequence of names means one each.
        config: options, see `Config`.
        prior: prior feature -> width of its embedding; `create` finds them.

    Example:
        >>> import torch
        >>> PEPNet(8, ["click", "buy"], prior={"user_id": 4}).layers[0].out_features
        128
    """

    reads_features = True
    shares_histories = True

    class Config(HeadConfig):
        """Options of ``head: {type: pepnet}``."""

        type: str = "pepnet"
        prior: tuple[Name, ...] = ()
        """Sparse features that the gates read; by default all whose side is user or item."""
        tower: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 64)
        """Widths of each task's layers."""
        gate: PositiveInt = 64
        """Width of the gates' hidden layers."""
        norm: Norm = "none"

        def feature_problems(self, fields: Widths, sequences: Widths, targets: Targets) -> list[str]:
            """Each prior feature must be there, and be named once."""
            return named_problems("prior", self.prior, fields)

    def __init__(
        self,
        in_features: int,
        outputs: Mapping[str, int] | Sequence[str],
        config: Config | None = None,
        *,
        prior: Mapping[str, int],
    ) -> None:
        """See the class."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        self.prior, known = tuple(prior), sum(prior.values()) + in_features
        self.layers = nn.ModuleList(
            MLP(i, (o,), norm=config.norm, num_towers=self.num_tasks) for i, o in pairwise((in_features, *config.tower))
        )
        self.gates = nn.ModuleList(GateNU(known, config.gate, o, self.num_tasks) for o in config.tower)
        self.last = StackedLinear(self.num_tasks, config.tower[-1], max(self.outputs.values()))

    @classmethod
    def create(
        cls,
        in_features: int,
        outputs: Mapping[str, int],
        config: HeadConfig,
        *,
        features: FeaturesSpec,
        binary: Sequence[str],
    ) -> Self:
        """Return the head with the prior that the config names, or else all features of users and items.

        Raises:
            ValueError: none is named, and no sparse feature has one of these sides.
        """
        assert isinstance(config, cls.Config)
        named = config.prior or [f.name for f in features.fields if f.side != "context"]
        if not named:
            raise ValueError(
                "head.prior: pepnet needs ids to personalise by, none is named, and no sparse feature has side user or "
                f"item (found {', '.join(f.name for f in features.fields) or 'no sparse feature'}); name some, such as "
                "prior: [user_id, item_id], or give features.sparse their sides"
            )
        widths = {f.name: f.dim for f in features.fields}
        return cls(in_features, outputs, config, prior={name: widths[name] for name in named})

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        x, valid = representation.by_task(), representation.valid
        known = self._known(representation, x)
        for layer, gate in zip(self.layers, self.gates):
            x = layer(x, valid) * gate(known)
        return HeadOutput(logits=split_logits(self.last(x), self.outputs))

    def _known(self, representation: Representation, x: Tensor) -> Tensor:
        """Return what the gates read: [B, Q + D], or [K, B, Q + D] where each task has a representation of its own."""
        features = representation.features
        assert features is not None, "pepnet reads features"
        prior = torch.cat([features.fields[name] for name in self.prior], dim=1)
        return torch.cat([prior.expand(*x.shape[:-1], -1), x.detach()], dim=-1)
