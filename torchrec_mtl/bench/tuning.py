"""The course of one model on one data set: trials one after the other, then all seeds with the best trial's settings.

A plan asks for runs and is sent their rows, so it need not know whether they were trained now or stand in the log; the
same rows make it ask for the same runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna

from torchrec_mtl.bench.machine import machine, versions
from torchrec_mtl.bench.pairs import Pair
from torchrec_mtl.bench.proposals import Proposer
from torchrec_mtl.bench.rows import Key, Log, Phase, Row
from torchrec_mtl.bench.scores import score
from torchrec_mtl.bench.suite import Suite
from torchrec_mtl.config.run import RunConfig


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

    def row(self, found: Mapping[str, Any]) -> Row:
        """Return the row of what the worker left."""
        pair = self.pair
        return Row(
            data=pair.data.name,
            model=pair.model.name,
            role=pair.model.role,
            phase=self.phase,
            seed=self.key[1],
            overrides=pair.words(self.words),
            config=self.key[0],
            split=self.key[2],
            status="failed" if "error" in found else "ok",
            score=score(pair.score, self.run.tasks, found.get("metrics", {})),
            machine=machine(),
            versions=versions(),
            **{key: value for key, value in found.items() if key != "validation"},
        )


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


Plan = Generator[Sequence[Job], list[Row], None]


def plan(suite: Suite, outcome: Outcome) -> Plan:
    """Yield the runs needed next, be sent their rows, and note them in ``outcome``."""
    pair, count = outcome.pair, num_trials(suite, outcome.pair)
    proposer = _proposer(pair, suite.tuning_seed, count)
    tried: dict[str, tuple[str, ...]] = {}
    for number in range(1, count + 1):
        proposal = proposer.propose()
        words = proposal.words
        job = _job(pair, "trial", number, count, words, suite.tuning_seed)
        [row] = yield [job]
        proposer.tell(proposal, [row.score] if row.status == "ok" and row.score is not None else None)
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


def _proposer(pair: Pair, seed: int, count: int) -> Proposer:
    """Propose some at random, then by the tree of Parzen estimators."""
    # The same model meets the same proposals whatever else is in the suite.
    text = f"{seed}/{pair.data.name}/{pair.model.name}".encode()
    stable = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest())
    sampler = optuna.samplers.TPESampler(seed=stable, n_startup_trials=max(2, count // 2))
    return Proposer(pair.run, pair.search, sampler, ["maximize"])


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
