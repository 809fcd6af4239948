"""Features with behaviour sequences, small and awkward: what bottoms that read histories are tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from torchrec_mtl.features import GAP_BUCKETS, DenseSpec, Features, FeaturesSpec, FieldSpec, Jagged

TASKS = ("click", "like", "buy")
WIDTH = 4
# By row: every width that histories are padded to, empty ones first and last, one row and one sequence without any.
LENGTHS = {"clicked": [0, 9, 0, 1, 5, 2], "bought": [3, 1, 0, 8, 9, 0], "seen": [2, 4, 0, 1, 0, 3]}
NUM_ROWS = 6
EMPTY = {name: [0] * NUM_ROWS for name in LENGTHS}
ONE_EMPTY = LENGTHS | {"clicked": [0] * NUM_ROWS}
ONE_ROW = {"clicked": [2], "bought": [0], "seen": [1]}
SAME = {name: [9] * NUM_ROWS for name in LENGTHS}
BATCHES = {"mixed": LENGTHS, "empty": EMPTY, "one empty": ONE_EMPTY, "one row": ONE_ROW, "full": SAME}


def sequence(
    name: str,
    *,
    behavior: str | None = None,
    target: str | None = "item_id",
    width: int = WIDTH,
    max_length: int = 9,
    gaps: bool = False,
) -> FieldSpec:
    """A sequence, of a type of its own unless ``behavior`` says otherwise."""
    kind = behavior or name
    return FieldSpec(name, width, "user", "item", behavior=kind, target=target, max_length=max_length, gaps=gaps)


def spec_of(*sequences: FieldSpec, num_dense: int = 2) -> FeaturesSpec:
    """A user of width 3, an item of width 4, the sequences (two with a target, one without), and dense columns."""
    found = sequences or (sequence("clicked"), sequence("bought"), sequence("seen", target=None))
    fields = (FieldSpec("user_id", 3, "user", "user"), FieldSpec("item_id", WIDTH, "item", "item"))
    return FeaturesSpec(fields, found, tuple(DenseSpec(f"x{i}", "user") for i in range(num_dense)))


def features_of(
    spec: FeaturesSpec,
    lengths: Mapping[str, Sequence[int]] = LENGTHS,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Features:
    """Normal numbers, all of them leaves."""
    g = torch.Generator().manual_seed(seed)
    num_rows = len(lengths[spec.sequences[0].name])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    def jagged(s: FieldSpec) -> Jagged:
        n = sum(lengths[s.name])
        gaps = torch.randint(0, GAP_BUCKETS, (n,), generator=g) if s.gaps else None
        return Jagged(normal(n, s.dim), torch.tensor(lengths[s.name]), gaps)

    return Features(
        fields={f.name: normal(num_rows, f.dim) for f in reversed(spec.fields)},  # the spec gives the order
        sequences={s.name: jagged(s) for s in reversed(spec.sequences)},
        dense=normal(num_rows, len(spec.dense)),
        spec=spec,
    )


def leaves(features: Features) -> list[Tensor]:
    """Everything that a bottom reads."""
    return [*features.fields.values(), *(s.values for s in features.sequences.values()), features.dense]


def randomised(module: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 1) -> nn.Module:
    """The same module with normal weights: what starts at zero or one would hide where it stands."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5, generator=g)
    return module.to(dtype)


def rows_of(features: Features, rows: Sequence[int]) -> Features:
    """Some rows, as a batch of their own."""
    index = torch.tensor(rows)

    def cut(s: Jagged) -> Jagged:
        def some(x: Tensor) -> Tensor:
            pieces = torch.split(x, s.lengths.tolist())
            return torch.cat([pieces[b] for b in rows])

        return Jagged(some(s.values), s.lengths[index], None if s.gaps is None else some(s.gaps))

    return replace(
        features,
        fields={name: x[index] for name, x in features.fields.items()},
        sequences={name: cut(s) for name, s in features.sequences.items()},
        dense=features.dense[index],
    )


def padded(features: Features, count: int) -> Features:
    """The batch and rows of padding behind it: fields and dense columns say something, histories are empty."""

    def more(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full((count, x.shape[1]), 3.0, dtype=x.dtype)])

    return replace(
        features,
        fields={name: more(x) for name, x in features.fields.items()},
        sequences={
            name: replace(s, lengths=torch.cat([s.lengths, s.lengths.new_zeros(count)]))
            for name, s in features.sequences.items()
        },
        dense=more(features.dense),
    )
