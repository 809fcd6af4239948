"""Bad values found while reading: collected by column over many row groups and files, reported all at once."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

_FILES_NAMED = 3


@dataclasses.dataclass
class Problem:
    """Bad values of one kind in one column.

    Attributes:
        where: reader and column.
        what: the kind, as it follows a count.
        advice: what to do.
        count: bad values.
        low: smallest of them, where they are numbers.
        high: largest of them.
        files: that hold them, in order.
    """

    where: str
    what: str
    advice: str
    count: int = 0
    low: float | None = None
    high: float | None = None
    files: dict[str, None] = dataclasses.field(default_factory=dict)

    def describe(self) -> str:
        """Return all of it as one line."""
        names = list(self.files)
        files = ", ".join(names[:_FILES_NAMED]) + (
            f" and {len(names) - _FILES_NAMED} more files" if len(names) > _FILES_NAMED else ""
        )
        found = "" if self.low is None else f" (found {self.low} to {self.high})"
        if self.low == self.high and found:
            found = f" (found {self.low})"
        return f"{self.where} of {files}: {self.count:,} {self.what}{found}. {self.advice}"


class Problems:
    """What is wrong with the rows read so far.

    Example:
        >>> problems = Problems()
        >>> for file in ("a.parquet", "b.parquet"):
        ...     problems.file = file
        ...     problems.add("label 'click'", "null labels", count=2, advice="Set data.null_labels to mask.")
        >>> print(problems)
        label 'click' of a.parquet, b.parquet: 4 null labels. Set data.null_labels to mask.
    """

    def __init__(self) -> None:
        self.file = ""
        self.tolerated: collections.Counter[str] = collections.Counter()
        """Bad ids and null labels that the config tolerates, by feature or task."""
        self._problems: dict[tuple[str, str], Problem] = {}

    def add(
        self, where: str, what: str, *, count: int, advice: str, low: float | None = None, high: float | None = None
    ) -> None:
        """Record ``count`` bad values of the current file, the smallest and largest of them, and what to do."""
        problem = self._problems.setdefault((where, what), Problem(where, what, advice))
        problem.count += count
        problem.files[self.file] = None
        if low is not None and high is not None:
            problem.low = low if problem.low is None else min(low, problem.low)
            problem.high = high if problem.high is None else max(high, problem.high)

    def raise_if_any(self) -> None:
        """Raise ``ValueError`` with every problem found, one a line."""
        if self._problems:
            raise ValueError(str(self))

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._problems.values())

    def __bool__(self) -> bool:
        return bool(self._problems)

    def __str__(self) -> str:
        return "\n".join(problem.describe() for problem in self)
