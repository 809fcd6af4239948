"""What a study came to: the points trained with all seeds, which of them no other beats, and the one chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from torchrec_mtl.bench.fronts import beats, unbeaten
from torchrec_mtl.bench.statistics import Difference, Estimate, estimate, paired_difference
from torchrec_mtl.tuning.choose import Choice, choose
from torchrec_mtl.tuning.course import Trial
from torchrec_mtl.tuning.geometry import spread
from torchrec_mtl.tuning.objectives import Objective
from torchrec_mtl.tuning.rows import TuneRow
from torchrec_mtl.tuning.study import Study

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Point:
    """A trial whose settings were trained with every seed.

    Attributes:
        trial: the trial.
        rows: one a seed.
    """

    trial: Trial
    rows: tuple[TuneRow, ...]

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        return f"trial {self.trial.number}" if self.trial.words else "untuned"

    @property
    def complete(self) -> bool:
        """Whether no seed failed."""
        return all(row.status == "ok" for row in self.rows)

    def values(self, objective: Objective, split: Split) -> dict[int, float]:
        """Return seed -> value, of the seeds that have one."""
        found = {row.seed: objective.of(row.validation if split == "validation" else row.metrics) for row in self.rows}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, objective: Objective, split: Split) -> Estimate:
        """Return mean and interval over seeds."""
        return estimate(list(self.values(objective, split).values()))

    def difference(self, other: Point, objective: Objective, split: Split) -> Difference:
        """Return this minus the other, paired by the seeds that both have."""
        ours, theirs = self.values(objective, split), other.values(objective, split)
        seeds = [seed for seed in ours if seed in theirs]
        return paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])

    def gains(self, study: Study) -> tuple[float, ...]:
        """Return the mean over seeds of what the search maximises, on the validation rows."""
        found = [study.gains(row.validation) for row in self.rows]
        return tuple(float(x) for x in np.mean([gains for gains in found if gains is not None], axis=0))


@dataclass(frozen=True)
class Result:
    """The whole.

    Attributes:
        study: the study.
        trials: all of them.
        points: those trained with all seeds; the untuned config first, where it went well.
        on_front: how many trials no other beats.
        choice: the rule.
        chosen: what it takes; None where no point has all its seeds.
    """

    study: Study
    trials: tuple[Trial, ...]
    points: tuple[Point, ...]
    on_front: int
    choice: Choice
    chosen: Point | None

    @property
    def split(self) -> Split:
        """Rows on which tuned and untuned are compared at the end."""
        return "validation" if self.study.run.data.test is None else "test"

    @property
    def untuned(self) -> Point | None:
        """The config as it is; None where its trial failed."""
        return next((point for point in self.points if not point.trial.words), None)

    def beaten_by(self, point: Point) -> list[Point]:
        """Return the points that beat this one in the means over seeds, on the validation rows."""
        if not point.complete:
            return []
        gains = point.gains(self.study)
        return [p for p in self.points if p.complete and beats(p.gains(self.study), gains)]


def front_of(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other beats, each config once."""
    done = _once([trial for trial in trials if trial.gains is not None])
    return [done[i] for i in unbeaten([trial.gains or () for trial in done])]


def _once(trials: Sequence[Trial]) -> list[Trial]:
    """Return the first trial of each config."""
    found: dict[str, Trial] = {}
    for trial in trials:
        found.setdefault(trial.row.config, trial)
    return list(found.values())


def finalists(study: Study, trials: Sequence[Trial], choice: Choice) -> list[Trial]:
    """Return the trials to be trained with every seed: the config as it is, some of the front, and the one asked for.

    Raises:
        ValueError: there is none, or the one asked for failed.
    """
    front = front_of(trials)
    if not front:
        first = next((trial.row.error for trial in trials), "")
        raise ValueError(
            f"all {len(trials)} trials failed, so that there is nothing to choose from; the first: {first}"
        )
    kept = [front[i] for i in spread([trial.gains or () for trial in front], study.space.front)]
    asked = [trial for trial in trials if trial.number == choice.rule]
    if any(trial.gains is None for trial in asked):
        raise ValueError(f"--choose {choice.rule}: this trial failed: {asked[0].row.error}; choose another")
    untuned = [trial for trial in trials if not trial.words and trial.gains is not None]
    return sorted(_once([*untuned, *kept, *asked]), key=lambda trial: trial.number)


def conclude(study: Study, trials: Sequence[Trial], points: Sequence[Point], choice: Choice) -> Result:
    """Choose among the points, by their means over seeds on the validation rows; test rows have no say."""
    whole = [point for point in points if point.complete]
    chosen: Point | None = None
    if isinstance(choice.rule, int):
        config = trials[choice.rule - 1].row.config  # another trial may be of the same
        chosen = next((point for point in whole if point.trial.row.config == config), None)
    elif whole:
        names = [o.name for o in study.objectives]
        weights = [choice.prefer.get(name, 1.0) for name in names] if study.weights is None else [1.0]
        chosen = whole[choose([point.gains(study) for point in whole], choice.rule, weights)]
    return Result(study, tuple(trials), tuple(points), len(front_of(trials)), choice, chosen)
