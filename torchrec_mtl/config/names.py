"""The nearest known name to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_SHOWN = 20


def nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the known name that ``name`` most likely stands for, or None where none is so like it (0 to 1)."""
    choices = sorted(known)
    by_lower = {choice.lower().replace("-", "_"): choice for choice in choices}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), by_lower, n=1, cutoff=likeness)
    return by_lower[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or the list of known names when none is near.

    Example:
        >>> did_you_mean("htlnt", ["htlnet", "single_task"])
        " Did you mean 'htlnet'?"
        >>> did_you_mean("xyz", ["htlnet", "single_task"])
        ' Known: htlnet, single_task.'
    """
    choices = sorted(known)
    near = nearest(name, choices)
    if near is not None:
        return f" Did you mean '{near}'?"
    return f" {listed(choices)}" if choices else ""


def listed(names: Sequence[str]) -> str:
    """Return names for a message; of very many only the first.

    Example:
        >>> listed(["click", "like"])
        'Known: click, like.'
    """
    more = len(names) - _SHOWN
    shown = names if more <= 1 else [*names[:_SHOWN], f"and {more} others"]
    return f"Known: {', '.join(shown) or 'none'}."
