"""A transformer whose layer norms depend on task and behaviour, run for all pairs of them at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from torchrec_mtl.bottoms.histories import Histories
from torchrec_mtl.heads.layers import stacked_linear

# Shapes: N events, K tasks, J sequences, d width, M versions of an event: 1 while the tasks have not parted, then K.


class Layer(nn.Module):
    """One layer after Vaswani et al. (2017), normalised after each half ("post-LN").

    Between its halves events are normalised without scale and shift, which the caller knows.

    Args:
        width: d.
        num_heads: heads of the attention.
        hidden: width of the feed-forward part.
    """

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        """See the class."""
        super().__init__()
        self.width, self.num_heads = width, num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, width)

    def attended(self, histories: Histories, x: Tensor) -> Tensor:
        """Return ``(x + MHA(x))`` normalised, [N + 1, M, d]."""
        return self.normalised(x + self.out(histories.attend(self.qkv(x), self.num_heads)))

    def fed_forward(self, histories: Histories, x: Tensor, a: Tensor) -> Tensor:
        """Return ``(a + FFN(a))`` normalised, [N + 1, K, d].

        Args:
            histories: whose events they are.
            x: [N + 1, M, d], before scale and shift.
            a: [N + 1, K, d], after.
        """
        return self.normalised(a + self.second(torch.relu(self.first(a))))

    def normalised(self, x: Tensor) -> Tensor:
        """Return x with mean 0 and variance 1 over d."""
        return layer_norm(x, (self.width,))


class FoldedLayer(Layer):
    """A layer for fixed scales and shifts, of which the first pair is part of the feed-forward part's first map.

    ``W (scale * x + shift) + b = (W diag(scale)) x + (W shift + b)``: one wide product a sequence, for all tasks.

    Args:
        layer: the trained one, whose weights it shares.
        scale: [J, K, d] of the first norm.
        shift: [J, K, d].
    """

    weights: Tensor
    biases: Tensor

    def __init__(self, layer: Layer, scale: Tensor, shift: Tensor) -> None:
        """See the class."""
        nn.Module.__init__(self)
        self.width, self.num_heads = layer.width, layer.num_heads
        self.qkv, self.out, self.first, self.second = layer.qkv, layer.out, layer.first, layer.second
        w, b = layer.first.weight.detach(), layer.first.bias.detach()
        self.register_buffer("weights", scale.detach().unsqueeze(3) * w.T)  # [J, K, d, hidden]
        self.register_buffer("biases", (shift.detach() @ w.T + b).unsqueeze(2))  # [J, K, 1, hidden]

    def fed_forward(self, histories: Histories, x: Tensor, a: Tensor) -> Tensor:
        """See `Layer`."""
        parts = zip(histories.by_sequence(x), self.weights, self.biases, strict=True)
        hidden = torch.cat([stacked_linear(_by_task(part), w, b).transpose(0, 1) for part, w, b in parts])
        return self.normalised(a + self.second(torch.relu_(hidden)))


class ConditionalTransformer(nn.Module):
    """Layers that all tasks and behaviours share; scales and shifts of their norms come from outside.

    The first attention knows no task, and is computed once; then events have a version a task. All pairs of a task and
    a behaviour are one batch throughout.

    Args:
        width: d.
        num_layers: number of layers; each has two norms.
        num_heads: heads of the attention; they divide d.
        hidden: width of the feed-forward part.
    """

    def __init__(self, width: int, num_layers: int, num_heads: int, hidden: int) -> None:
        """See the class."""
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, num_heads, hidden) for _ in range(num_layers))

    def forward(self, histories: Histories, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return the events after the last layer, normalised, without the last scale and shift.

        Args:
            histories: whose events they are.
            x: [N + 1, d].
            scale: [2 layers, J, K, d].
            shift: [2 layers, J, K, d].

        Returns:
            [N + 1, K, d].
        """
        x = x.unsqueeze(1)
        for i, layer in enumerate(self.layers):
            if i:
                x = affine(histories, x, scale[2 * i - 1], shift[2 * i - 1])
            assert isinstance(layer, Layer)
            x = layer.attended(histories, x)
            x = layer.fed_forward(histories, x, affine(histories, x, scale[2 * i], shift[2 * i]))
        return x

    def folded(self, scale: Tensor, shift: Tensor) -> ConditionalTransformer:
        """Return one for these scales and shifts alone; it shares the weights."""
        made = ConditionalTransformer(width=0, num_layers=0, num_heads=1, hidden=0)
        made.layers = nn.ModuleList(
            FoldedLayer(layer, scale[2 * i], shift[2 * i])
            for i, layer in enumerate(self.layers)
            if isinstance(layer, Layer)
        )
        return made


def affine(histories: Histories, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``scale * x + shift`` [N + 1, K, d] with those of each event's sequence.

    Args:
        histories: whose events they are.
        x: [N + 1, M, d].
        scale: [J, K, d].
        shift: [J, K, d].
    """
    # Sequence by sequence, as their events lie together: to look scales up event by event takes longer, and its
    # gradient adds up N rows into J.
    parts = zip(histories.by_sequence(x), scale, shift, strict=True)
    return torch.cat([torch.addcmul(b, part, w) for part, w, b in parts])


def _by_task(x: Tensor) -> Tensor:
    """Return [K, N, d] of [N, K, d]; [N, d] of one version for all tasks."""
    return x.squeeze(1) if x.shape[1] == 1 else x.transpose(0, 1)
