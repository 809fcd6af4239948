"""The course of a study: trials in rounds, then the points of the front with every seed.

Both ask for runs and are sent their rows, so that they need not know whether these were trained now or stand in the
log; the same rows make them ask for the same runs.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.samplers import TPESampler

from torchrec_mtl.bench.machine import machine, versions
from torchrec_mtl.bench.proposals import Proposal, Proposer
from torchrec_mtl.bench.rows import Key, LogOf, Phase
from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.noise import stable_seed
from torchrec_mtl.tuning.rows import TuneRow
from torchrec_mtl.tuning.study import Study


@dataclass(frozen=True)
class Job:
    """One training to be made.

    Attributes:
        study: whose.
        phase: trial or seed.
        number: of the trial, from 1.
        label: what progress calls it.
        words: settings tried.
        run: merged config, without what the runner sets.
        key: of its row.
    """

    study: Study
    phase: Phase
    number: int
    label: str
    words: tuple[str, ...]
    run: RunConfig
    key: Key

    def row(self, found: Mapping[str, Any]) -> TuneRow:
        """Return the row of what the worker left; an objective that is not defined is a failure."""
        outcome = dict(found)
        if self.phase == "trial":
            outcome["validation"] = outcome.get("metrics", {})
        values = outcome.setdefault("validation", {})
        gains, lacking = self.study.gains(values), self.study.undefined(values)
        if "error" not in outcome and lacking:
            outcome["error"] = f"{', '.join(lacking)}: not defined on the validation rows (one class alone, or no row?)"
        return TuneRow(
            data=str(self.study.config),
            model=self.run.head.type,
            role="" if self.words else "untuned",
            phase=self.phase,
            seed=self.key[1],
            overrides=(*self.study.words, *self.words),
            config=self.key[0],
            split=self.key[2],
            status="failed" if "error" in outcome else "ok",
            score=gains[0] if gains is not None and len(gains) == 1 else None,
            machine=machine(),
            versions=versions(),
            said=self.study.said(values),
            number=self.number,
            **outcome,
        )


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        number: from 1; the first is the config as it is.
        words: settings tried.
        row: what came of it.
        gains: what the search maximises; None where it failed.
    """

    number: int
    words: tuple[str, ...]
    row: TuneRow
    gains: tuple[float, ...] | None


@dataclass
class Course:
    """What is known of the trials.

    Attributes:
        trials: those of the rounds that are over.
        known: trials of a round that is not over, by number.
        optuna: optuna's study of them.
    """

    trials: list[Trial] = field(default_factory=list)
    known: dict[int, TuneRow] = field(default_factory=dict)
    optuna: optuna.Study | None = None


Plan = Generator[Sequence[Job], list[TuneRow], None]


def trials_plan(study: Study, count: int, course: Course) -> Plan:
    """Yield the trials needed next, a round at a time; be sent their rows, and note them in ``course``."""
    proposer = _proposer(study)
    course.optuna = proposer.study
    while len(course.trials) < count:
        first = len(course.trials) + 1
        size = study.space.startup if first == 1 else study.space.round
        size = min(size, count - first + 1)
        proposals = {first + i: proposer.propose() for i in range(size)}
        made = {number: _trial_job(study, number, count, proposal) for number, proposal in proposals.items()}
        jobs = [job for job in made.values() if isinstance(job, Job)]
        rows = dict(zip((job.number for job in jobs), (yield jobs), strict=True))
        for number, job in made.items():
            row = rows[number] if isinstance(job, Job) else job
            gains = study.gains(row.validation) if row.status == "ok" else None
            proposer.tell(proposals[number], gains)
            course.trials.append(Trial(number, proposals[number].words, row, gains))


def _proposer(study: Study) -> Proposer:
    seed = stable_seed("tune", study.space.tuning_seed) % (1 << 32)
    # A round is proposed before any of it has a result: the liar keeps its proposals apart.
    sampler = TPESampler(seed=seed, n_startup_trials=study.space.startup, constant_liar=True)
    num_goals = len(study.objectives) if study.weights is None else 1
    return Proposer(study.run, study.space.search, sampler, ["maximize"] * num_goals)


def _trial_job(study: Study, number: int, count: int, proposal: Proposal) -> Job | TuneRow:
    """Return the job of a proposal, or the row of its failure where the settings do not go together."""
    try:
        run = study.configure(proposal.words)
    except ConfigError as error:
        return TuneRow(
            data=str(study.config),
            model=study.run.head.type,
            role="",
            phase="trial",
            seed=study.space.tuning_seed,
            overrides=(*study.words, *proposal.words),
            config="",
            split="validation",
            status="failed",
            number=number,
            error=f"ConfigError: {'; '.join(error.problems)}",
        )
    label = f"trial {number}/{count}" + ("" if proposal.words else " (the config as it is)")
    return Job(study, "trial", number, label, proposal.words, run, study.key(run, "trial"))


def seed_jobs(study: Study, trial: Trial) -> list[Job]:
    """Return the trainings of a trial's settings with every seed."""
    run = study.configure(trial.words)
    config, _, split = study.key(run, "seed")
    what = f"trial {trial.number}" if trial.words else "the config as it is"
    return [
        Job(study, "seed", trial.number, f"{what}, seed {seed}", trial.words, run, (config, seed, split))
        for seed in study.space.seeds
    ]


def seeds_plan(jobs: Sequence[Job]) -> Plan:
    """Yield all of them at once."""
    yield jobs


def replay(study: Study, count: int, log: LogOf[TuneRow]) -> Course:
    """Return the course as far as the rows known lead, training nothing."""
    course = Course()
    plan = trials_plan(study, count, course)
    jobs = next(plan, None)
    while jobs is not None:
        rows = {job.number: log.find(job.key) for job in jobs}
        found = {number: row for number, row in rows.items() if row is not None}
        if len(found) < len(rows):
            course.known = found
            break
        try:
            jobs = plan.send(list(found.values()))
        except StopIteration:
            break
    return course
