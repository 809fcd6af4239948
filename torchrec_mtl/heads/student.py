"""The retrieval student: towers that read one side each, a gate of the user, and their score as one inner product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_mtl.bottoms.concat import side_by_side
from torchrec_mtl.config.features import Side
from torchrec_mtl.features import Features, FeaturesSpec
from torchrec_mtl.heads.layers import MLP, Norm, StackedLinear
from torchrec_mtl.widths import full

# Shapes: B users or items, K tasks, d width of a tower's output, D of the vectors of an index.

Layout = Literal["item_per_task", "user_per_task", "two_towers"]
Gate = Literal["user", "global", "even"]
SIDES: tuple[Side, Side] = ("user", "item")


class OneSide(nn.Module):
    """N towers at once over the columns of one side's features.

    Args:
        spec: all features.
        side: user or item.
        sizes: widths of the hidden layers.
        dim: d.
        num_towers: N.
        norm: of the hidden layers.

    Raises:
        ValueError: no feature has this side.
    """

    def __init__(
        self, spec: FeaturesSpec, side: Side, sizes: Sequence[int], dim: int, num_towers: int, *, norm: Norm = "none"
    ) -> None:
        """See the class."""
        super().__init__()
        mine = spec.select(side=side)
        if not mine.widths:
            sides = [(f.name, f.side) for f in (*spec.fields, *spec.sequences)] + [(d.name, d.side) for d in spec.dense]
            named = ", ".join(f"{name} ({whose})" for name, whose in sides) or "none"
            raise ValueError(
                f"the {side} tower has nothing to read: no feature has side: {side} (found {named}); give features "
                "their sides, such as {name: movie, table: movie, side: item}"
            )
        self.mlp = MLP(sum(mine.widths), sizes, norm=norm, num_towers=num_towers)
        self.last = StackedLinear(num_towers, self.mlp.out_features, dim)

    def forward(self, columns: Tensor, valid: Tensor | None) -> Tensor:
        """Return [N, B, d], of what `columns_of` gives for this side; in fp32, as an index holds them."""
        vectors: Tensor = self.last(self.mlp(columns, valid))
        return full(vectors)


def columns_of(features: Features, side: Side) -> Tensor:
    """Return a side's columns [B, I]: fields, means of sequences, dense columns."""
    mine = features.select(side=side)
    return side_by_side(mine, [mine.sequences[s.name].pooled("mean") for s in mine.spec.sequences])


@dataclass(frozen=True)
class Encoded:
    """What the towers made of a batch.

    Attributes:
        users: [K or 1, B, d], divided by the temperature.
        items: [K or 1, B, d].
        biases: [K, B], of items.
        gate: [B, K], sums to 1.
    """

    users: Tensor
    items: Tensor
    biases: Tensor
    gate: Tensor

    def scores(self) -> Tensor:
        """Return s_k of each row's own user and item, [K, B]."""
        return (self.users * self.items).sum(-1) + self.biases

    def fused(self, scores: Tensor) -> Tensor:
        """Return ``s = sum_k g_k s_k``, [B], of `scores`: logits are mixed, so that s stays an inner product."""
        return (self.gate.T * scores).sum(0)

    def item_vectors(self) -> Tensor:
        """Return [B, D], what an index holds: the items' vectors, then one bias a task."""
        return torch.cat([self.items.transpose(0, 1).flatten(1), self.biases.T], dim=1)

    def query_vectors(self) -> Tensor:
        """Return [B, K, D]: ``<query k, item> = g_k s_k``, so that their sum over k, or a weighted one, is a query.

        D is ``K d + K`` where items have a tower a task, else ``d + K``.
        """
        k = len(self.biases)
        users = self.users.expand(k, -1, -1).transpose(0, 1)  # [B, K, d]
        own = torch.eye(k, dtype=users.dtype, device=users.device)
        # [B, K, K or 1, d]: the user's vector where the items' ones of task k are.
        places = own.unsqueeze(-1) * users.unsqueeze(2) if len(self.items) > 1 else users.unsqueeze(2)
        blocks = torch.cat([places.flatten(2), own.expand(users.shape[0], -1, -1)], dim=2)
        return self.gate.unsqueeze(-1) * blocks


class Student(nn.Module):
    """Three towers or more, and the user-preference gate (DMMP; Yi et al., 2024; forms: papers' reconstruction, ours).

    ``s_k = <u_k, v_k> / tau + b_k(item) + c_k``; ``g = softmax(MLP(user))``; the retrieval score is ``sum_k g_k s_k``.
    No tower sees the other's side, nor features of the context.

    Args:
        spec: all features.
        num_tasks: K.
        layout: item_per_task: one user tower, an item tower a task; user_per_task: the other way round (a smaller
            index); two_towers: one each, so that all tasks rank alike, and differ by a scale and a bias.
        sizes: widths of the towers' hidden layers.
        dim: d.
        gate: user: of the user's features; global: learned, one for all; even: 1 / K.
        gate_sizes: widths of the gate's hidden layers.
        normalize: vectors of length 1.
        temperature: tau.
        norm: of the towers' hidden layers.
    """

    def __init__(
        self,
        spec: FeaturesSpec,
        num_tasks: int,
        *,
        layout: Layout,
        sizes: Sequence[int],
        dim: int,
        gate: Gate,
        gate_sizes: Sequence[int],
        normalize: bool,
        temperature: float,
        norm: Norm = "none",
    ) -> None:
        """See the class."""
        super().__init__()
        self.num_tasks, self.normalize, self.temperature = num_tasks, normalize, temperature
        users, items = (num_tasks if layout == f"{side}_per_task" else 1 for side in SIDES)
        self.user = OneSide(spec, "user", sizes, dim, users, norm=norm)
        self.item = OneSide(spec, "item", sizes, dim, items, norm=norm)
        self.item_bias = OneSide(spec, "item", (), num_tasks, 1) if layout != "two_towers" else None
        self.bias = nn.Parameter(torch.zeros(num_tasks, 1))
        self.log_scale = nn.Parameter(torch.zeros(num_tasks, 1, 1)) if layout == "two_towers" else None
        self.gate = OneSide(spec, "user", gate_sizes, num_tasks, 1) if gate == "user" else None
        self.preference = nn.Parameter(torch.zeros(num_tasks)) if gate == "global" else None

    def forward(self, features: Features) -> Encoded:
        """Return the vectors of both sides, row by row."""
        of_users, of_items = (columns_of(features, side) for side in SIDES)
        users, items = self.user(of_users, features.valid), self.item(of_items, features.valid)
        if self.normalize:
            users, items = F.normalize(users, dim=-1), F.normalize(items, dim=-1)
        users = users / self.temperature
        if self.log_scale is not None:
            users = users * self.log_scale.exp()
        biases = self.bias.expand(-1, items.shape[1])
        if self.item_bias is not None:
            biases = biases + self.item_bias(of_items, features.valid)[0].T
        gate = self._even(biases) if self.gate is None else torch.softmax(self.gate(of_users, features.valid)[0], dim=1)
        return Encoded(users, items, biases, gate)

    def _even(self, biases: Tensor) -> Tensor:
        """Return the gate that is the same for all users, [B, K]."""
        even = biases.new_zeros(self.num_tasks) if self.preference is None else self.preference
        return torch.softmax(even, dim=0).expand(biases.shape[1], -1)
