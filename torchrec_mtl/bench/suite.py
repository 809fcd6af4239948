"""What a suite's YAML holds: data sets, models, their settings and search spaces, seeds, and the budget."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from torchrec_mtl.bench.named_yaml import read_named
from torchrec_mtl.bench.space import Dimension, Space, as_word, named
from torchrec_mtl.config.base import Config, Name
from torchrec_mtl.config.explain import shown
from torchrec_mtl.config.names import did_you_mean


def _words(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected settings of the run, such as {{train.epochs: 5}} (found {shown(value)})")
    for key, item in value.items():
        if not isinstance(key, str):
            raise ValueError(f"the key {shown(key)} is no text; put it in quotes")
        if isinstance(item, (datetime.date, datetime.datetime)):
            raise ValueError(f"{key}: YAML reads {shown(item)} as a date; put it in quotes")
    return tuple(as_word(key, item) for key, item in value.items())


Settings = Annotated[tuple[str, ...], BeforeValidator(_words)]


class DataSet(Config):
    """A run's YAML whose bottom, head, losses, and rule the models replace."""

    name: Name
    config: Name
    """Path of the run's YAML, from the current folder."""
    set: Settings = ()
    """Settings for all models on this data set."""
    score: Name | None = None
    """In place of the suite's ``score``."""


class Model(Config):
    """One row of the tables."""

    name: Name
    set: Settings = ()
    """Settings of the run; they win over those of the data set."""
    search: Space = ()
    """Added to the suite's ``search``; wins where both name a setting."""
    unsearched: tuple[Name, ...] = ()
    """Settings of the suite's ``search`` that this model has not."""
    role: Literal["baseline", "system"] = "system"
    """The best baseline is what all others are compared with."""
    only: tuple[Name, ...] = ()
    """Data sets that it runs on; by default all."""
    except_: tuple[Name, ...] = ()
    """``except`` in YAML: data sets that it does not run on."""

    def runs_on(self, data: str) -> bool:
        """Return whether it is to run on a data set."""
        return (not self.only or data in self.only) and data not in self.except_


class Suite(Config):
    """The whole comparison."""

    name: Name
    data: Annotated[tuple[DataSet, ...], BeforeValidator(named), Field(min_length=1)]
    models: Annotated[tuple[Model, ...], BeforeValidator(named), Field(min_length=1)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Of the final trainings: initial values, order of rows, noise."""
    trials: PositiveInt = 6
    """Trainings to tune each model on each data set; the first takes the settings as they are."""
    tuning_seed: NonNegativeInt = 1000
    """Seed of every trial, and of the search."""
    search: Space = ()
    """Settings that every model searches."""
    score: Name = "auto"
    """What tuning maximises on the validation data: ``task/metric``, or ``auto``: mean of AUC and Gini over tasks."""
    processes: PositiveInt | None = None
    """Runs at once, one thread each; by default one a core."""
    timeout_s: PositiveFloat | None = None
    """Longest time of one run, seconds; one that takes longer is stopped and counts as failed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = [f"seeds: {seed} is given twice" for seed in {s for s in self.seeds if self.seeds.count(s) > 1}]
        if self.tuning_seed in self.seeds:
            found.append(f"tuning_seed: {self.tuning_seed} is one of seeds; the best trial would be chosen by its luck")
        known = [d.name for d in self.data]
        for model in self.models:
            for key, names in (("only", model.only), ("except", model.except_)):
                found += [
                    f"models.{model.name}.{key}: no data set is called '{name}'.{did_you_mean(name, known)}"
                    for name in names
                    if name not in known
                ]
            searched = [d.name for d in self.search]
            found += [
                f"models.{model.name}.unsearched: '{name}' is not in search.{did_you_mean(name, searched)}"
                for name in model.unsearched
                if name not in searched
            ]
            if not any(model.runs_on(name) for name in known):
                found.append(f"models.{model.name}: only and except leave it no data set; remove it")
        if found:
            raise ValueError("\n".join(found))
        return self

    def search_of(self, model: Model) -> tuple[Dimension, ...]:
        """Return the suite's dimensions that the model has, and its own, each setting once."""
        both = {d.name: d for d in self.search if d.name not in model.unsearched} | {d.name: d for d in model.search}
        return tuple(both.values())


def load_suite(path: str | Path) -> Suite:
    """Read a suite.

    Raises:
        ConfigError: with all problems of the file itself; those of its runs are found by ``check_pairs``.
    """
    return read_named(path, Suite, what="a suite", needs="name, data, and models")
