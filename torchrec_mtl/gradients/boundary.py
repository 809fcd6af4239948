"""The boundary: a cut through which all gradients of shared tables pass, and where the tasks' gradients are combined.

TorchRec's fused tables apply their optimizer inside backward, so there must be exactly one backward a step; the tasks'
gradients are told apart above the tables and go down combined.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.collectives import all_sum, world_size
from torchrec_mtl.gradients.base import Exactness, GradientRule
from torchrec_mtl.gradients.layout import Layout
from torchrec_mtl.gradients.rows import Ids, RowGramian
from torchrec_mtl.noise import stable_seed

# Shapes: G groups of tables, K tasks, B batch, P pooled columns, N positions of a sequence feature.


class Boundary:
    """Combines the tasks' gradients by a rule.

    Args:
        rule: task weights from the Gramian of gradients.
        exact: what the Gramian is of: gradients at the boundary, of table rows, or of ``tables``.
        seed: of a rule that draws.
        history_steps: steps that ``history`` goes back; None: all.

    Attributes:
        tables: for ``exact="dense"``: shared tables that are ordinary parameters, in the order of ``Layout.tables``.
        gramian: [G, K, K] of the last step, over all ranks.
        weights: [G, K] of the last step.
        history: (Gramian or None, weights) of the last steps, since somebody cleared it; for logs.
    """

    def __init__(
        self, rule: GradientRule, *, exact: Exactness = "boundary", seed: int = 0, history_steps: int | None = 100
    ) -> None:
        """See the class."""
        self.rule, self.exact, self.seed = rule, exact, seed
        self.tables: Sequence[nn.Parameter] = ()
        self.gramian: Tensor | None = None
        self.weights: Tensor | None = None
        self.history: deque[tuple[Tensor | None, Tensor]] = deque(maxlen=history_steps)
        self._step = 0
        self._losses: Tensor | None = None
        self._layout: Layout | None = None
        self._ids: Ids | None = None
        self._row_gramian: RowGramian | None = None

    def prepare(self, *, step: int, losses: Tensor, layout: Layout | None = None, ids: Ids | None = None) -> None:
        """Say what the next backward, or ``loss_weights``, needs to know.

        Args:
            step: seeds a rule that draws.
            losses: [K] means over all ranks.
            layout: of the boundary's tensors; for rules by table, and for ``exact="rows"``.
            ids: what was looked up; for ``exact="rows"``.
        """
        self._step, self._losses, self._ids = step, losses.detach(), ids
        if layout is not self._layout:
            self._layout = layout
            self._row_gramian = None if layout is None else RowGramian(layout, by_table=self._by_table)

    def loss_weights(self) -> Tensor:
        """Return the weights [K] of a rule that needs only losses."""
        assert self._losses is not None, "prepare() comes first"
        return self._ask(None)[0]

    def fan_out(self, tensors: Sequence[Tensor], num_tasks: int) -> list[tuple[Tensor, ...]]:
        """Return K views of the tensors, one a task. Their backward, part of the one backward, combines the gradients.

        Right where task k's loss reaches the tensors through view k alone.

        Raises:
            ValueError: ``exact="dense"``, which takes a pass a task.
        """
        if self.exact == "dense":
            raise ValueError("exact: dense takes a pass a task down to the tables; use per_task_passes")
        flat = _FanOut.apply(self, num_tasks, *tensors)  # type: ignore[no-untyped-call]
        n = len(tensors)
        return [tuple(flat[k * n : (k + 1) * n]) for k in range(num_tasks)]

    def per_task_passes(self, losses: Tensor, tensors: Sequence[Tensor]) -> None:
        """Find each task's gradient by a pass of its own down to the tensors, for the next backward to carry combined.

        Args:
            losses: [K] of the rule's tasks, and any others, which weigh 1; scaled as they will be summed.
            tensors: where the tasks meet.

        Raises:
            ValueError: no loss depends on the tensors.
        """
        n, targets, count = len(tensors), [*tensors, *self.tables], len(self.rule.tasks)
        parts = [*losses[:count].unbind(), *([losses[count:].sum()] if len(losses) > count else [])]
        found: list[Sequence[Tensor | None]] = [
            torch.autograd.grad(part, targets, retain_graph=True, allow_unused=True) for part in parts
        ]
        if all(gradient is None for gradients in found for gradient in gradients):
            raise ValueError(
                "no loss depends on the boundary's tensors, so that there is no gradient to adjust; pass the very "
                "tensors that the losses were computed from, not detached or copied ones"
            )
        passes = [
            [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, targets, strict=True)]
            for gradients in found
        ]
        dense = [torch.stack(gradients).flatten(1) for gradients in zip(*(p[n:] for p in passes[:count]), strict=True)]
        combined = self.combine([p[:n] for p in passes[:count]], dense)
        if len(passes) > count:
            combined = [a + b for a, b in zip(combined, passes[count][:n], strict=True)]
        for tensor, replacement in zip(tensors, combined, strict=True):
            tensor.register_hook(lambda _, replacement=replacement: replacement)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def combine(self, per_task: Sequence[Sequence[Tensor]], dense: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return ``sum_k w_k g_k`` for each tensor.

        Args:
            per_task: K lists of gradients, one a boundary tensor.
            dense: [K, n] gradients of each of ``tables``.
        """
        stacks = [torch.stack(gradients) for gradients in zip(*per_task, strict=True)]
        weights = self._ask(self._gramian(stacks, dense))
        return [self._weighed(weights, i, stack) for i, stack in enumerate(stacks)]

    @property
    def _by_table(self) -> bool:
        return self.rule.groups == "table"

    def _gramian(self, stacks: Sequence[Tensor], dense: Sequence[Tensor]) -> Tensor:
        if self.exact == "dense":
            return _dense_gramian(dense, by_table=self._by_table)
        if self.exact == "rows":
            if self._row_gramian is None or self._ids is None:
                raise ValueError(
                    "exact: rows needs to know which rows were looked up; pass layout and ids to prepare()"
                )
            return self._row_gramian(stacks, self._ids)
        if not self._by_table or self._layout is None:
            return global_gramian([s.flatten(1) for s in stacks]).unsqueeze(0)
        return _gramian_by_table(stacks, self._layout)

    def _ask(self, gramian: Tensor | None) -> Tensor:
        """Return [G, K]. All ranks ask with the same arguments and draw the same numbers."""
        num_tasks = len(self.rule.tasks)
        losses = self._losses
        if losses is None:
            losses = torch.zeros(num_tasks, device=None if gramian is None else gramian.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stable_seed(self.seed, "gradient", self._step))
            weights = self.rule.weights(gramian, losses).reshape(-1, num_tasks)
        self.gramian, self.weights = gramian, weights.detach()
        self.history.append((gramian, self.weights))
        return weights

    def _weighed(self, weights: Tensor, position: int, stack: Tensor) -> Tensor:
        weights = weights.to(stack.dtype)
        if len(weights) > 1 and self._layout is not None:
            if self._layout.pooled and position == 0:
                columns = self._layout.tensors(stack.device).column_tables
                return (weights[columns].T.unsqueeze(1) * stack).sum(0)
            weights = weights[self._layout.unpooled[position - bool(self._layout.pooled)]]
        return (weights.view(1, -1) @ stack.flatten(1)).view(stack.shape[1:])


