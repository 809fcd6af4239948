"""The cross layer of NCS4CVR (Xiao et al., 2020): every field times every field, beside the fields themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from torchrec_mtl.bottoms.base import Bottom, Representation
from torchrec_mtl.config.base import PluginConfig, Targets, Widths
from torchrec_mtl.features import Features, FeaturesSpec

# Shapes: B batch, F fields and pooled sequences, d their width, D0 dense columns.

_MOST_NAMES = 8  # of one width in a message


class InnerProduct(Bottom):
    """Concatenate the inner products of all pairs of fields, the fields, and the dense columns.

    ``x = [flatten(E E^T), flatten(E), dense]`` with E [F, d] the fields of a row, then its pooled sequences, in the
    order of the config. ``E E^T`` is kept in full, as in the paper's code (arXiv 2008.09872): a pair of different
    fields stands there twice, and the diagonal holds the squared norms. 20 fields of 16 make 400 + 320 columns.

    Args:
        spec: features to read; all of one width.
        tasks: names of the tasks; every one reads the same.
        config: ``pooling`` of the sequences.

    Raises:
        ValueError: embeddings differ in width, or there are none.
    """

    shares_histories = True

    class Config(PluginConfig):
        """Options of ``bottom: {type: inner_product}``."""

        type: str = "inner_product"
        pooling: Literal["mean", "sum"] = "mean"
        """How a sequence becomes one vector."""

        def feature_problems(self, fields: Widths, sequences: Widths, targets: Targets) -> list[str]:
            """All features need one width."""
            return _width_problems({**fields, **sequences})

    def __init__(self, spec: FeaturesSpec, tasks: tuple[str, ...], config: Config) -> None:
        """See the class."""
        super().__init__(spec, tasks, config)
        widths = {f.name: f.dim for f in (*spec.fields, *spec.sequences)}
        if problems := _width_problems(widths):
            raise ValueError(f"bottom: {problems[0]}")
        self.pooling, self.num_fields, self.width = config.pooling, len(widths), next(iter(widths.values()))
        self.out_features = self.num_fields * (self.num_fields + self.width) + len(spec.dense)

    def forward(self, features: Features) -> Representation:
        """Return ``shared`` [B, F F + F d + D0]."""
        parts = [features.fields[f.name] for f in features.spec.fields]
        parts += [features.sequences[s.name].pooled(self.pooling) for s in features.spec.sequences]
        flat = torch.cat(parts, dim=1)
        e = flat.view(-1, self.num_fields, self.width)
        # A product a row. To multiply out and add up, which `mix` prefers for small products, takes some 10 times as
        # long for F = 20 and d = 16, and 1.2 times for F = 6 and d = 8 (B = 1024, with gradient, one thread).
        cross = torch.bmm(e, e.transpose(1, 2))
        return Representation(shared=torch.cat([cross.flatten(1), flat, features.dense], dim=1), features=features)


def _width_problems(widths: Mapping[str, int | None]) -> list[str]:
    """Return what keeps these features from being multiplied with each other.

    Args:
        widths: feature -> d, None where it is not known.
    """
    if not widths:
        return [
            "inner_product multiplies embeddings, and no feature has one; list features under features.sparse or "
            "features.sequences, or use bottom: {type: concat}"
        ]
    by_width: dict[int, list[str]] = {}
    for name, width in widths.items():
        if width is not None:
            by_width.setdefault(width, []).append(name)
    if len(by_width) < 2:
        return []
    found = "; ".join(f"{width}: {_some(names)}" for width, names in sorted(by_width.items()))
    return [
        f"inner_product multiplies all features with each other, so that their tables need one dim (found {found}); "
        "give these tables the same dim, or use bottom: {type: concat}"
    ]


def _some(names: Sequence[str]) -> str:
    left_out = len(names) - _MOST_NAMES
    return ", ".join(names) if left_out <= 0 else f"{', '.join(names[:_MOST_NAMES])}, and {left_out} more"
