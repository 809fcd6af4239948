"""A config and a space, checked against each other before anything is trained."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from torchrec_mtl.bench.identity import files_mark, fingerprint
from torchrec_mtl.bench.rows import Key, Phase
from torchrec_mtl.bench.scores import Values
from torchrec_mtl.bench.space import Dimension, as_word
from torchrec_mtl.config.checks import refused_in_runs
from torchrec_mtl.config.load import ConfigError, load_config
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.splits import missing_files, open_data
from torchrec_mtl.training.run import prepare_data
from torchrec_mtl.tuning.objectives import Objective, objective_problems, objectives_of, undefined, weights_by_name
from torchrec_mtl.tuning.space import TuneSpace, load_space

_OURS = ("run_dir", "train.seed", "train.references", "data.train", "data.eval", "data.test", "init_from")
_MOST_CORNERS = 128  # each takes some milliseconds to check


@dataclass(frozen=True)
class Study:
    """What is searched, on what, and for what.

    Attributes:
        config: path of the run's YAML.
        words: overrides on it.
        run: the merged config, "untuned".
        space: what is searched, and how.
        objectives: one or more.
        weights: one an objective, where their weighted sum is searched for.
        files_mark: hash of the data files; empty where they are still to be made.
    """

    config: Path
    words: tuple[str, ...]
    run: RunConfig
    space: TuneSpace
    objectives: tuple[Objective, ...]
    weights: tuple[float, ...] | None
    files_mark: str

    def configure(self, words: Sequence[str]) -> RunConfig:
        """Return the merged config with further overrides.

        Raises:
            ConfigError: they do not go together.
        """
        return load_config(self.config, [*self.words, *words]) if words else self.run

    def key(self, run: RunConfig, phase: Phase) -> Key:
        """Return what names a trial of a config, or its training with the first seed."""
        if phase == "trial":
            return fingerprint(run, self.files_mark), self.space.tuning_seed, "validation"
        return fingerprint(run, self.files_mark), self.space.seeds[0], "validation" if run.data.test is None else "test"

    def gains(self, values: Values) -> tuple[float, ...] | None:
        """Return what the search maximises: one number an objective, or their weighted sum; None: not defined."""
        found = [None if (v := o.of(values)) is None else o.sign * v for o in self.objectives]
        numbers = tuple(v for v in found if v is not None)
        if len(numbers) < len(found):
            return None
        return numbers if self.weights is None else (sum(w * v for w, v in zip(self.weights, numbers, strict=True)),)

    def said(self, values: Values) -> str:
        """Return the objectives' values in words."""
        found = [(o, o.of(values)) for o in self.objectives]
        return ", ".join(f"{o.task} {o.metric} {'undefined' if v is None else f'{v:.4f}'}" for o, v in found)

    def undefined(self, values: Values) -> list[str]:
        """Return the names of objectives that have no value."""
        return undefined(self.objectives, values)


def open_study(config: Path, words: Sequence[str], space_file: Path, console: Console, *, prepare: bool) -> Study:
    """Read a config and a space, and check them together, all choices and ends of the space included.

    Args:
        config: the run's YAML.
        words: overrides on it.
        space_file: the space's YAML.
        console: takes messages while data are made.
        prepare: make data that are missing, as ``data.prepare`` says.

    Raises:
        ConfigError: with all problems of both files.
    """
    space, run = _read_both(config, words, space_file)
    problems = [f"search.{d.name}: tuning sets this itself; remove it" for d in space.search if d.name in _OURS]
    problems += refused_in_runs(run)
    if run.data.eval is None:
        problems.append("data.eval: missing in the config; trials are scored on its rows")
    problems += objective_problems(space, run)
    problems += list(_end_problems(config, words, [d for d in space.search if d.name not in _OURS]))
    problems = problems or _corner_problems(config, words, space.search)
    if problems:
        raise ConfigError(problems, source=f"{config} with {space_file}")
    if prepare:
        prepare_data(run, console)
    mark = "" if missing_files(run) and run.data.prepare is not None else files_mark(open_data(run))
    objectives = objectives_of(space, run)
    weights, _ = weights_by_name([(w.name, w.weight) for w in space.weights], objectives, "")
    summed = tuple(weights[o.name] for o in objectives) if weights else None
    return Study(config, tuple(words), run, space, objectives, summed, mark)


def _read_both(config: Path, words: Sequence[str], space_file: Path) -> tuple[TuneSpace, RunConfig]:
    errors: list[ConfigError] = []
    space: TuneSpace | None = None
    run: RunConfig | None = None
    try:
        space = load_space(space_file)
    except ConfigError as error:
        errors.append(error)
    try:
        run = load_config(config, words)
    except ConfigError as error:
        errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if space is None or run is None:
        both = zip((space_file, config), errors, strict=True)
        raise ConfigError([f"{file}: {p}" for file, error in both for p in error.problems], source="torchrec-mtl tune")
    return space, run


def _end_problems(config: Path, words: Sequence[str], space: Sequence[Dimension]) -> Iterator[str]:
    """Check each setting alone: both ends, or every choice; what all of them have in common is said once."""
    for dimension in space:
        found: dict[str, list[str]] = {}
        for value in dimension.ends():
            for problem in _problems(config, [*words, as_word(dimension.name, value)]):
                found.setdefault(problem, []).append(str(value))
        for problem, values in found.items():
            which = "" if len(values) == len(dimension.ends()) else f", {', '.join(values)}"
            yield f"search.{dimension.name}{which}: {problem}"


def _corner_problems(config: Path, words: Sequence[str], space: Sequence[Dimension]) -> list[str]:
    """Check ends and choices together: all of them, or some drawn, where there are many."""
    ends = [[as_word(d.name, value) for value in d.ends()] for d in space]
    total = 1
    for choices in ends:
        total *= len(choices)
    if total <= _MOST_CORNERS:
        corners = list(itertools.product(*ends))
    else:
        draw = random.Random(0)
        corners = [tuple(draw.choice(choices) for choices in ends) for _ in range(_MOST_CORNERS)]
    found: dict[str, tuple[str, ...]] = {}
    for corner in corners:
        for problem in _problems(config, [*words, *corner]):
            found.setdefault(problem, corner)
    return [f"search, {' '.join(corner)} together: {problem}" for problem, corner in found.items()]


def _problems(config: Path, words: Sequence[str]) -> list[str]:
    try:
        return refused_in_runs(load_config(config, words))
    except ConfigError as error:
        return error.problems
