"""What ties tasks together: a gate (a number is above 0 where a binary task says so), and an order of probabilities."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.base import Term
from torchrec_mtl.losses.base import Loss

# Shapes: B batch, K tasks.


class Consistency(nn.Module):
    """Gates and orders between tasks, whatever their head.

    A gated task is a hurdle model: ``log p(y) = log P(gate) + 1[y > 0] log p(y | y > 0)`` falls into two sums, the
    gate's own loss and the gated task's loss where the gate's label is 1, and ``E[y] = P(gate) E[y | y > 0]``. An order
    adds ``weight * mean max(0, p_k - p_below)``, the hinge of AITM (Xi et al., KDD 2021).

    Args:
        tasks: in the order of columns.
    """

    gate_of: Tensor
    gated: Tensor

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        """See the class."""
        super().__init__()
        self._tasks = [task.name for task in tasks]
        position = {task.name: k for k, task in enumerate(tasks)}
        gates = [k if task.gate is None else position[task.gate] for k, task in enumerate(tasks)]
        self.has_gates = any(task.gate is not None for task in tasks)
        self.register_buffer("gate_of", torch.tensor(gates), persistent=False)
        self.register_buffer("gated", torch.tensor([t.gate is not None for t in tasks]), persistent=False)
        self.orders = {
            f"{t.name}<={t.order.below}": (k, position[t.order.below])
            for k, t in enumerate(tasks)
            if t.order is not None
        }
        self.order_weights = [task.order.weight for task in tasks if task.order is not None]

    def orders_among(self, tasks: Collection[str]) -> tuple[str, ...]:
        """Return the penalties of which both tasks are among these."""
        return tuple(name for name, pair in self.orders.items() if all(self._tasks[k] in tasks for k in pair))

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the orders' penalties, such as ``long_view<=click``."""
        return tuple(self.orders)

    def loss_weights(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Return weights [B, K] of the losses: a gated task's stay where its gate's label is 1 and its own above 0."""
        if not self.has_gates:
            return weights
        open_ = (labels[:, self.gate_of] > 0) & (weights[:, self.gate_of] > 0) & (labels > 0)
        return torch.where(self.gated & ~open_, torch.zeros_like(weights), weights)

    def predictions(self, columns: Tensor) -> Tensor:
        """Return predictions [B, K]: those of gated tasks times their gate's probability."""
        if not self.has_gates:
            return columns
        return torch.where(self.gated, columns * columns[:, self.gate_of], columns)

    def terms(self, logits: Mapping[str, Tensor], losses: Mapping[str, nn.Module], weights: Tensor) -> dict[str, Term]:
        """Return the orders' penalties over rows that both tasks are defined on.

        Args:
            logits: by task.
            losses: by task; they know the probability of a logit.
            weights: [B, K].
        """
        names = list(losses)
        terms: dict[str, Term] = {}
        for name, (upper, below) in self.orders.items():
            p, q = (cast(Loss, losses[names[k]]).predict(logits[names[k]]) for k in (upper, below))
            both = ((weights[:, upper] > 0) & (weights[:, below] > 0)).to(p.dtype)
            terms[name] = Term(value=torch.relu(p - q), weight=both)
        return terms
