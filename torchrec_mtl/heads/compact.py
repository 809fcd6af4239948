"""A task's masked network cut down to what it uses: dead inputs and units removed, equal scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Shapes: B batch, D inputs of the whole network, I input width, H output width of a layer.


class CompactNetwork(nn.Module):
    """Layers of linear and ReLU, then a linear map, over some of the inputs.

    Attributes:
        inputs: [D'] the columns of x [B, D] that it reads.
    """

    inputs: Tensor

    def __init__(self, inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        """Take over weights [H, I] and biases [H] of all layers, the last one linear."""
        super().__init__()
        self.register_buffer("inputs", inputs)
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, P] for x [B, D]."""
        x = x.index_select(1, self.inputs)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = nn.functional.linear(torch.relu(x) if number else x, weight, bias)
        return x

    @property
    def num_weights(self) -> int:
        """Weights of its matrices, zeros included: multiplications a row."""
        return sum(weight.numel() for weight in self.weights)


@torch.no_grad()
def compacted(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> CompactNetwork:
    """Return a smaller network with the outputs of ``... relu(W_0 x + b_0) ...``, the last layer linear.

    A unit that nothing reads is cut out. So is one that reads nothing: it is the constant ``relu(b)``, which moves into
    the biases of the layer above. This goes on until there is nothing left to cut; what cannot be equal any more is the
    order in which numbers are added.

    Args:
        weights: [H, I] a layer, 0 where a connection is masked.
        biases: [H] a layer.
    """
    matrices, offsets = [w.detach().clone() for w in weights], [b.detach().clone() for b in biases]
    inputs = torch.arange(matrices[0].shape[1], device=matrices[0].device)
    while True:
        before = sum(matrix.numel() for matrix in matrices)
        for number in range(len(matrices) - 1):
            _fold_constants(matrices, offsets, number)
        for number in range(len(matrices) - 2, -1, -1):
            _cut_units(matrices, offsets, number, _are_read(matrices[number + 1]))
        read = _are_read(matrices[0])
        matrices[0], inputs = matrices[0][:, read], inputs[read]
        if sum(matrix.numel() for matrix in matrices) == before:
            return CompactNetwork(inputs, matrices, offsets)


def _are_read(matrix: Tensor) -> Tensor:
    """Return which inputs [I] of a layer any of its units reads."""
    return (matrix != 0).any(0)


def _fold_constants(matrices: list[Tensor], offsets: list[Tensor], number: int) -> None:
    """Move the units of a layer that read nothing into the biases of the next."""
    reads = (matrices[number] != 0).any(1)
    constants = torch.where(reads, 0.0, torch.relu(offsets[number]))
    offsets[number + 1] += matrices[number + 1] @ constants
    _cut_units(matrices, offsets, number, reads)


def _cut_units(matrices: list[Tensor], offsets: list[Tensor], number: int, kept: Tensor) -> None:
    matrices[number], offsets[number] = matrices[number][kept], offsets[number][kept]
    matrices[number + 1] = matrices[number + 1][:, kept]
