"""Gramians as small solvers want them: on the CPU, in float64, group by group, of the tasks that have a gradient.

Eigenvectors of a matrix this small are found faster and better there than in float32 on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Shapes: G groups of tables, K tasks, A of them with a gradient.

_ROUNDING = 1e-5  # a Gramian is a float32 sum of products: eigenvalues of its cosines below this are noise


def solve_groups(gramian: Tensor, solve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return weights [G, K], as a solver finds them for each group.

    A task without gradient (no valid row in the batch, or not trained in this phase) weighs 1, and the solver does not
    see it: a rule that must not harm it, or must treat it as the others, would stop them all.

    Args:
        gramian: [G, K, K].
        solve: (gramian [A, A] of the tasks with a gradient, its mean diagonal 1; which they are [K]) -> weights [A].
    """
    exact = gramian.detach().to("cpu", torch.float64)
    weights = torch.ones(exact.shape[:2], dtype=torch.float64)
    for group, full in enumerate(exact):
        active = full.diagonal() > 0
        if active.any():
            part = full[active][:, active]
            weights[group, active] = solve(part / part.diagonal().mean(), active)
    return weights.to(gramian)


def unit(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gramian [A, A] of the gradients at length 1, free of rounding, and their lengths [A]."""
    lengths = gramian.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(gramian / lengths / lengths.unsqueeze(1))
    values = values.where(values > _ROUNDING * len(values), 0.0)
    return (vectors * values) @ vectors.T, lengths


def free_of_rounding(gramian: Tensor) -> Tensor:
    """Return [A, A] in which linearly dependent gradients are so to float64, whatever their lengths."""
    cosines, lengths = unit(gramian)
    return cosines * lengths * lengths.unsqueeze(1)


def root(gramian: Tensor) -> Tensor:
    """Return columns [A, A] whose inner products are the Gramian."""
    values, vectors = torch.linalg.eigh(gramian)
    columns: Tensor = (vectors * values.clamp_min(0).sqrt()).T
    return columns
