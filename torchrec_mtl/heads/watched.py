"""Gates that heads let others watch, so that a report can say which experts are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

# Shapes: B batch, R mixtures, E what they mix.

_TOLERANCE: Final = 0.01  # of a sum of weights; bfloat16 has 8 bits


@dataclass(frozen=True)
class WatchedGate:
    """A gate whose weights are summed up over the rows of a run's last evaluation.

    Attributes:
        title: what the weights are of.
        module: returns [R, B, E], or [B, E] where R is 1; in evaluation it is called once a batch.
        rows: R names of mixtures.
        columns: E names of what is mixed.
        task_rows: the first so many of ``rows`` are tasks, and count the rows of that task; the others count the rows
            that count for any task. None: all of them are tasks.
        softmax: ``module`` returns logits, the weights are their softmax over E.
        by_user: tell the weights by groups of users, too; R is 1.
        note: how to read it, beside what holds for all gates.
    """

    title: str
    module: nn.Module
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    task_rows: int | None = None
    softmax: bool = False
    by_user: bool = False
    note: str = ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Rows that are tasks."""
        return self.rows[: self.task_rows]


def weights_of(gate: WatchedGate, output: object, tasks: Sequence[str], counted: Tensor) -> Tensor:
    """Return the weights [R, B, E], which sum to 1 over E.

    Args:
        gate: what they are of.
        output: what its module returned.
        tasks: names of all tasks.
        counted: [B], true for rows of data; what the others weigh is not looked at.

    Raises:
        ValueError: the gate is not what it says of itself.
    """
    if unknown := [name for name in gate.tasks if name not in tasks]:
        raise ValueError(f"says that its row '{unknown[0]}' is a task; set task_rows, 0 where no row is")
    if gate.by_user and len(gate.rows) != 1:
        raise ValueError(f"is told by users, and has {len(gate.rows)} rows instead of one")
    if not isinstance(output, Tensor):
        raise ValueError(f"has a module that returns {type(output).__name__} instead of a tensor")
    stacked = output.unsqueeze(0) if output.dim() == 2 else output
    expected = (len(gate.rows), len(counted), len(gate.columns))
    if tuple(stacked.shape) != expected:
        raise ValueError(
            f"has a module that returns the shape {tuple(output.shape)}, where its rows and columns say {expected}"
        )
    weights = torch.softmax(stacked.float(), dim=-1) if gate.softmax else stacked.float()
    sums = weights[:, counted].sum(-1)
    if bool((off := (sums - 1).abs() > _TOLERANCE).any()):
        raise ValueError(
            f"has weights that sum to {float(sums[off][0]):.4g} instead of 1; say softmax=True where the module "
            "returns logits"
        )
    return weights


def numbered(name: str, count: int) -> tuple[str, ...]:
    """Return a name for each of ``count`` experts.

    Example:
        >>> numbered("shared", 2), numbered("own", 1)
        (('shared 1', 'shared 2'), ('own',))
    """
    return (name,) if count == 1 else tuple(f"{name} {i}" for i in range(1, count + 1))


def numbered_all(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return `numbered` of several names, one after the other."""
    return tuple(numbered_name for name in names for numbered_name in numbered(name, count))
