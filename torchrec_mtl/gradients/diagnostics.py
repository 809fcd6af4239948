"""What the gradients did over some steps: cosines, norms, conflicts, weights; computed when a line is logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import torch
from torch import Tensor

# Shapes: S steps, G groups of tables, K tasks.


def summarise(
    history: Iterable[tuple[Tensor | None, Tensor]], tasks: Sequence[str], core: int | None = None
) -> dict[str, float]:
    """Return named numbers of the steps since the last line; one read back from the device.

    Args:
        history: (Gramian [G, K, K] or None, weights [G, K]) of each step.
        tasks: K names.
        core: others are compared with it; None: every pair.

    Returns:
        ``weight/task``, mean over steps and groups; and, where Gramians are known, over steps in which both tasks had a
        gradient: ``cosine/task`` with the core (or ``cosine/task-other``), ``conflict/task``, the share of steps with a
        cosine below 0 (HTLNet's projection fired), and ``norm/task``, the task's norm over the core's (or over the
        mean norm).

    Example:
        >>> gramian, weights = torch.tensor([[[4.0, -1.0], [-1.0, 1.0]]]), torch.tensor([[1.0, 2.0]])
        >>> summarise([(gramian, weights)], ["click", "watch"], core=1)["cosine/click"]
        -0.5
    """
    steps = list(history)
    if not steps:
        return {}
    names = [f"weight/{task}" for task in tasks]
    values = [torch.stack([w.float() for _, w in steps]).mean((0, 1))]
    gramians = [g for g, _ in steps if g is not None]
    if gramians:
        found_names, found = _of_gramians(torch.stack(gramians).float().sum(1), tasks, core)
        names += found_names
        values.append(found)
    numbers = torch.cat(values).tolist()
    return {name: value for name, value in zip(names, numbers, strict=True) if not math.isnan(value)}


def _of_gramians(gramians: Tensor, tasks: Sequence[str], core: int | None) -> tuple[list[str], Tensor]:
    """Return names and values from [S, K, K], the sums over groups."""
    norms = torch.diagonal(gramians, dim1=1, dim2=2).clamp_min(0).sqrt()
    count = len(tasks)
    if core is None:
        pairs = list(combinations(range(count), 2))
        names = [f"{tasks[a]}-{tasks[b]}" for a, b in pairs]
        others, reference = list(range(count)), norms.mean(1, keepdim=True)
    else:
        pairs = [(k, core) for k in range(count) if k != core]
        names = [tasks[k] for k, _ in pairs]
        others, reference = [k for k, _ in pairs], norms[:, [core]]
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    lengths = norms[:, left] * norms[:, right]
    cosines = torch.where(lengths > 0, gramians[:, left, right] / lengths, torch.nan)
    conflicts = torch.where(lengths > 0, (gramians[:, left, right] < 0).float(), torch.nan)
    ratios = torch.where((norms[:, others] > 0) & (reference > 0), norms[:, others] / reference, torch.nan)
    found = torch.cat([x.nanmean(0) for x in (cosines, conflicts, ratios)])
    labels = [f"{kind}/{name}" for kind in ("cosine", "conflict") for name in names]
    return [*labels, *(f"norm/{tasks[k]}" for k in others)], found
