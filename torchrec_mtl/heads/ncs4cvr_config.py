"""What a YAML says of ``head: {type: ncs4cvr}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.base import HeadConfig
from torchrec_mtl.heads.chain import chain_problems


class NCS4CVRConfig(HeadConfig):
    """Options of ``head: {type: ncs4cvr}``."""

    type: str = "ncs4cvr"
    shared: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (512, 256, 128)
    """Widths of the shared layers."""
    masks: Literal["own", "one", "random", "dense"] = "own"
    """own: learned by task; one: learned for all tasks together, and chosen by the sum of their losses; random: as own,
    then shuffled within each layer; dense: full ones, without rounds. The last three are for comparison."""
    density: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the connections left after all rounds."""
    rounds: PositiveInt = 4
    """Times that a task's network is pruned, always by the same rate."""
    round_epochs: PositiveInt = 1
    """Passes over the training data before each pruning."""
    threshold: Literal["global", "layer"] = "global"
    """Which weights are the smallest: of all layers together, or of each layer."""
    grow: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a round's connections that come back from among those pruned before, by their gradients (RigL)."""
    choose: Literal["best", "any", "last"] = "best"
    """A task's round. best: the best pruned one on the evaluation data; any: the dense one may win too; last."""
    choose_by: Literal["metric", "loss"] = "metric"
    """metric: AUC of binary tasks, RMSE of regressions; loss: the task's."""
    rewind: Literal["all", "dense", "none"] = "all"
    """Set back after a round. all: tables and optimizers too; dense: all but the tables and theirs; none: nothing."""
    warmup_steps: NonNegativeInt = 0
    """Training rewinds to the end of so many steps (at most ``train.epochs``) of all tasks together, without masks;
    0: to the start."""
    batches: Literal["joint", "alternate"] = "joint"
    """After the rounds. joint: every batch trains all tasks; alternate: each trains one, in turn."""
    mask_updates: bool = True
    """alternate: a batch leaves connections that its task does not have alone; False: Adam's moments go on moving
    them, as in the authors' code."""
    chain: bool = False
    """The binary tasks are a chain as in ESMM: a task's loss is that of the product of probabilities up to it."""

    @property
    def alternates(self) -> bool:
        """Batches may take turns."""
        return self.batches == "alternate"

    @property
    def needs_evaluation(self) -> str:
        """Rounds are chosen by their scores on the evaluation data."""
        if self.masks == "dense" or self.choose == "last":
            return ""
        return "ncs4cvr chooses rounds by their scores on data.eval; name its files there, or set head.choose: last"

    def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
        """Each task must be trainable alone, and no option may be without effect."""
        found = [f"{name}: without effect with {why}; remove it" for name, why in self._idle().items()]
        found += chain_problems("ncs4cvr with chain: true", tasks) if self.chain else []
        found += [
            f"batches: alternate never trains {task.name} and {task.order.below} in one step, so that their order "
            "cannot act; use joint, or remove order"
            for task in tasks
            if task.order is not None and self.alternates
        ]
        if self.masks == "dense":
            return found
        if (idle := [task.name for task in tasks if task.weight == 0]) and self.masks != "one":
            found.append(f"{', '.join(idle)} has weight 0, and its rounds would train nothing; give it a weight")
        gated = [task.name for task in tasks if task.gate is not None]
        if gated and self.needs_evaluation and self.masks != "one" and self.choose_by == "metric":
            found.append(
                f"choose_by: the RMSE of {', '.join(gated)} needs the probability of its gate, which its rounds "
                "do not train; set choose_by: loss"
            )
        return found

    def _idle(self) -> dict[str, str]:
        """Return option -> why it does nothing, of those that are not at their defaults."""
        of_rounds = ("density", "rounds", "round_epochs", "threshold", "grow", "choose", "choose_by", "rewind")
        of_masks = (*of_rounds, "warmup_steps", "mask_updates")
        idle = dict.fromkeys(of_masks, "masks: dense") if self.masks == "dense" else {}
        if self.rounds == 1:
            idle["grow"] = "rounds: 1, before which nothing was pruned"
        if self.choose == "last":
            idle["choose_by"] = "choose: last"
        if self.masks == "one":
            idle["choose_by"] = "masks: one, which goes by the sum of the losses"
        if self.batches == "joint":
            idle["mask_updates"] = "batches: joint"
        fields = type(self).model_fields
        return {name: why for name, why in idle.items() if getattr(self, name) != fields[name].default}
