"""What a space's YAML holds: settings to search, objectives, seeds, and how the search goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from torchrec_mtl.bench.named_yaml import read_named
from torchrec_mtl.bench.space import Space
from torchrec_mtl.config.base import Config, Name
from torchrec_mtl.config.explain import shown

_MOST_SEEDS = 100


def _wanted(value: object) -> object:
    """Turn ``{task: metric}``, or ``{task: [metric, ...]}``, into one entry a task."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a metric a task, such as {{click: auc}} (found {shown(value)})")
    return [{"task": str(task), "metrics": [m] if isinstance(m, str) else m} for task, m in value.items()]


def _weighed(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a number an objective, such as {{click: 1, watch_time: 2}} (found {shown(value)})")
    return [{"name": str(name), "weight": weight} for name, weight in value.items()]


def _counted(value: object) -> object:
    """Take a number of seeds as the first so many."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if not 0 < value <= _MOST_SEEDS:
        raise ValueError(f"expected how many seeds, 1 to {_MOST_SEEDS}, or a list of them (found {value})")
    return tuple(range(value))


class Wanted(Config):
    """What is asked of one task."""

    task: Name
    metrics: Annotated[tuple[Name, ...], Field(min_length=1)]


class Weight(Config):
    """How much an objective counts."""

    name: Name
    weight: PositiveFloat


class TuneSpace(Config):
    """The whole of a space."""

    search: Annotated[Space, Field(min_length=1)]
    """Settings of the run, each with low and high, or with choices."""
    objectives: Annotated[tuple[Wanted, ...], BeforeValidator(_wanted)] = ()
    """Task -> metric, or several; by default one a trained task: auc, nrmse, and recall where a corpus is searched."""
    weights: Annotated[tuple[Weight, ...], BeforeValidator(_weighed)] = ()
    """Objective -> weight: their weighted sum is searched for, and there is no front."""
    seeds: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_counted), Field(min_length=1)] = (0, 1, 2)
    """Each point of the front is trained with all of them; a number stands for the first so many."""
    tuning_seed: NonNegativeInt = 1000
    """Seed of every trial, and of the search."""
    startup: PositiveInt = 10
    """Trials before results have a say: the config as it is, then at random."""
    round: PositiveInt = 4
    """Trials proposed together; they know the results of all rounds before, and no more of them run at once."""
    front: PositiveInt = 8
    """Most points of the front that are trained with all seeds."""
    timeout_s: PositiveFloat | None = None
    """Longest time of one run, seconds; one that takes longer is stopped and counts as failed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = [f"seeds: {s} is given twice" for s in dict.fromkeys(s for s in self.seeds if self.seeds.count(s) > 1)]
        if self.tuning_seed in self.seeds:
            found.append(f"tuning_seed: {self.tuning_seed} is one of seeds; the front would be chosen by its luck")
        if found:
            raise ValueError("\n".join(found))
        return self


def load_space(path: str | Path) -> TuneSpace:
    """Read a space.

    Raises:
        ConfigError: with all problems of the file itself; those with a run's config are found by ``open_study``.
    """
    return read_named(path, TuneSpace, what="a space", needs="search, such as {search: {optim.dense.lr: {...}}}")
