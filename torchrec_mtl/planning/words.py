"""Sizes and reasons in words, for texts and plots."""

from __future__ import annotations

from torchrec_mtl.planning.result import GIB, Shortage

ESTIMATES = (
    "Memory and milliseconds are TorchRec's estimates for its default hardware constants, with full lists of ids; "
    "nothing was measured, and the dense part is not in the times."
)


def gib(size: float) -> str:
    """Return bytes in GiB, or in MiB where that reads better.

    Example:
        >>> gib(3 * 1024**3), gib(5 * 1024**2)
        ('3.0 GiB', '5.0 MiB')
    """
    if size < GIB / 10:
        return f"{size / 1024**2:,.1f} MiB"
    return f"{size / GIB:,.1f} GiB"


def why(shortage: Shortage) -> str:
    """Return in one line why there is no plan."""
    if shortage.needed_bytes > shortage.capacity:
        return f"all tables need {gib(shortage.needed_bytes)}, and all ranks have {gib(shortage.capacity)}"
    if shortage.too_large:
        names = [t.table for t in shortage.too_large]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        fits = "fits" if len(names) == 1 else "fit"
        return f"{', '.join(names[:3])}{more} {fits} on no rank"
    return (
        f"the tables need {gib(shortage.needed_bytes)} of {gib(shortage.capacity)}, but TorchRec's planner finds no "
        "way to place all parts"
    )
