"""What most heads end in: a tower a task, and its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from torchrec_mtl.heads.layers import MLP, Norm, StackedLinear
from torchrec_mtl.widths import full

# Shapes: B batch, K tasks, I input width, P logits of a task.


class Towers(MLP):
    """K towers and their last linear maps, one product a layer.

    Args:
        in_features: I.
        sizes: widths of each tower's layers; none leaves the linear map.
        outputs: task -> P, the number of its logits.
        norm: none, batch (over all ranks), or layer.
    """

    def __init__(self, in_features: int, sizes: Sequence[int], outputs: Mapping[str, int], *, norm: Norm) -> None:
        """See the class."""
        super().__init__(in_features, sizes, norm=norm, num_towers=len(outputs))
        self.outputs = dict(outputs)
        self.last = StackedLinear(len(outputs), self.out_features, max(outputs.values()))

    def logits(self, x: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Return task -> [B] (one logit) or [B, P].

        Args:
            x: [K, B, I], or one [B, I] for all tasks.
            valid: [B], 1 for rows that count.
        """
        return split_logits(self.last(self(x, valid)), self.outputs)


def split_logits(stacked: Tensor, outputs: Mapping[str, int]) -> dict[str, Tensor]:
    """Cut [K, B, P] into task -> [B] (one logit) or [B, P_k], in fp32: heads multiply their probabilities."""
    stacked = full(stacked)
    return {
        name: stacked[k, :, 0] if width == 1 else stacked[k, :, :width]
        for k, (name, width) in enumerate(outputs.items())
    }
