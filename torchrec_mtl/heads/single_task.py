"""Single-task models side by side: nothing is shared, tables included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import PositiveInt

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput
from torchrec_mtl.heads.layers import Norm
from torchrec_mtl.heads.towers import Towers


class SingleTask(Head):
    """A tower a task on embedding tables of the task's own: as K models trained apart, in one run.

    Tower k reads what the bottom makes of the tables of task k, and nothing else.
    """

    tables = "own"

    class Config(HeadConfig):
        """Options of ``head: {type: single_task}``."""

        type: str = "single_task"
        tower: tuple[PositiveInt, ...] = (256, 128, 64)
        """Widths of each task's layers."""
        norm: Norm = "none"

    def __init__(
        self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: Config | None = None
    ) -> None:
        """See `Head`."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        self.towers = Towers(in_features, config.tower, self.outputs, norm=config.norm)

    @property
    def isolates_tasks(self) -> bool:
        """True: nothing is shared."""
        return True

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        return HeadOutput(logits=self.towers.logits(representation.by_task(), representation.valid))
