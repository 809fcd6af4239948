"""The settings of an item index: which kind it is, and how hard it looks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, get_args

from torchrec_mtl.config.names import did_you_mean

Kind = Literal["flat", "ivf", "hnsw"]

# Settings of a kind, with their defaults; None: found from the number of items.
_DEFAULTS: Mapping[str, Mapping[str, int | None]] = MappingProxyType(
    {
        "flat": {},
        "ivf": {"lists": None, "probes": 64, "seed": 0},
        "hnsw": {"neighbours": 64, "ef_construction": 200, "ef_search": 128},
    }
)
# faiss divides by the logarithm of the neighbours.
_LOWEST = {"seed": 0, "neighbours": 2}


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """Kind and settings of an index; one that is left out, or None, has its default.

    Attributes:
        kind: ``flat`` looks at every item, and is exact. ``ivf`` puts items into lists by k-means, and looks at the
            lists nearest a query. ``hnsw`` walks a graph of neighbours.
        lists: of ``ivf``, by default 4 sqrt(N) of N items.
        probes: lists of ``ivf`` that a query looks at [64]; all of them make it exact.
        seed: of the k-means of ``ivf`` [0].
        neighbours: of an item in the graph of ``hnsw`` [64]. With 32, recall is far lower where norms vary.
        ef_construction: candidates of ``hnsw`` while an item is added [200].
        ef_search: candidates of ``hnsw`` during a search [128]; more find more, and take longer.
        threads: while building and adding. With one, the same vectors make the same index; with several, ``hnsw``'s
            graph depends on which comes first. Searches take faiss's own number, and find the same with any.

    Raises:
        ValueError: an unknown kind, a setting of another kind, or a number that is too low.
    """

    kind: Kind = "flat"
    lists: int | None = None
    probes: int | None = None
    seed: int | None = None
    neighbours: int | None = None
    ef_construction: int | None = None
    ef_search: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"no kind of index '{self.kind}'.{did_you_mean(str(self.kind), get_args(Kind))}")
        for name, value in self._given().items():
            self._check(name, value)

    def resolved(self, num_items: int) -> IndexOptions:
        """Return these options with every setting of their kind filled in, for an index that is built of N items.

        Raises:
            ValueError: more lists than items.
        """
        missing = [name for name in _DEFAULTS[self.kind] if getattr(self, name) is None]
        filled: dict[str, Any] = {name: _DEFAULTS[self.kind][name] for name in missing}
        if self.kind == "ivf" and self.lists is None:
            filled["lists"] = min(num_items, math.ceil(4 * math.sqrt(num_items)))
        if self.lists is not None and self.lists > num_items:
            raise ValueError(
                f"lists is {self.lists} for {num_items} items; give at most one list an item, or leave it out"
            )
        return dataclasses.replace(self, **filled)

    def _given(self) -> dict[str, object]:
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name != "kind" and value is not None}

    def _check(self, name: str, value: object) -> None:
        if name != "threads" and name not in _DEFAULTS[self.kind]:
            [owner] = [kind for kind, settings in _DEFAULTS.items() if name in settings]
            raise ValueError(f"{name} is a setting of kind '{owner}', and the kind is '{self.kind}'; leave it out")
        lowest = _LOWEST.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise ValueError(f"{name} must be a whole number of at least {lowest}, found {value!r}")


def parse_options(words: Sequence[str]) -> IndexOptions:
    """Return the options that ``key=value`` words give.

    Raises:
        ValueError: a word is no setting, or a value no whole number.

    Example:
        >>> parse_options(["kind=hnsw", "ef_search=256"]).ef_search
        256
    """
    known = [field.name for field in dataclasses.fields(IndexOptions)]
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            example = "expected key=value, such as kind=hnsw." if not equals else "no such setting."
            raise ValueError(f"{word}: {example}{did_you_mean(name, known)}")
        if name != "kind" and not value.isdecimal():
            raise ValueError(f"{word}: expected a whole number")
        found[name] = value if name == "kind" else int(value)
    return IndexOptions(**found)
