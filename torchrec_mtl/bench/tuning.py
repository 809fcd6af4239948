"""The course of one model on one data set: trials one after the other, then all seeds with the best trial's settings.

A plan asks for runs and is sent their rows, so it need not know whether they were trained now or stand in the log; the
same rows make it ask for the same runs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from torchrec_mtl.bench.pairs import Pair, section
from torchrec_mtl.bench.rows import Key, Log, Phase, Row
from torchrec_mtl.bench.suite import Dimension, Suite, as_word
from torchrec_mtl.config.run import RunConfig

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Job:
    """One training to be made.

    Attributes:
        pair: whose.
        phase: trial or seed.
        number: of the trial, or of the seed, from 1.
        of: how many there are.
        words: settings tried, on those of the pair.
        run: merged config, without what the runner sets.
        key: of its row.
    """

    pair: Pair
    phase: Phase
    number: int
    of: int
    words: tuple[str, ...]
    run: RunConfig
    key: Key

    @property
    def label(self) -> str:
        """What progress calls it."""
        what = f"trial {self.number}/{self.of}" if self.phase == "trial" else f"seed {self.key[1]}"
        return f"{self.pair.data.name}, {self.pair.model.name}, {what}"


@dataclass
class Outcome:
    """What is known of a pair.

    Attributes:
        pair: the pair.
        trials: rows of the trials so far.
        seeds: rows of the seeds so far, empty before tuning is over.
        best: row of the best trial, once tuning is over.
        finished: whether all runs are there.
    """

    pair: Pair
    trials: list[Row] = field(default_factory=list)
    seeds: list[Row] = field(default_factory=list)
    best: Row | None = None
    finished: bool = False


Plan = Generator[list[Job], list[Row], None]


def plan(suite: Suite, outcome: Outcome) -> Plan:
    """Yield the runs needed next, be sent their rows, and note them in ``outcome``."""
    pair, count = outcome.pair, num_trials(suite, outcome.pair)
    tuner = _Tuner(pair, suite.tuning_seed, count)
    tried: dict[str, tuple[str, ...]] = {}
    for number in range(1, count + 1):
        words = tuner.propose()
        job = _job(pair, "trial", number, count, words, suite.tuning_seed)
        [row] = yield [job]
        tuner.tell(row.score if row.status == "ok" else None)
        tried.setdefault(row.config, words)
        outcome.trials.append(row)
    scored = [row for row in outcome.trials if row.status == "ok" and row.score is not None]
    if scored:
        outcome.best = max(scored, key=lambda row: -math.inf if row.score is None else row.score)
        words, total = tried[outcome.best.config], len(suite.seeds)
        outcome.seeds = yield [_job(pair, "seed", i + 1, total, words, s) for i, s in enumerate(suite.seeds)]
    outcome.finished = True


def num_trials(suite: Suite, pair: Pair) -> int:
    """Return the budget; one where there is nothing to search."""
    return suite.trials if pair.search else 1


def num_runs(suite: Suite, pair: Pair) -> int:
    """Return how many trainings a pair takes."""
    return num_trials(suite, pair) + len(suite.seeds)


def _job(pair: Pair, phase: Phase, number: int, of: int, words: tuple[str, ...], seed: int) -> Job:
    run = pair.configure(words)
    split = "validation" if phase == "trial" else "test"
    return Job(pair, phase, number, of, words, run, (pair.fingerprint(run), seed, split))


class _Tuner:
    """Proposes settings: the config's own first, then some at random, then by the tree of Parzen estimators."""

    def __init__(self, pair: Pair, seed: int, count: int) -> None:
        # The same model meets the same proposals whatever else is in the suite.
        text = f"{seed}/{pair.data.name}/{pair.model.name}".encode()
        stable = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest())
        sampler = optuna.samplers.TPESampler(seed=stable, n_startup_trials=max(2, count // 2))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space = {d.name: _distribution(d) for d in pair.search}
        self._is_first, self._open = True, None  # type: tuple[bool, optuna.trial.Trial | None]
        self._own = {d.name: _own_value(d, section(pair.run, d.name)) for d in pair.search}

    def propose(self) -> tuple[str, ...]:
        """Return the words of the next trial."""
        if self._is_first:
            self._is_first = False
            if None in self._own.values():
                return ()  # outside the space: the search cannot be told of it
            self._study.enqueue_trial({name: value for name, value in self._own.items() if value is not None})
            self._open = self._study.ask(self._space)
            return ()
        self._open = self._study.ask(self._space)
        return tuple(_word(name, value, self._space[name]) for name, value in self._open.params.items())

    def tell(self, score: float | None) -> None:
        """Take the score of what was proposed last; None: it failed."""
        if self._open is None:
            return
        if score is None:
            self._study.tell(self._open, state=TrialState.FAIL)
        else:
            self._study.tell(self._open, score)
        self._open = None


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices:
        return CategoricalDistribution([json.dumps(choice) for choice in dimension.choices])
    low, high = dimension.low, dimension.high
    assert low is not None
    assert high is not None
    if dimension.is_whole:
        return IntDistribution(int(low), int(high), log=dimension.log)
    return FloatDistribution(low, high, log=dimension.log)


def _own_value(dimension: Dimension, value: object) -> Any:  # noqa: ANN401
    """Return the config's own value as the search would give it; None where it lies outside."""
    if dimension.choices:
        return next((json.dumps(choice) for choice in dimension.choices if choice == value), None)
    inside = (
        isinstance(value, (int, float))
        and dimension.low is not None
        and dimension.high is not None
        and dimension.low <= value <= dimension.high
        and (not dimension.is_whole or value == int(value))
    )
    return value if inside else None


def _word(name: str, value: Any, distribution: BaseDistribution) -> str:  # noqa: ANN401
    if isinstance(distribution, CategoricalDistribution):
        return f"{name}={value}"
    if isinstance(distribution, FloatDistribution):
        return as_word(name, float(f"{value:.4g}"))
    return as_word(name, value)


def replay(suite: Suite, outcome: Outcome, log: Log) -> None:
    """Bring an outcome to where the rows known lead it, training nothing."""
    course = plan(suite, outcome)
    jobs = next(course)
    while True:
        found = [row for row in (log.find(job.key) for job in jobs) if row is not None]
        if len(found) < len(jobs):
            outcome.seeds = found if jobs[0].phase == "seed" else []
            return
        try:
            jobs = course.send(found)
        except StopIteration:
            return
