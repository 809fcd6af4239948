"""Gates that heads let others watch, so that a report can say which experts are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

# Shapes: B batch, R mixtures, E what they mix.


@dataclass(frozen=True)
class WatchedGate:
    """A gate whose weights are summed up over the rows of a run's last evaluation.

    Attributes:
        title: what the weights are of.
        module: returns [R, B, E], or [B, E] where R is 1; in evaluation it is called once a batch.
        rows: R names of mixtures; one that is a task's name counts the rows of that task, any other all rows of data.
        columns: E names of what is mixed.
        softmax: ``module`` returns logits, the weights are their softmax over E.
        by_user: tell the weights by groups of users, too; R is 1.
        note: how to read it, beside what holds for all gates.
    """

    title: str
    module: nn.Module
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    softmax: bool = False
    by_user: bool = False
    note: str = ""


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
