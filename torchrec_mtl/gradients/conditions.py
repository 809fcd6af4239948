"""What several rules ask of the tasks, in a user's words."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec_mtl.config.base import did_you_mean
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.gradients.base import RuleConfig
from torchrec_mtl.registry import resolve


class PositiveLossesConfig(RuleConfig):
    """Options of a rule that takes ratios or logarithms of losses, or learns a variance by them."""

    def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
        """No loss may be negative."""
        return [
            f"'{task.name}' has loss '{task.loss.type}', which may be negative, and the rule wants losses above 0; "
            "use another loss, or a rule that needs none, such as pcgrad"
            for task in tasks
            if _may_be_negative(task)
        ]


def _may_be_negative(task: TaskConfig) -> bool:
    try:
        loss = resolve("loss", task.loss.type)
    except ValueError:  # said elsewhere
        return False
    return bool(loss.may_be_negative)


def core_problems(core: str, tasks: Sequence[TaskConfig]) -> list[str]:
    """Return what keeps a task from being the core that others are compared with."""
    names = [task.name for task in tasks]
    if core not in names:
        return [f"core: no task '{core}'.{did_you_mean(core, names)}"]
    if len(names) < 2:
        return ["a gradient rule needs two tasks or more, found one; use gradient: {type: sum}"]
    return []