def global_gramian(stacks: Sequence[Tensor]) -> Tensor:
    """Return [K, K] inner products of gradients over all tensors and ranks.

    Args:
        stacks: [K, n_i], one a boundary tensor; this rank's rows.

    Local losses are scaled by the world size (data parallel averages), so the sum over ranks is divided by its square.
    """
    local = sum((s.float() @ s.float().T for s in stacks), start=torch.zeros((), device=stacks[0].device))
    return all_sum(local) / world_size() ** 2


def _gramian_by_table(stacks: Sequence[Tensor], layout: Layout) -> Tensor:
    """Return [G, K, K] over all ranks, from [K, B, P] where something is pooled, then [K, N, d] each."""
    num_tasks = stacks[0].shape[0]
    gramian = torch.zeros(len(layout.tables), num_tasks, num_tasks, device=stacks[0].device)
    unpooled = stacks[1:] if layout.pooled else stacks
    if layout.pooled:
        columns = stacks[0].float().permute(2, 0, 1)
        tables = layout.tensors(columns.device).column_tables
        gramian.index_add_(0, tables, torch.bmm(columns, columns.transpose(1, 2)))
    for table, stack in zip(layout.unpooled, unpooled, strict=True):
        flat = stack.float().flatten(1)
        gramian[table] += flat @ flat.T
    return all_sum(gramian) / world_size() ** 2


def _dense_gramian(dense: Sequence[Tensor], *, by_table: bool) -> Tensor:
    """Return [G, K, K] from the whole gradients [K, n] of tables that every rank holds whole."""
    if not dense:
        raise ValueError(
            "exact: dense needs tables that are ordinary parameters, and fused, sharded ones have no gradient; use "
            "exact: rows, which gives the same Gramian"
        )
    summed = [all_sum(gradient.float()) / world_size() for gradient in dense]
    gramians = torch.stack([gradient @ gradient.T for gradient in summed])
    return gramians if by_table else gramians.sum(0, keepdim=True)


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
