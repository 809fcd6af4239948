"""What a user wants, by task and behaviour: a conditional transformer over histories, and attention to the item."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from torchrec_mtl.bottoms.conditions import FixedNorms, HyperNetwork, PlainNorms
from torchrec_mtl.bottoms.histories import Histories, alike
from torchrec_mtl.bottoms.targets import width_of
from torchrec_mtl.bottoms.transformer import ConditionalTransformer
from torchrec_mtl.features import GAP_BUCKETS, Features, FieldSpec, Jagged

# Shapes: B batch, K tasks, J sequences, H = J B histories, N events, d width.


class Interest(nn.Module):
    """Interests ``s_{k,j}`` [K, B, J d] of all pairs of a task and a sequence (DTRN, TIM).

    Events are the items' embeddings plus those of position (counted from the last) and, where the sequence has times,
    of the bucket of time gone by. They pass the transformer with the norms of (k, j) and are summed by
    ``softmax(<W q, y> / sqrt(d))`` with q the target's embedding, normalised as the events are. A sequence without a
    target, or all with ``to_target`` off, are averaged. An empty history gives zeros.

    Args:
        sequences: J of them, of one width.
        norms: scales and shifts of 2 ``layers`` norms.
        layers: of the transformer.
        heads: of its attention.
        hidden: width of its feed-forward part.
        positions: add embeddings of positions.
        to_target: attention to the target, where a sequence has one.
    """

    def __init__(
        self,
        sequences: Sequence[FieldSpec],
        norms: HyperNetwork | PlainNorms | FixedNorms,
        *,
        layers: int,
        heads: int,
        hidden: int,
        positions: bool,
        to_target: bool,
    ) -> None:
        """See the class."""
        super().__init__()
        width = width_of(sequences)
        self.names = tuple(s.name for s in sequences)
        self.targets = tuple(s.target if to_target else None for s in sequences)
        self.max_length = max(s.max_length for s in sequences)
        self.norms: nn.Module = norms
        self.transformer = ConditionalTransformer(width, layers, heads, hidden)
        self.positions = nn.Parameter(0.01 * torch.randn(self.max_length, width)) if positions else None
        self.gaps = nn.Parameter(0.01 * torch.randn(GAP_BUCKETS + 1, width)) if any(s.gaps for s in sequences) else None
        self.query = nn.Linear(width, width, bias=False) if any(self.targets) else None

    def forward(self, features: Features) -> Tensor:
        """Return [K, B, J d]; [1, B, J d] where the norms know no task."""
        sequences = alike([features.sequences[name] for name in self.names])
        histories = Histories(sequences, self.max_length)
        scale, shift = self.norms()
        events = self.transformer(histories, self._embedded(sequences, histories), scale, shift)
        # The last norm's scale and shift after the sum, not on every event: sum_l p_l (scale y_l + shift) is
        # scale sum_l p_l y_l + shift, and of <q, scale y_l + shift> softmax sees <scale q, y_l> alone.
        count = len(sequences)
        queries = torch.unflatten(self._queries(features), 0, (count, -1)).unsqueeze(2) * scale[-1].unsqueeze(1)
        pooled = torch.unflatten(histories.pool(events, queries.flatten(0, 1)), 0, (count, -1))  # [J, B, K, d]
        interests = torch.addcmul(shift[-1].unsqueeze(1), pooled, scale[-1].unsqueeze(1))
        interests = interests * histories.present().view(count, -1, 1, 1)
        return interests.permute(2, 1, 0, 3).flatten(2)

    def folded(self) -> Interest:
        """Return a copy for inference, whose norms are constants and part of the maps around them where that helps."""
        made = copy.deepcopy(self)
        with torch.no_grad():
            scale, shift = made.norms()
        made.norms, made.transformer = FixedNorms(scale, shift), made.transformer.folded(scale, shift)
        return made

    def _embedded(self, sequences: Sequence[Jagged], histories: Histories) -> Tensor:
        """Return [N + 1, d]."""
        x = histories.values
        if self.positions is not None:
            x = x + nn.functional.embedding(histories.ages(), self.positions)
        if self.gaps is not None:
            x = x + nn.functional.embedding(_gaps(sequences), self.gaps)
        return x

    def _queries(self, features: Features) -> Tensor:
        """Return [H, d], zeros for a sequence without a target: its events then count alike."""
        values = features.sequences[self.names[0]].values
        nothing = values.new_zeros(features.dense.shape[0], values.shape[1])
        targets = torch.cat([nothing if t is None else features.fields[t] for t in self.targets])
        if self.query is None:
            return targets
        queries: Tensor = self.query(layer_norm(targets, targets.shape[1:]))
        return queries


def _gaps(sequences: Sequence[Jagged]) -> Tensor:
    """Return [N + 1] buckets; one past the last for events without a time."""
    found = []
    for s in sequences:
        unknown = torch.full((s.values.shape[0],), GAP_BUCKETS, device=s.values.device)
        found.append(unknown if s.gaps is None else s.gaps)
    return torch.cat([*found, found[0].new_full((1,), GAP_BUCKETS)])
