"""Deep Bayesian multi-target learning (Wang et al., 2019, arXiv 1902.09154): targets as a Bayesian network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput
from torchrec_mtl.heads.layers import MLP, Norm, StackedLinear
from torchrec_mtl.heads.towers import split_logits

# Shapes: B batch, K tasks.


class DBMTL(Head):
    """``P(l_1, .., l_K | x) = prod_t P(l_t | l_1, .., l_{t-1}, x)``, features of the earlier targets standing for them.

    Shared layers and an MLP a task give ``u_t``, all tasks in one product a layer; then the relation layers give
    ``r_t = MLP_t([u_t, r_1, .., r_{t-1}])``, a recurrence over tasks, and task t's logit is linear in ``r_t``. The
    Bayesian network is the full one in causal order (our choice; the paper selects edges by model selection).

    Under a bottom that makes one representation a task, the shared layers read each of them, and ``u_t`` is of that of
    task t.

    Example:
        >>> head = DBMTL(8, ["click", "buy"], DBMTL.Config(shared=(16,), task=(8,), relation=(4,)))
        >>> {task: tuple(z.shape) for task, z in head(Representation(torch.zeros(5, 8))).logits.items()}
        {'click': (5,), 'buy': (5,)}
    """

    class Config(HeadConfig):
        """Options of ``head: {type: dbmtl}``."""

        type: str = "dbmtl"
        shared: tuple[PositiveInt, ...] = (256, 128)
        """Widths of the shared layers."""
        task: tuple[PositiveInt, ...] = (64,)
        """Widths of each task's layers."""
        relation: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32,)
        """Widths of each task's relation layers; later tasks read the last."""
        norm: Norm = "none"

    def __init__(
        self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: Config | None = None
    ) -> None:
        """See `Head`."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        self.shared = MLP(in_features, config.shared, norm=config.norm)
        self.towers = MLP(self.shared.out_features, config.task, norm=config.norm, num_towers=self.num_tasks)
        own, passed = self.towers.out_features, config.relation[-1]
        self.relations = nn.ModuleList(
            MLP(own + t * passed, config.relation, norm=config.norm) for t in range(self.num_tasks)
        )
        self.last = StackedLinear(self.num_tasks, passed, max(self.outputs.values()))

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        valid = representation.valid
        own = self.towers(self.shared(representation.by_task(), valid), valid)
        own = own.expand(self.num_tasks, *own.shape[-2:])  # without shared and task layers all tasks have the same
        related: list[Tensor] = []
        for u, relation in zip(own, self.relations, strict=True):
            related.append(relation(torch.cat([u, *related], dim=1), valid))
        return HeadOutput(logits=split_logits(self.last(torch.stack(related)), self.outputs))
