"""Adaptive information transfer multi-task framework (Xi et al., KDD 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.base import HeadConfig, HeadOfKinds, HeadOutput, Term
from torchrec_mtl.heads.htlnet import InformationFusionUnit
from torchrec_mtl.heads.layers import MLP, Norm, StackedLinear
from torchrec_mtl.heads.towers import split_logits

# Shapes: B batch, K tasks, H width of the towers' last layer.


class AITM(HeadOfKinds):
    """A tower a task, and along the sequence of tasks each learns what, and how much, to take from the one before.

    Towers give ``q_t``; with ``z_1 = q_1`` and ``p_{t-1} = g_{t-1}(z_{t-1})``, ``z_t = sum_u softmax(<h2 u, h3 u> /
    sqrt(H)) h1 u`` over u in ``{p_{t-1}, q_t}``, and ``z_t`` gives task t's logit (Section "AIT module"). This is a
    recurrence over tasks; the towers are one product a layer. Consecutive binary tasks add the calibrator
    ``order_weight * mean max(0, P(t) - P(t - 1))``, over rows that both have.

    Choices of ours: h1, h2, h3 are affine and belong to one pair of tasks, g is one layer with ReLU, the logit is
    linear in ``z_t``; the sequence is that of all tasks, regressions included, the calibrator's that of binary ones.

    Under a bottom that makes one representation a task, tower t reads that of task t.

    Args:
        in_features: D.
        outputs: task -> number of logits, in causal order.
        config: options.
        binary: names of the binary tasks; None: all tasks are.

    Example:
        >>> AITM(8, ["click", "buy", "renew"]).constraint_names
        ('aitm/buy<=click', 'aitm/renew<=buy')
    """

    class Config(HeadConfig):
        """Options of ``head: {type: aitm}``."""

        type: str = "aitm"
        tower: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 64, 32)
        """Widths of each task's layers; the last is H."""
        order_weight: NonNegativeFloat = 0.6
        """Weight of the calibrator; 0: none."""
        norm: Norm = "none"

        def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
            """The calibrator compares probabilities over the same rows, and once."""
            return _order_problems([t for t in tasks if t.kind == "binary"]) if self.order_weight > 0 else []

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
        self.order_weight = config.order_weight
        ordered = tuple(pairwise(self.outputs if binary is None else binary)) if config.order_weight > 0 else ()
        self.orders = {f"aitm/{task}<={before}": (task, before) for before, task in ordered}
        self.constraint_names = tuple(self.orders)
        width, later = config.tower[-1], range(1, self.num_tasks)
        self.towers = MLP(in_features, config.tower, norm=config.norm, num_towers=self.num_tasks)
        self.passes = nn.ModuleList(MLP(width, (width,), norm=config.norm) for _ in later)
        self.transfers = nn.ModuleList(InformationFusionUnit(width, width) for _ in later)
        self.last = StackedLinear(self.num_tasks, width, max(self.outputs.values()))

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        valid = representation.valid
        first, *rest = self.towers(representation.by_task(), valid)
        z = [first]
        for q, passed, transfer in zip(rest, self.passes, self.transfers, strict=True):
            z.append(transfer(torch.stack([passed(z[-1], valid), q], dim=1)))
        return HeadOutput(logits=split_logits(self.last(torch.stack(z)), self.outputs))

    def terms(self, output: HeadOutput, labels: Tensor, weights: Tensor) -> Mapping[str, Term]:
        """Return the calibrator, one hinge a pair of binary tasks."""
        column = {task: k for k, task in enumerate(self.outputs)}
        terms = {}
        for name, (task, before) in self.orders.items():
            above = torch.relu(torch.sigmoid(output.logits[task]) - torch.sigmoid(output.logits[before]))
            both = (weights[:, column[task]] > 0) & (weights[:, column[before]] > 0)
            terms[name] = Term(value=self.order_weight * above, weight=both.to(above.dtype))
        return terms


def _order_problems(binary: Sequence[TaskConfig]) -> list[str]:
    problems = []
    for before, task in pairwise(binary):
        if task.space != before.space:
            problems.append(
                f"order_weight: aitm keeps P({task.name}) below P({before.name}), but they are defined on other rows "
                f"(space: {task.space} and {before.space}), which orders nothing; give both the same space, or set 0"
            )
        if task.order is not None and task.order.below == before.name:
            problems.append(
                f"order_weight: '{task.name}' has an order of its own below '{before.name}', which would count twice; "
                "remove that order, or set 0"
            )
    weighted = [task.name for task in binary if getattr(task.loss, "pos_weight", 1.0) != 1.0]
    if weighted and len(binary) > 1:
        problems.append(
            f"order_weight: pos_weight trains the logits of {', '.join(weighted)} to other odds than aitm compares; "
            "set 0 and use the tasks' order, which knows the loss, or remove pos_weight"
        )
    return problems
