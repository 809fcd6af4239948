"""Entire space multi-task model (Ma et al., SIGIR 2018): binary tasks as a chain over all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import PositiveInt

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.base import HeadConfig, HeadOfKinds, HeadOutput
from torchrec_mtl.heads.chain import chain_logits, chain_names, chain_problems, conditional_predictions
from torchrec_mtl.heads.layers import Norm
from torchrec_mtl.heads.towers import Towers


class ESMM(HeadOfKinds):
    """Shared embeddings, a tower a task, and ``P(buy) = P(click) P(buy | click)`` over all rows (Eq. 1, 3).

    The binary tasks in causal order are a chain of any length (the paper has two). A task's logit is that of the
    product, so that its loss is over the entire space, and ``predictions`` has the conditional probabilities, such as
    ``buy_given_click``. Regressions have a tower of their own outside the chain (our choice).

    A row of label 1 is taken to have label 1 in all earlier tasks; rows that break this are learned as they are, and
    pull on the conditional what the product cannot give.

    Under a bottom that makes one representation a task, each tower reads its task's.

    Args:
        in_features: D.
        outputs: task -> number of logits, in causal order.
        config: options.
        binary: names of the binary tasks; None: all tasks are.

    Example:
        >>> head = ESMM(8, ["click", "buy"])
        >>> list(head(Representation(torch.zeros(5, 8))).predictions)
        ['buy_given_click']
    """

    class Config(HeadConfig):
        """Options of ``head: {type: esmm}``."""

        type: str = "esmm"
        tower: tuple[PositiveInt, ...] = (256, 128, 64)
        """Widths of each task's layers."""
        norm: Norm = "none"

        def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
            """The binary tasks must make a chain over one space."""
            return chain_problems("esmm", tasks)

    def __init__(
        self,
        in_features: int,
        outputs: Mapping[str, int] | Sequence[str],
        config: Config | None = None,
        *,
        binary: Sequence[str] | None = None,
    ) -> None:
        """See the class."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        self.chain = chain_names("esmm", self.outputs, binary)
        self.towers = Towers(in_features, config.tower, self.outputs, norm=config.norm)

    def forward(self, representation: Representation) -> HeadOutput:
        """Return the logits of the products, and the conditional probabilities."""
        logits = self.towers.logits(representation.by_task(), representation.valid)
        if len(self.chain) < 2:
            return HeadOutput(logits=logits)
        conditional = torch.stack([logits[name] for name in self.chain])
        return HeadOutput(
            logits=logits | dict(zip(self.chain, chain_logits(conditional)[0], strict=True)),
            predictions=conditional_predictions(self.chain, conditional),
        )
