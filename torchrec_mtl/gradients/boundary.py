"""The boundary: a cut through which all gradients of shared tables pass, and where the tasks' gradients are combined.

TorchRec's fused tables apply their optimizer inside backward, so there must be exactly one backward a step; the tasks'
gradients are told apart above the tables and go down combined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec_mtl.collectives import all_sum, world_size
from torchrec_mtl.gradients.base import GradientRule


class Boundary:
    """Combines the tasks' gradients by a rule.

    Args:
        rule: task weights from the Gramian of gradients.

    Attributes:
        gramian: [G, K, K] of the last step, over all ranks; for logs.
        weights: [G, K] of the last step.
    """

    def __init__(self, rule: GradientRule) -> None:
        """See the class."""
        self.rule = rule
        self.gramian: Tensor | None = None
        self.weights: Tensor | None = None

    def fan_out(self, tensors: Sequence[Tensor], num_tasks: int) -> list[tuple[Tensor, ...]]:
        """Return K views of the tensors, one a task. Their backward, part of the one backward, combines the gradients.

        Right where task k's loss reaches the tensors through view k alone.
        """
        flat = _FanOut.apply(self, num_tasks, *tensors)  # type: ignore[no-untyped-call]
        n = len(tensors)
        return [tuple(flat[k * n : (k + 1) * n]) for k in range(num_tasks)]

    def per_task_passes(self, losses: Tensor, tensors: Sequence[Tensor]) -> None:
        """Find each task's gradient by a pass of its own down to the tensors, for the next backward to carry combined.

        Args:
            losses: [K], scaled as they will be summed.
            tensors: where the tasks meet.
        """
        per_task = [
            torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss in losses.unbind()
        ]
        for tensor, combined in zip(tensors, self.combine(per_task), strict=True):
            tensor.register_hook(lambda _, replacement=combined: replacement)  # type: ignore[no-untyped-call]

    def combine(self, per_task: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return ``sum_k w_k g_k`` for each tensor.

        Args:
            per_task: K lists of gradients, one a boundary tensor.
        """
        stacks = [torch.stack(gradients).flatten(1) for gradients in zip(*per_task, strict=True)]
        self.gramian = global_gramian(stacks).unsqueeze(0)
        losses = self.gramian.new_zeros(self.gramian.shape[-1])
        weights = self.rule.weights(self.gramian, losses).reshape(-1, losses.numel())
        self.weights = weights
        return [(weights[0].to(s.dtype) @ s).view_as(g) for s, g in zip(stacks, per_task[0], strict=True)]


def global_gramian(stacks: Sequence[Tensor]) -> Tensor:
    """Return [K, K] inner products of gradients over all tensors and ranks.

    Args:
        stacks: [K, n_i], one a boundary tensor; this rank's rows.

    Local losses are scaled by the world size (data parallel averages), so the sum over ranks is divided by its square.
    """
    local = sum((s.float() @ s.float().T for s in stacks), start=torch.zeros(()))
    return all_sum(local) / world_size() ** 2


class _FanOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boundary: Boundary, num_tasks: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.boundary, ctx.num_tasks = boundary, num_tasks
        return tuple(t.view_as(t) for _ in range(num_tasks) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        n = len(gradients) // ctx.num_tasks
        per_task = [gradients[k * n : (k + 1) * n] for k in range(ctx.num_tasks)]
        return (None, None, *ctx.boundary.combine(per_task))
