"""Bodies of /score and /retrieve to what a predictor and an index take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.serving.server.bodies import kind_of
from torchrec_mtl.serving.server.candidates import Columns, of_columns, of_rows
from torchrec_mtl.serving.server.columns import ServedColumn
from torchrec_mtl.serving.server.limits import Limits
from torchrec_mtl.serving.server.problems import Problem, refuse
from torchrec_mtl.serving.server.values import of_one_type, problem_of

Place = Literal["user", "context", "candidates"]

SIDES: Mapping[Place, tuple[str, ...]] = {
    "user": ("user",),
    "context": ("context",),
    "candidates": ("item", "context"),
}
"""Whose columns a field of the body takes."""
DEFAULT_K = 100

_PLACES = {"user": "user", "item": "candidates", "context": "context, or in candidates"}
_MOST = 20  # problems that an answer lists
_LONGEST = 60  # characters of what was sent that an answer repeats
_HEAVIEST = 1e6  # far from where sums of float32 overflow


@dataclass(frozen=True)
class ScoreQuestion:
    """One user and B candidates.

    Attributes:
        user: a value a column of the user's side.
        candidates: [B] values a column of the items' and the context's; at least one column, unless there is none.
        rows: B.
    """

    user: Mapping[str, Any]
    candidates: Mapping[str, list[Any]]
    rows: int


@dataclass(frozen=True)
class RetrieveQuestion:
    """One user who wants k items.

    Attributes:
        user: a value a column of the user's side.
        k: how many items.
        weights: task -> how much it counts; 1 for others.
        seen: items that are left out.
    """

    user: Mapping[str, Any]
    k: int
    weights: Mapping[str, float]
    seen: Sequence[Any]


class Reader:
    """Reads questions to one model.

    Args:
        columns: that it reads.
        tasks: that it has.
        limits: of requests.
    """

    def __init__(self, columns: Sequence[ServedColumn], tasks: Sequence[str], limits: Limits) -> None:
        self._columns = {column.name: column for column in columns}
        self._of = {place: {c.name for c in columns if {*c.sides} & {*sides}} for place, sides in SIDES.items()}
        self._tasks = tuple(tasks)
        self._limits = limits
        # Candidates without any value are told by a column of nulls.
        self._filler = next((column.name for column in columns if {*column.sides} - {"user"}), None)

    def score(self, document: Mapping[str, Any], *, ranges: bool = False) -> ScoreQuestion:
        """Return what a body of /score asks.

        Args:
            document: the body.
            ranges: look at how large numbers are, too; else that is left to the predictor.

        Raises:
            RequestError: 422, with what is wrong.
        """
        problems = unknown_fields(document, ("user", "candidates", "context"), required=("user", "candidates"))
        user = self._values(document, "user", problems, ranges)
        context = self._values(document, "context", problems, ranges)
        candidates, rows = self._candidates(document.get("candidates", ()), problems, ranges)
        problems += [
            Problem(f"context.{name}", "given in candidates too; give it in one of the two")
            for name in sorted(context.keys() & candidates.keys())
        ]
        refuse(problems[:_MOST])
        candidates.update((name, [value] * rows) for name, value in context.items())
        if not candidates and self._filler is not None:
            candidates[self._filler] = [None] * rows
        columns = {name: of_one_type(self._columns[name], values) for name, values in candidates.items()}
        return ScoreQuestion(self._of_one_type(user), columns, rows)

    def retrieve(self, document: Mapping[str, Any], *, ranges: bool = False) -> RetrieveQuestion:
        """Return what a body of /retrieve asks; as ``score``.

        Raises:
            RequestError: 422, with what is wrong.
        """
        problems = unknown_fields(document, ("user", "k", "weights", "seen"), required=("user",))
        user = self._values(document, "user", problems, ranges)
        k = document.get("k", min(DEFAULT_K, self._limits.max_k))
        if type(k) is not int or not 1 <= k <= self._limits.max_k:
            problems.append(Problem("k", f"expected an integer of 1 to {self._limits.max_k}, found {_shown(k)}"))
        weights = self._weights(document.get("weights", {}), problems)
        seen = document.get("seen", [])
        if type(seen) is not list or len(seen) > self._limits.max_seen:
            found = f"{len(seen)} of them" if type(seen) is list else kind_of(seen)
            problems.append(Problem("seen", f"expected a list of at most {self._limits.max_seen} ids, found {found}"))
        refuse(problems[:_MOST])
        return RetrieveQuestion(self._of_one_type(user), k, weights, seen)

    def _of_one_type(self, user: Mapping[str, Any]) -> dict[str, Any]:
        return {name: of_one_type(self._columns[name], [value])[0] for name, value in user.items()}

    def _values(
        self, document: Mapping[str, Any], place: Place, problems: list[Problem], ranges: bool
    ) -> dict[str, Any]:
        """Return a value a column, of a user or the context."""
        values = document.get(place, {})
        if type(values) is not dict:
            problems.append(Problem(place, f"expected an object of columns, found {kind_of(values)}"))
            return {}
        self._strange(values.keys() - self._of[place], place, problems)
        for name in values.keys() & self._of[place]:
            found = problem_of(self._columns[name], [values[name]], ranges=ranges)
            problems += [] if found is None else [Problem(f"{place}.{name}", found[1])]
        return values

    def _candidates(self, given: object, problems: list[Problem], ranges: bool) -> tuple[Columns, int]:
        """Return columns [B], and B."""
        if isinstance(given, list):
            columns, strange, rows = of_rows(given, self._of["candidates"], problems)
        elif isinstance(given, dict):
            columns, strange, rows = of_columns(given, self._of["candidates"], problems)
        else:
            if given != ():  # that it is missing is said elsewhere
                wanted = "a list of objects, or an object of lists"
                problems.append(Problem("candidates", f"expected {wanted}, found {kind_of(given)}"))
            return {}, 0
        self._strange(strange, "candidates", problems)
        if not 1 <= rows <= self._limits.max_candidates and not problems:
            wanted = f"1 to {self._limits.max_candidates} candidates"
            problems.append(Problem("candidates", f"expected {wanted}, found {rows or 'none'}"))
            return {}, rows
        for name, values in columns.items():
            if (found := problem_of(self._columns[name], values, ranges=ranges)) is not None:
                row, message = found
                at = f"candidates[{row}].{name}" if isinstance(given, list) else f"candidates.{name}[{row}]"
                problems.append(Problem(at, message))
        return columns, rows

    def _strange(self, names: Iterable[str], place: Place, problems: list[Problem]) -> None:
        """Say what columns that do not belong to a place are."""
        for name in sorted(names)[:_MOST]:
            at = f"{place}.{name[:_LONGEST]}"
            if name in self._columns:
                side = self._columns[name].sides[0]
                problems.append(Problem(at, f"a column of the {side}; give it in {_PLACES[side]}"))
            else:
                hint = did_you_mean(name[:_LONGEST], self._of[place] or self._columns)
                problems.append(Problem(at, f"no such column.{hint}"))

    def _weights(self, given: object, problems: list[Problem]) -> dict[str, float]:
        if not isinstance(given, dict):
            problems.append(Problem("weights", f"expected an object, task: number, found {kind_of(given)}"))
            return {}
        for task, value in given.items():
            if len(problems) >= _MOST:
                break  # it is refused in any case
            at = f"weights.{task[:_LONGEST]}"
            if task not in self._tasks:
                problems.append(Problem(at, f"no such task.{did_you_mean(task[:_LONGEST], self._tasks)}"))
            elif type(value) not in {int, float} or abs(value) > _HEAVIEST:
                problems.append(Problem(at, f"expected a number of at most 1e6, found {_shown(value)}"))
        return given


def unknown_fields(document: Mapping[str, Any], known: Sequence[str], required: Sequence[str] = ()) -> list[Problem]:
    """Say which fields of a body are strange, and which are missing."""
    strange = sorted(document.keys() - known)[:_MOST]
    found = [Problem(name[:_LONGEST], f"no such field.{did_you_mean(name[:_LONGEST], known)}") for name in strange]
    return found + [Problem(name, "missing") for name in required if name not in document]


def _shown(value: object) -> str:
    text = f"{kind_of(value)} {value!r}"
    return text if len(text) <= _LONGEST else kind_of(value)
