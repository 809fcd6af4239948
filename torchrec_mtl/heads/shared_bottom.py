"""Shared bottom: ``y_k = tower_k(f(x))`` (Caruana, 1997)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import PositiveInt

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput
from torchrec_mtl.heads.layers import MLP, Norm
from torchrec_mtl.heads.towers import Towers


class SharedBottom(Head):
    """Shared layers, then a tower a task; the K towers are one batched product a layer.

    Under a bottom that makes one representation a task, the shared layers read each of them, and tower k what they make
    of that of task k.

    Example:
        >>> import torch
        >>> head = SharedBottom(8, ["click", "buy"], SharedBottom.Config(shared=(16,), tower=(4,)))
        >>> {task: tuple(z.shape) for task, z in head(Representation(torch.zeros(3, 8))).logits.items()}
        {'click': (3,), 'buy': (3,)}
    """

    class Config(HeadConfig):
        """Options of ``head: {type: shared_bottom}``."""

        type: str = "shared_bottom"
        shared: tuple[PositiveInt, ...] = (256, 128)
        """Widths of the shared layers."""
        tower: tuple[PositiveInt, ...] = (64,)
        """Widths of each task's layers."""
        norm: Norm = "none"

    def __init__(
        self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: Config | None = None
    ) -> None:
        """See `Head`."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        self.shared = MLP(in_features, config.shared, norm=config.norm)
        self.towers = Towers(self.shared.out_features, config.tower, self.outputs, norm=config.norm)
        self._isolates = not config.shared

    @property
    def isolates_tasks(self) -> bool:
        """True without shared layers; with them, one forward serves all tasks and the tasks meet above the boundary."""
        return self._isolates

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        valid = representation.valid
        return HeadOutput(logits=self.towers.logits(self.shared(representation.by_task(), valid), valid))
