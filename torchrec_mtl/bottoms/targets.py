"""Checks of bottoms that look at sequences from the item that is scored."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec_mtl.config.base import PluginConfig, Targets, Widths
from torchrec_mtl.features import FeaturesSpec, FieldSpec


def target_problems(option: str, fields: Widths, sequences: Widths, targets: Targets) -> list[str]:
    """Return what keeps a bottom from attention to targets: none is named, or one is of another width.

    Args:
        option: key of the config that asks for attention.
        fields: sparse features -> d.
        sequences: sequences -> d.
        targets: sequence -> its target.
    """
    if not sequences:
        return []
    if not targets:
        return [
            f"{option}: attention needs the item that is scored, and no sequence names one; set "
            f"features.sequences.0.target to the sparse feature of the item"
        ]
    return [
        f"{option}: sequence '{name}' has dim {sequences[name]} and its target '{target}' {fields[target]}, which "
        "cannot be compared; let both read the same table"
        for name, target in targets.items()
        if None not in (sequences.get(name), fields.get(target)) and sequences[name] != fields[target]
    ]


def check_features(spec: FeaturesSpec, config: PluginConfig) -> None:
    """Refuse features that the config's own checks would have refused; for bottoms built in code.

    Raises:
        ValueError: the first problem.
    """
    fields, sequences = ({f.name: f.dim for f in part} for part in (spec.fields, spec.sequences))
    targets = {s.name: s.target for s in spec.sequences if s.target is not None}
    if problems := config.feature_problems(fields, sequences, targets):
        raise ValueError(f"bottom: {problems[0]}")


def width_of(sequences: Sequence[FieldSpec]) -> int:
    """Return the width that these sequences have in common; those of a YAML always have one.

    Raises:
        ValueError: they differ.
    """
    widths = {s.name: s.dim for s in sequences}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(f"bottom: sequences that are read together need one dim (found {found}); give them the same")
    return sequences[0].dim
