"""Every model on every data set as a merged config; what is wrong with any of them is found before one is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from torchrec_mtl.bench.identity import files_mark, fingerprint, short_hash
from torchrec_mtl.bench.scores import score_problem
from torchrec_mtl.bench.space import Dimension, as_word
from torchrec_mtl.bench.suite import DataSet, Model, Suite
from torchrec_mtl.config.base import did_you_mean
from torchrec_mtl.config.checks import refused_in_runs
from torchrec_mtl.config.load import ConfigError, load_config
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.splits import missing_files, open_data
from torchrec_mtl.training.run import prepare_data

_OURS = ("run_dir", "train.seed", "train.references", "data.test")


@dataclass(frozen=True)
class Pair:
    """One model on one data set.

    Attributes:
        data: the data set.
        model: the model.
        run: merged config, checked.
        search: settings to tune.
        score: rule of what tuning maximises.
        files_mark: hash of the data files' names, sizes, and row groups; empty where files are still to be made.
    """

    data: DataSet
    model: Model
    run: RunConfig
    search: tuple[Dimension, ...]
    score: str
    files_mark: str = field(compare=False)

    def words(self, extra: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the overrides on the data set's YAML."""
        return (*self.data.set, *self.model.set, *extra)

    def configure(self, extra: Sequence[str] = ()) -> RunConfig:
        """Return the merged config with further overrides."""
        return load_config(self.data.config, self.words(extra)) if extra else self.run

    def fingerprint(self, run: RunConfig) -> str:
        """Return a hash of all that decides a run's result but its seed: a changed YAML, or data, is another run."""
        return fingerprint(run, self.files_mark)


@dataclass(frozen=True)
class Checked:
    """A suite's pairs: those that can run, and why the others cannot."""

    pairs: tuple[Pair, ...]
    problems: Mapping[tuple[str, str], Sequence[str]]


def check_pairs(suite: Suite, console: Console, *, prepare: bool) -> Checked:
    """Merge and check the configs of all pairs, both ends of each searched setting included.

    Args:
        suite: the suite.
        console: takes messages while data are made.
        prepare: make data that are missing, as their configs' ``data.prepare`` says; otherwise only look.
    """
    pairs: list[Pair] = []
    problems: dict[tuple[str, str], Sequence[str]] = {}
    for data in suite.data:
        try:
            plain = load_config(data.config)
        except ConfigError as error:
            problems |= {(data.name, m.name): [f"{data.config}: {p}" for p in error.problems] for m in suite.models}
            continue
        if prepare:
            prepare_data(plain, console)
        opened: dict[str, str] = {}
        for model in suite.models:
            if not model.runs_on(data.name):
                continue
            try:
                pairs.append(_pair(suite, data, model, opened))
            except ConfigError as error:
                problems[data.name, model.name] = error.problems
    return Checked(tuple(pairs), problems)


def _pair(suite: Suite, data: DataSet, model: Model, opened: dict[str, str]) -> Pair:
    words, search, rule = (*data.set, *model.set), suite.search_of(model), data.score or suite.score
    found = [
        f"{word.partition('=')[0]}: the bench sets this itself; remove it"
        for word in words
        if word.partition("=")[0] in _OURS
    ]
    found += [f"search.{d.name}: the bench sets this itself; remove it" for d in search if d.name in _OURS]
    try:
        run = load_config(data.config, words)
    except ConfigError as error:
        raise ConfigError([*found, *error.problems]) from None
    found += refused_in_runs(run)
    found += _needs(run, rule)
    for dimension in search:
        found += _end_problems(data, words, dimension)
    if found:
        raise ConfigError(list(dict.fromkeys(found)))
    return Pair(data, model, run, search, rule, _mark(run, opened))


def _needs(run: RunConfig, rule: str) -> Iterable[str]:
    for key, use in (("eval", "tuning is scored on its rows"), ("test", "the tables show its metrics")):
        if getattr(run.data, key) is None:
            yield f"data.{key}: missing; {use}"
    problem = score_problem(rule, run.tasks, () if run.retrieval is None else run.retrieval.metrics)
    if problem is not None:
        yield problem


def _end_problems(data: DataSet, words: Sequence[str], dimension: Dimension) -> list[str]:
    problems: list[str] = []
    for value in dimension.ends():
        try:
            load_config(data.config, [*words, as_word(dimension.name, value)])
        except ConfigError as error:
            problems += [f"search.{dimension.name}, {value}: {p}" for p in error.problems]
    return problems


def _mark(run: RunConfig, opened: dict[str, str]) -> str:
    """Check the columns of the data, once for all models that read the same, and return the files' mark."""
    if missing_files(run) and run.data.prepare is not None:
        return ""
    read = short_hash(str([section.model_dump(mode="json") for section in (run.data, run.features, *run.tasks)]))
    if read not in opened:
        opened[read] = files_mark(open_data(run))
    return opened[read]


def require(checked: Checked, wanted: Iterable[tuple[str, str]], source: str) -> None:
    """Raise where a wanted pair cannot run; what all models have in common is said once.

    Raises:
        ConfigError: with the problems of all wanted pairs.
    """
    wanted = set(wanted)
    by_text: dict[tuple[str, str], list[str]] = {}
    for (data, model), texts in checked.problems.items():
        for text in texts if (data, model) in wanted else ():
            by_text.setdefault((data, text), []).append(model)
    lines = []
    for (data, text), models in by_text.items():
        everyone = {m for d, m in wanted if d == data}
        whose = "every model" if len(models) > 1 and set(models) == everyone else ", ".join(models)
        lines.append(f"{whose} on {data}: {text}")
    if lines:
        raise ConfigError(lines, source=source)


def selected(suite: Suite, data: Sequence[str], models: Sequence[str], source: str) -> set[tuple[str, str]]:
    """Return the names (data set, model) of the pairs to run.

    Args:
        suite: the suite.
        data: names of data sets; empty: all.
        models: names of models; empty: all.
        source: of the suite, for the error.

    Raises:
        ConfigError: a name is not known, or nothing is left.
    """
    problems = []
    for option, names, known in (
        ("--data", data, [d.name for d in suite.data]),
        ("--models", models, [m.name for m in suite.models]),
    ):
        problems += [f"{option} {n}: not in the suite.{did_you_mean(n, known)}" for n in names if n not in known]
    pairs = {
        (d.name, m.name)
        for d in suite.data
        for m in suite.models
        if m.runs_on(d.name) and (not data or d.name in data) and (not models or m.name in models)
    }
    if not problems and not pairs:
        problems.append("--data and --models leave nothing to run: the models' only and except forbid it")
    if problems:
        raise ConfigError(problems, source=source)
    return pairs
