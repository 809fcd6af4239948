"""What one thread of the machine can do; torch is all it needs, so that it runs in any environment.

Matrix products: float32 ``torch.mm`` of 512 x 512, 3 MiB together, the fastest of 256 to 2048 where this was written.
Bandwidth: ``a = b + s c`` over three arrays of 128 MiB, far beyond the caches; the read that a write brings with it is
not counted, as STREAM does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_SIZE, _PRODUCTS = 512, 20
_ELEMENTS, _TRIADS = 2**25, 3


def matrix_products() -> Callable[[], float]:
    """Return a function that multiplies matrices and returns the GFLOP/s."""
    left, right, product = torch.randn(_SIZE, _SIZE), torch.randn(_SIZE, _SIZE), torch.empty(_SIZE, _SIZE)

    def gemm() -> float:
        start = time.perf_counter()
        for _ in range(_PRODUCTS):
            torch.mm(left, right, out=product)
        return _PRODUCTS * 2 * _SIZE**3 / (time.perf_counter() - start) / 1e9

    return gemm


def triad() -> Callable[[], float]:
    """Return a function that goes over long arrays and returns the GB/s."""
    first, second, total = torch.ones(_ELEMENTS), torch.ones(_ELEMENTS), torch.empty(_ELEMENTS)

    def add() -> float:
        start = time.perf_counter()
        for _ in range(_TRIADS):
            torch.add(first, second, alpha=3.0, out=total)
        return _TRIADS * 3 * 4 * _ELEMENTS / (time.perf_counter() - start) / 1e9

    return add
