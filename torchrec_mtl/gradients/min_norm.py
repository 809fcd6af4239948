"""The shortest convex combination of gradients, exactly."""

from __future__ import annotations

import torch
from scipy.optimize import nnls
from torch import Tensor

from torchrec_mtl.gradients.gramians import root


def min_norm_point(gramian: Tensor) -> Tensor:
    """Return ``argmin w^T G w`` over the simplex, [K] float64.

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
