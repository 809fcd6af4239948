"""Gramians as small solvers want them: on the CPU, in float64, group by group, of the tasks that have a gradient.

Eigenvectors of a matrix this small are found faster and better there than in float32 on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from scipy.optimize import nnls
from torch import Tensor

# Shapes: G groups of tables, K tasks, A of them with a gradient.

_ROUNDING = 1e-5  # a Gramian is a float32 sum of products: eigenvalues of its cosines below this are noise


def solve_groups(gramian: Tensor, tasks: Sequence[str], solve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return weights [G, K], as a solver finds them for each group.

    A task without gradient (no valid row in the batch, or not trained in this phase) weighs 1, and the solver does not
    see it: a rule that must not harm it, or must treat it as the others, would stop them all.

    Args:
        gramian: [G, K, K].
        tasks: names.
        solve: (gramian [A, A] of the tasks with a gradient, its mean diagonal 1; which they are [K]) -> weights [A].

    Raises:
        ValueError: gradients are not finite; before any call of the solver.
    """
    exact = on_cpu(gramian, tasks)
    weights = torch.ones(exact.shape[:2], dtype=torch.float64)
    for group, full in enumerate(exact):
        active = full.diagonal() > 0
        if active.any():
            part = full[active][:, active]
            weights[group, active] = solve(part / part.diagonal().mean(), active)
    return weights.to(gramian)


def on_cpu(gramian: Tensor, tasks: Sequence[str]) -> Tensor:
    """Return the Gramian [G, K, K] in float64 on the CPU.

    Raises:
        ValueError: gradients are not finite; names their tasks.
    """
    exact = gramian.detach().to("cpu", torch.float64)
    bad = ~exact.diagonal(dim1=1, dim2=2).isfinite().all(0)
    if not bool(exact.isfinite().all()):
        named = [f"'{task}'" for task, is_bad in zip(tasks, bad.tolist()) if is_bad or not bad.any()]
        raise ValueError(
            f"the gradients of {', '.join(named)} are not finite, or too long for float32; lower the learning rates "
            "(optim.sparse.lr, optim.dense.lr), set optim.dense.clip_norm, or look for extreme labels and dense values"
        )
    return exact


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


def min_norm_point(gramian: Tensor) -> Tensor:
    """Return ``argmin w^T G w`` over the simplex, [K] float64: the shortest convex combination of the gradients.

    ``min |A w|^2 + (1 - sum w)^2`` over ``w >= 0``, with ``A^T A = G``, has its solution on the same ray: a
    least-squares problem that an active-set method solves exactly in a few steps (torchjd's Frank-Wolfe stops near it
    after up to 100).

    Args:
        gramian: [K, K] float64, its diagonal about 1.
    """
    ones = torch.ones(1, len(gramian), dtype=gramian.dtype)
    target = torch.zeros(len(gramian) + 1, dtype=gramian.dtype)
    target[-1] = 1
    found = torch.from_numpy(
        nnls(torch.cat([root(gramian), ones]).numpy(), target.numpy(), maxiter=100 * len(gramian))[0]
    )
    return found / found.sum()
