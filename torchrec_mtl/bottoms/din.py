"""Deep interest network (Zhou et al., KDD 2018): what of a history matters depends on the item that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.bottoms.concat import side_by_side
from torchrec_mtl.bottoms.targets import check_features, target_problems, width_of
from torchrec_mtl.config.base import PluginConfig, Targets, Widths
from torchrec_mtl.features import Features, FeaturesSpec, FieldSpec, Jagged

# Shapes: B batch, J sequences with a target, H = J B histories, N events of all of them, d width, h hidden width.


class DIN(Bottom):
    """Concatenate as ``concat`` does, but sum each sequence by weights of an activation unit that sees the target.

    ``v = sum_i a(e_i, q) e_i`` with ``a`` an MLP of the event e_i, the target's embedding q, their difference, and
    their product; no softmax, so that the intensity of an interest is kept (Section 4.3, Eq. 3). One unit serves all
    sequences, and knows which one it looks at. A sequence that names no target is averaged.

    Args:
        spec: features to read; a sequence and its target of one width.
        tasks: names of the tasks; every one reads the same.
        config: widths of the unit.

    Raises:
        ValueError: no sequence has a target, or one of another width.
    """

    class Config(PluginConfig):
        """Options of ``bottom: {type: din}``."""

        type: str = "din"
        unit: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 16)
        """Widths of the activation unit's hidden layers."""

        def feature_problems(self, fields: Widths, sequences: Widths, targets: Targets) -> list[str]:
            """Some sequence needs a target, each of them one of its own dim."""
            if not sequences:
                return ["din reads behaviour sequences; list them under features.sequences, or use concat"]
            return target_problems("unit", fields, sequences, targets)

    def __init__(self, spec: FeaturesSpec, tasks: tuple[str, ...], config: Config) -> None:
        """See the class."""
        super().__init__(spec, tasks, config)
        check_features(spec, config)
        aimed = [s for s in spec.sequences if s.target is not None]
        self.unit = ActivationUnit(aimed, config.unit)
        self.out_features = sum(spec.widths)

    def forward(self, features: Features) -> Representation:
        """Return ``shared`` [B, D] with D the sum of all widths."""
        summed = self.unit(features)
        sequences = [
            features.sequences[s.name].pooled("mean") if s.target is None else summed[s.name]
            for s in features.spec.sequences
        ]
        return Representation(shared=side_by_side(features, sequences), features=features)


class ActivationUnit(nn.Module):
    """Weights of events, ``a(e, q)``, and the sums that they make; all sequences in one pass.

    A first layer on ``[e, q, e - q, e * q]`` is one on ``[e, e * q]`` and one on q, which is computed for each history
    rather than for each event.

    Args:
        sequences: J of them, each with a target, all of one width.
        hidden: widths of the hidden layers.
    """

    def __init__(self, sequences: Sequence[FieldSpec], hidden: Sequence[int]) -> None:
        """See the class."""
        super().__init__()
        self.names = tuple(s.name for s in sequences)
        self.targets = tuple(s.target or "" for s in sequences)
        width = width_of(sequences)
        self.of_event = nn.Linear(2 * width, hidden[0], bias=False)
        self.of_target = nn.Linear(width, hidden[0], bias=False)
        self.of_sequence = nn.Parameter(torch.zeros(len(sequences), 1, hidden[0]))
        layers: list[nn.Module] = [nn.PReLU(hidden[0])]
        for i, o in pairwise(hidden):
            layers += [nn.Linear(i, o), nn.PReLU(o)]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return sequence -> [B, d], zeros for an empty history."""
        sequences = [features.sequences[name] for name in self.names]
        events, lengths = (torch.cat(parts) for parts in zip(*((s.values, s.lengths) for s in sequences), strict=True))
        rows = Jagged(events, lengths).rows()
        targets = torch.stack([features.fields[name] for name in self.targets])  # [J, B, d]
        known = (self.of_target(targets) + self.of_sequence).flatten(0, 1)  # [H, h]
        products = events * targets.flatten(0, 1).index_select(0, rows)
        hidden = self.of_event(torch.cat([events, products], dim=1)) + known.index_select(0, rows)
        summed = Jagged(events * self.rest(hidden), lengths).pooled("sum")
        return dict(zip(self.names, torch.chunk(summed, len(self.names)), strict=True))
