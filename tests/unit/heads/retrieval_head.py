"""A DMMP in float64 on features of every side, and what a side's towers read, written out."""

from dataclasses import replace

import torch
from torch import nn

from tests.unit.bottoms.sequences import randomised
from tests.unit.heads.reference import layers
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.features import Candidates, DenseSpec, Features, FeaturesSpec, FieldSpec, Jagged
from torchrec_mtl.heads.dmmp import DMMP

B, D = 8, 5
TWO, THREE = ("click", "buy"), ("click", "cart", "buy")
SMALL = {"expert": (12, 9), "tower": (8,), "student": (9,), "dim": 5, "gate_tower": (7,)}
SPEC = FeaturesSpec(
    fields=(
        FieldSpec("user", 3, "user", "user"),
        FieldSpec("page", 2, "context", "page"),
        FieldSpec("item", 4, "item", "item"),
    ),
    sequences=(
        FieldSpec("seen", 4, "user", "item", behavior="seen", target="item", max_length=3),
        FieldSpec("words", 2, "item", "word", behavior="words", max_length=3),
    ),
    dense=(DenseSpec("price", "item"), DenseSpec("age", "user"), DenseSpec("hour", "context")),
)


def made(tasks=TWO, *, spec=SPEC, seed=1, in_features=D, **options):
    """All its parameters are normal: those that start at 0 or 1 would hide where they stand."""
    head = DMMP(in_features, tasks, DMMP.Config(**SMALL | options), features=spec)
    return randomised(head, seed=seed)


def features_of(seed=0, rows=B):
    """Normal numbers, all of them leaves; some sequences are empty."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    lengths = {s.name: torch.randint(0, 4, (rows,), generator=g) for s in SPEC.sequences}
    return Features(
        fields={f.name: normal(rows, f.dim) for f in SPEC.fields},
        sequences={s.name: Jagged(normal(int(lengths[s.name].sum()), s.dim), lengths[s.name]) for s in SPEC.sequences},
        dense=normal(rows, len(SPEC.dense)),
        spec=SPEC,
        valid=torch.ones(rows, dtype=torch.float64),
        candidates=Candidates(torch.randint(0, 5, (rows,), generator=g), normal(rows).detach()),
    )


def inputs(seed=0, *, views=0, features=None):
    """Of B rows; with ``views`` as many representations, one a task."""
    g = torch.Generator().manual_seed(seed + 100)
    shared, *own = (torch.randn(B, D, generator=g, dtype=torch.float64).requires_grad_() for _ in range(1 + views))
    return Representation(shared, tuple(own) or None, features or features_of(seed))


def under_a_bottom(features):
    """What the plain bottom makes of all features."""
    return Concat(SPEC, TWO, Concat.Config())(features)


def sides_from(features, other, *sides):
    """The features, those of some sides taken from others."""
    dense = [(other if d.side in sides else features).dense[:, i] for i, d in enumerate(SPEC.dense)]
    return replace(
        features,
        fields={f.name: (other if f.side in sides else features).fields[f.name] for f in SPEC.fields},
        sequences={s.name: (other if s.side in sides else features).sequences[s.name] for s in SPEC.sequences},
        dense=torch.stack(dense, 1),
    )


def columns(features, side):
    """What a tower of the side reads, [B, I]: fields, means of sequences, dense columns."""
    found = [features.fields[f.name] for f in SPEC.fields if f.side == side]
    for s in SPEC.sequences:
        if s.side == side:
            rows = torch.split(features.sequences[s.name].values, features.sequences[s.name].lengths.tolist())
            found.append(torch.stack([row.mean(0) if len(row) else row.new_zeros(s.dim) for row in rows]))
    return torch.cat([*found, *(features.dense[:, [i]] for i, d in enumerate(SPEC.dense) if d.side == side)], 1)


def vector(side, n, x):
    """[B, I] through the n-th tower of a side."""
    return layers(side.mlp.linears, n, x) @ side.last.weight[n] + side.last.bias[n]


def labels_and_weights(tasks=2, rows=B):
    """Labels of a funnel, and weights of which no two are alike, with rows that some tasks or none have."""
    g = torch.Generator().manual_seed(3)
    labels = (torch.rand(rows, tasks, generator=g) < 0.7).double().cumprod(1)
    weights = torch.rand(rows, tasks, generator=g, dtype=torch.float64) + 0.5
    weights[0], weights[1, 0], weights[2, -1] = 0, 0, 0
    return torch.where(weights > 0, labels, 0.0), weights


def gradient_of(loss, module: nn.Module):
    """Name -> the largest entry of the gradient, 0 where the loss does not reach."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return {name: float(g.abs().max()) for name, g in zip(names, found, strict=True)}
