"""What may be searched: settings of a run, each with an interval or with choices.

Names are keys in YAML and ``name`` here; settings become the words of an override (``head.tower=[64, 32]``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BeforeValidator, model_validator

from torchrec_mtl.config.base import Config, Name
from torchrec_mtl.config.explain import shown


def as_word(key: str, value: object) -> str:
    """Return an override; JSON is YAML, and fits on a line.

    Example:
        >>> as_word("head", {"type": "mmoe", "norm": "no"})
        'head={"type": "mmoe", "norm": "no"}'
    """
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def named(value: object) -> object:
    """Turn ``{name: {...}}`` into ``[{name: name, ...}]``, in the same order."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping of names (found {shown(value)})")
    entries = []
    for name, entry in value.items():
        if not isinstance(entry, Mapping | None):
            raise ValueError(f"{name}: expected a mapping (found {shown(entry)})")
        if "name" in (entry or {}):
            raise ValueError(f"{name}: has a 'name' inside; the key before it, '{name}', is its name: remove it")
        renamed = {"except_" if key == "except" else key: item for key, item in (entry or {}).items()}
        entries.append({**renamed, "name": str(name)})
    return entries


class Dimension(Config):
    """One setting to search: an interval, or choices."""

    name: Name
    """Path in the run's config, such as ``optim.dense.lr``."""
    low: int | float | None = None
    """Smallest value; two whole numbers search whole numbers."""
    high: int | float | None = None
    """Largest value."""
    log: bool = False
    """Search the logarithm."""
    choices: tuple[object, ...] = ()
    """Values of any kind."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        interval = (self.low, self.high)
        if bool(self.choices) == (interval != (None, None)) or (not self.choices and None in interval):
            raise ValueError("give either low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low must be below high (found {self.low} and {self.high})")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log wants low and high above 0; remove log, or raise low")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the interval is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> tuple[object, ...]:
        """Return the values whose configs are checked before anything runs: all choices, or both bounds."""
        return self.choices or (self.low, self.high)


Space = Annotated[tuple[Dimension, ...], BeforeValidator(named)]
