"""Cross-stitch networks (Misra, Shrivastava, Gupta, Hebert, CVPR 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_mtl import MLP, Head, HeadConfig, HeadOutput, Representation, TableFinding, Towers

# Shapes: B rows, D representation, K tasks, H width of a layer.


class CrossStitch(Head):
    """A network a task; after each layer, every task reads a learned mixture of all tasks' activations.

    ``x~_k = sum_j alpha_kj x_j`` (Eq. 1, for K tasks), with one alpha [K, K] a layer; the paper also has one a channel.
    Each alpha starts with ``own`` on its diagonal and shares the rest evenly. In the paper alphas learn faster than the
    other weights; here all have the rate of the dense optimizer.

    Example:
        >>> head = CrossStitch(8, ["click", "buy"], CrossStitch.Config(layers=(16,)))
        >>> {task: tuple(z.shape) for task, z in head(Representation(torch.zeros(3, 8))).logits.items()}
        {'click': (3,), 'buy': (3,)}
    """

    class Config(HeadConfig):
        """Options of ``head: {type: cross_stitch}``."""

        type: str = "cross_stitch"
        layers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 64)
        """Widths of the layers that are stitched."""
        tower: tuple[PositiveInt, ...] = ()
        """Widths of each task's further layers."""
        own: Annotated[float, Field(ge=0, le=1)] = 0.9
        """What a task first takes of its own activations."""
        norm: Literal["none", "batch", "layer"] = "none"

    def __init__(
        self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: Config | None = None
    ) -> None:
        """See `Head`."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        k, widths = self.num_tasks, [in_features, *config.layers]
        self.layers = nn.ModuleList(
            MLP(i, [o], norm=config.norm, num_towers=k) for i, o in zip(widths, config.layers, strict=False)
        )
        others = (1 - config.own) / max(k - 1, 1)
        start = torch.full((k, k), others).fill_diagonal_(config.own if k > 1 else 1.0)
        self.alphas = nn.Parameter(start.repeat(len(config.layers), 1, 1))
        self.towers = Towers(widths[-1], config.tower, self.outputs, norm=config.norm)

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        x, valid = representation.by_task(), representation.valid
        for layer, alpha in zip(self.layers, self.alphas, strict=True):
            x = torch.einsum("kj,jbh->kbh", alpha, layer(x, valid))
        return HeadOutput(logits=self.towers.logits(x, valid))

    def findings(self) -> Sequence[TableFinding]:
        """Return what each task takes of the others, a table a layer."""
        return [self._taken(number, alpha) for number, alpha in enumerate(self.alphas.detach(), start=1)]

    def _taken(self, number: int, alpha: Tensor) -> TableFinding:
        tasks = tuple(self.outputs)
        return TableFinding(
            title=f"Cross-stitch after layer {number}",
            columns=("task", *(f"of {task}" for task in tasks)),
            rows=tuple((task, *row) for task, row in zip(tasks, alpha.tolist(), strict=True)),
            note="what a task (row) takes of each task's activations",
        )
