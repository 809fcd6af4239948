"""How a head's gates weigh what they mix, over the rows of an evaluation; exact over ranks, as metrics are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from torchrec_mtl.collectives import all_gather, all_sum
from torchrec_mtl.findings import Finding, MatrixFinding, TableFinding
from torchrec_mtl.heads.watched import WatchedGate, weights_of
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.training.evaluation import gather_rows
from torchrec_mtl.training.gate_groups import by_activity

# Shapes: B batch, K tasks, R mixtures, E what they mix.


class GateUse:
    """Sums of weights, by mixture.

    A gate that is not what it says of itself is left out with a line: a run does not end without metrics for it.

    Args:
        gates: what the head lets be watched.
        tasks: K names, in the order of the columns.
    """

    def __init__(self, gates: Sequence[WatchedGate], tasks: Sequence[str]) -> None:
        self._gates = [gate for gate in gates if len(gate.columns) > 1]
        self._tasks = tuple(tasks)
        self._last: dict[int, object] = {}
        self._wrong: dict[int, str] = {}
        self._sums = [torch.zeros(len(g.rows), len(g.columns) + 1, dtype=torch.float64) for g in self._gates]
        self._rows: list[list[Tensor]] = [[] for _ in self._gates]
        self._users: list[Tensor] = []

    @contextmanager
    def watching(self, outputs: Iterable[StepOutput]) -> Iterator[Iterator[StepOutput]]:
        """Yield the outputs of forward passes that are watched while they are made."""
        hooks = [gate.module.register_forward_hook(_Keeper(self._last, i)) for i, gate in enumerate(self._gates)]
        try:
            yield self._through(outputs)
        finally:
            for hook in hooks:
                hook.remove()

    def _through(self, outputs: Iterable[StepOutput]) -> Iterator[StepOutput]:
        for output in outputs:
            if self._gates:
                self._add(output)
            yield output

    def _add(self, output: StepOutput) -> None:
        counted = (output.weights != 0).T  # [K, B]
        any_task = counted.any(0)
        if "group" in output.ids:
            self._users.append(output.ids["group"][any_task].cpu())
        for number, gate in enumerate(self._gates):
            if (last := self._last.pop(number, None)) is None:
                continue  # the head did not ask this gate
            try:
                weights = weights_of(gate, last, self._tasks, any_task).double()
            except ValueError as error:
                self._wrong.setdefault(number, str(error))
                continue
            tasks = [counted[self._tasks.index(name)] for name in gate.tasks]
            mask = torch.stack([*tasks, *[any_task] * (len(gate.rows) - len(tasks))])  # [R, B]
            kept = torch.where(mask.unsqueeze(-1), weights, 0.0)  # what padding weighs may be nan
            sums = torch.cat([kept.sum(1), mask.sum(1, keepdim=True)], dim=1)
            self._sums[number] += sums.cpu()
            if gate.by_user and "group" in output.ids:
                self._rows[number].append(weights[0, any_task].float().cpu())

    def findings(self, split: str, group: str | None) -> tuple[Finding, ...]:
        """Return heat maps of mean weights, on all ranks together; what is told by users is on rank 0 alone.

        Of a gate that is not what it says, on any rank, a line in place of them.

        Args:
            split: what was evaluated, in words.
            group: the column whose values are the users; None: nothing is told by users.
        """
        found: list[Finding] = []
        for number, (gate, sums, rows) in enumerate(zip(self._gates, self._sums, self._rows, strict=True)):
            if all_sum(torch.tensor(float(number in self._wrong))) > 0:
                found.append(_left_out(gate, self._wrong.get(number, "is not what it says of itself, on another rank")))
                continue
            total = all_sum(sums)
            if not total[:, -1].any():
                continue
            means = (total[:, :-1] / total[:, -1:]).tolist()  # 0 / 0, of a task without rows, is nan
            note = f"Mean weight over the {split} rows that count for {_whose(gate)}; a line adds up to 1. {gate.note}"
            found.append(MatrixFinding(gate.title, gate.rows, gate.columns, tuple(map(tuple, means)), note.strip()))
            if gate.by_user and group is not None:
                found += self._by_users(gate, rows, group)
        return tuple(found)

    def _by_users(self, gate: WatchedGate, rows: Sequence[Tensor], group: str) -> Sequence[Finding]:
        users, weights = _gathered(torch.cat(self._users)), _gathered(torch.cat(list(rows)))
        if users is None or weights is None:
            return ()
        return by_activity(gate.title, gate.columns, users.numpy(), weights.numpy(), group)


class _Keeper:
    """Keeps what a module returned last."""

    def __init__(self, last: dict[int, object], number: int) -> None:
        self._last, self._number = last, number

    def __call__(self, _module: nn.Module, _inputs: object, output: object) -> None:
        self._last[self._number] = output.detach() if isinstance(output, Tensor) else output


def _whose(gate: WatchedGate) -> str:
    """Return what its rows of data count for, in words."""
    others = gate.rows[len(gate.tasks) :]
    if not gate.tasks:
        return "any task"
    return f"the task, of '{', '.join(others)}' over those that count for any" if others else "the task"


def _left_out(gate: WatchedGate, why: str) -> Finding:
    return TableFinding(gate.title, ("not shown",), ((f"the gate {why}",),), "See torchrec_mtl.heads.watched.")


def _gathered(rows: Tensor) -> Tensor | None:
    """Return the rows of all ranks, of which each may have another number, on rank 0."""
    longest = int(all_gather(torch.tensor(len(rows))).max())
    mark = torch.zeros(longest, dtype=torch.uint8)
    mark[: len(rows)] = 1
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    everything, marks = gather_rows(padded), gather_rows(mark)
    return None if everything is None or marks is None else everything[marks.bool()]
