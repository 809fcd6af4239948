"""Runs that differ in their seed alone are one thing, with a mean and an interval."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torchrec_mtl.bench.statistics import Estimate, estimate
from torchrec_mtl.report_page.read import Run
from torchrec_mtl.report_page.svg import COLOURS, DASHES

_ENDING = re.compile(r"[-_. =]*([-_. =](seed|s))?[-_. =]*$")  # of what folders of several seeds have in common


@dataclass(frozen=True)
class Group:
    """Runs of one config.

    Attributes:
        name: how the page calls it; no other group has it.
        runs: one a seed, or one.
        number: from 0, in the order given.
    """

    name: str
    runs: tuple[Run, ...]
    number: int

    @property
    def first(self) -> Run:
        """One of them, for what all have in common."""
        return self.runs[0]

    @property
    def colour(self) -> int:
        """Of its curves, in all charts."""
        return self.number % COLOURS + 1

    @property
    def dash(self) -> str:
        """Of its curves, in all charts."""
        return DASHES[self.number % len(DASHES)]

    @property
    def tasks(self) -> Mapping[str, str]:
        """Name -> kind of the tasks."""
        return self.first.tasks

    def by_seed(self, task: str, metric: str) -> dict[str, float]:
        """Return seed -> value of a metric of the last evaluation, where it is defined."""
        found = {str(run.seed): run.metrics.get(task, {}).get(metric) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}

    def mean_of(self, task: str, metric: str) -> Estimate | None:
        """Return mean and interval of a metric; None where no run has it."""
        values = list(self.by_seed(task, metric).values())
        return estimate(values) if values else None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs of one config together, in the order of their first one.

    Raises:
        ValueError: a folder is given twice.
    """
    places = [run.folder.resolve() for run in runs]
    if twice := [str(run.folder) for run, place in zip(runs, places) if places.count(place) > 1]:
        raise ValueError(f"{' and '.join(twice)} are the same run; name each once")
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = config_key(run.config)
        seeds = [str(other.seed) for other in found.get((key, ""), [])]
        found.setdefault((key, "" if str(run.seed) not in seeds else str(run.folder)), []).append(run)
    names = _distinct([_name(of_one) for of_one in found.values()], list(found.values()))
    return [Group(name, tuple(of_one), i) for i, (name, of_one) in enumerate(zip(names, found.values(), strict=True))]


def config_key(config: Mapping[str, Any]) -> str:
    """Return the same text for configs that differ in seed and folder alone."""
    rest = {key: value for key, value in config.items() if key != "run_dir"}
    if isinstance(rest.get("train"), dict):
        rest["train"] = {key: value for key, value in rest["train"].items() if key != "seed"}
    return json.dumps(rest, sort_keys=True, default=str)


def _name(runs: Sequence[Run]) -> str:
    """Return what the folders' names begin with, or the first of them."""
    names = [run.name for run in runs]
    if len(names) == 1:
        return names[0]
    return _ENDING.sub("", names[0][: same_start(names)]) or names[0]


def same_start(texts: Sequence[str]) -> int:
    """Return the number of letters that all texts begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts)))


def _distinct(names: Sequence[str], groups: Sequence[Sequence[Run]]) -> list[str]:
    """Tell groups of one name apart by their first folder."""
    return [
        name if names.count(name) == 1 else f"{name} ({runs[0].folder})"
        for name, runs in zip(names, groups, strict=True)
    ]
