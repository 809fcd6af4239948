"""What is searched for: metrics of tasks on the validation rows, each with the way in which it is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchrec_mtl.bench.scores import Values, direction, score_problem, trained
from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.tuning.space import TuneSpace

_DEFAULT = {"binary": "auc", "regression": "nrmse"}


@dataclass(frozen=True)
class Objective:
    """One metric of one task.

    Attributes:
        task: its name.
        metric: its name.
    """

    task: str
    metric: str

    @property
    def name(self) -> str:
        """``task/metric``."""
        return f"{self.task}/{self.metric}"

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return direction(self.metric)

    def of(self, values: Values) -> float | None:
        """Return its value; None where it is not defined."""
        value = values.get(self.task, {}).get(self.metric)
        return value if value is not None and math.isfinite(value) else None


def objectives_of(space: TuneSpace, run: RunConfig) -> tuple[Objective, ...]:
    """Return what the space asks for, or by default one objective a trained task."""
    if space.objectives:
        return tuple(Objective(wanted.task, metric) for wanted in space.objectives for metric in wanted.metrics)
    return tuple(Objective(task.name, _default(task, run)) for task in trained(run.tasks))


def _default(task: TaskConfig, run: RunConfig) -> str:
    return _DEFAULT[task.kind] if run.retrieval is None else f"recall@{run.retrieval.ks[0]}"


def objective_problems(space: TuneSpace, run: RunConfig) -> list[str]:
    """Return what is wrong with objectives and weights for this run."""
    found = []
    retrieval = () if run.retrieval is None else run.retrieval.metrics
    for wanted in space.objectives:
        where = f"objectives.{wanted.task}"
        for metric in wanted.metrics:
            problem = score_problem(f"{wanted.task}/{metric}", run.tasks, retrieval)
            if problem is not None:
                found.append(f"{where}: {problem.removeprefix('score: ')}")
            elif metric == "gauc" and run.data.group is None:
                found.append(f"{where}: gauc needs groups; name their column in data.group")
            elif wanted.metrics.count(metric) > 1:
                found.append(f"{where}: {metric} is given twice; remove one")
    if found or not space.weights:
        return list(dict.fromkeys(found))
    objectives = objectives_of(space, run)
    weighed, found = weights_by_name([(w.name, w.weight) for w in space.weights], objectives, "weights.{}")
    missing = [o.name for o in objectives if o.name not in weighed]
    if missing and not found:
        found = [f"weights: none for {', '.join(missing)}; give each objective one, or leave it out of objectives"]
    return found


def weights_by_name(
    given: Sequence[tuple[str, float]], objectives: Sequence[Objective], place: str
) -> tuple[dict[str, float], list[str]]:
    """Return ``task/metric`` -> weight, and what is wrong.

    Args:
        given: task, where it has one objective, or task/metric; and its weight.
        objectives: known.
        place: of the problem, with {} for the name.
    """
    found: dict[str, float] = {}
    problems = []
    by_task: dict[str, list[str]] = {}
    for objective in objectives:
        by_task.setdefault(objective.task, []).append(objective.name)
    short = {task: names[0] for task, names in by_task.items() if len(names) == 1}
    known = {**{o.name: o.name for o in objectives}, **short}
    for name, weight in given:
        where = place.format(name)
        if name in known and known[name] not in found:
            found[known[name]] = weight
        elif name in known:
            problems.append(f"{where}: {known[name]} has a weight already; remove one")
        elif name in by_task:
            problems.append(f"{where}: this task has {len(by_task[name])} objectives; say {' or '.join(by_task[name])}")
        else:
            problems.append(f"{where}: no objective is called '{name}'.{did_you_mean(name, known)}")
    return found, problems


def undefined(objectives: Sequence[Objective], values: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Return the names of the objectives that these metrics lack."""
    return [o.name for o in objectives if o.of(values) is None]
