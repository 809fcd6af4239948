"""What DTRN's interest module is measured against: a loop over all pairs, and a plain transformer of torch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from torchrec_mtl.bottoms.interest import Interest
from torchrec_mtl.bottoms.transformer import Layer
from torchrec_mtl.features import Features, Jagged

# Shapes: B batch, L longest history of the batch, K tasks, J sequences, d width.


class Loop(nn.Module):
    """The interests of ``interest``, with its weights, a pass over the padded histories for each task and behaviour."""

    def __init__(self, interest: Interest) -> None:
        """Take the weights of one with positions, without times, and with one layer."""
        super().__init__()
        self.interest = interest

    def forward(self, features: Features) -> Tensor:
        """Return [K, B, J d]."""
        scale, shift = self.interest.norms()
        pairs = [
            [self._pair(features, j, scale[:, j, k], shift[:, j, k]) for j in range(scale.shape[1])]
            for k in range(scale.shape[2])
        ]
        return torch.stack([torch.cat(row, dim=1) for row in pairs])

    def _pair(self, features: Features, j: int, scale: Tensor, shift: Tensor) -> Tensor:
        """Return [B, d], with scales and shifts [2, d]."""
        module, sequence = self.interest, features.sequences[self.interest.names[j]]
        x, mask = padded(sequence)
        ages = (sequence.lengths[:, None] - 1 - torch.arange(x.shape[1])).clamp(min=0)
        assert module.positions is not None, "as the constructor says"
        assert module.query is not None, "as the constructor says"
        x = x + nn.functional.embedding(ages, module.positions)
        layer = only_layer(module)
        q, k, v = torch.unflatten(layer.qkv(x), 2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        width = x.shape[2:]
        a = layer_norm(x + layer.out(mixed.transpose(1, 2).flatten(2)), width, scale[0], shift[0])
        y = layer_norm(a + layer.second(torch.relu(layer.first(a))), width, scale[1], shift[1])
        target = features.fields[module.targets[j] or ""]
        return attend(module.query(layer_norm(target, width)), y, mask, sequence)


class PlainTransformer(nn.Module):
    """One ``nn.TransformerEncoderLayer`` for all sequences, each padded, then attention to the target.

    Args:
        like: names, sizes, and targets are those of this one.
    """

    def __init__(self, like: Interest) -> None:
        """See the class."""
        super().__init__()
        layer = only_layer(like)
        hidden = layer.first.out_features
        self.names, self.targets = like.names, like.targets
        self.encoder = nn.TransformerEncoderLayer(layer.width, layer.num_heads, hidden, dropout=0.0, batch_first=True)
        self.positions = nn.Parameter(0.01 * torch.randn(like.max_length, layer.width))
        self.query = nn.Linear(layer.width, layer.width, bias=False)

    def forward(self, features: Features) -> Tensor:
        """Return [1, B, J d]."""
        parts = []
        for name, target in zip(self.names, self.targets, strict=True):
            sequence = features.sequences[name]
            x, mask = padded(sequence)
            ages = (sequence.lengths[:, None] - 1 - torch.arange(x.shape[1])).clamp(min=0)
            x = x + nn.functional.embedding(ages, self.positions)
            y = self.encoder(x, src_key_padding_mask=~mask)
            parts.append(attend(self.query(features.fields[target or ""]), y, mask, sequence))
        return torch.cat(parts, dim=1).unsqueeze(0)


def only_layer(interest: Interest) -> Layer:
    """Return the layer of a transformer of one."""
    (layer,) = interest.transformer.layers
    assert isinstance(layer, Layer), "what the transformer is made of"
    return layer


def padded(sequence: Jagged) -> tuple[Tensor, Tensor]:
    """Return [B, L, d] and which places to look at [B, L]: all of a history's, the first one of an empty history."""
    lengths = sequence.lengths
    places = torch.arange(max(int(lengths.max()), 1))
    filled = places < lengths[:, None]
    x = sequence.values.new_zeros(*filled.shape, sequence.values.shape[1])
    return x.masked_scatter(filled[:, :, None], sequence.values), filled | (places == 0)


def attend(queries: Tensor, y: Tensor, mask: Tensor, sequence: Jagged) -> Tensor:
    """Return softmax(q y / sqrt(d)) y of [B, d] and [B, L, d]; zeros for an empty history."""
    pooled = scaled_dot_product_attention(queries.unsqueeze(1), y, y, attn_mask=mask.unsqueeze(1)).squeeze(1)
    return pooled * (sequence.lengths > 0).unsqueeze(1)
