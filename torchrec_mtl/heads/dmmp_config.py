"""What a YAML says of ``head: {type: dmmp}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from torchrec_mtl.config.features import Side
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.base import HeadConfig
from torchrec_mtl.heads.chain import chain_problems
from torchrec_mtl.heads.distillation import Distillation
from torchrec_mtl.heads.layers import Norm
from torchrec_mtl.heads.student import SIDES, Gate, Layout


class DMMPConfig(HeadConfig):
    """Options of ``head: {type: dmmp}``."""

    type: str = "dmmp"
    teacher: Literal["cgc", "mmoe", "shared_bottom", "none"] = "cgc"
    """cgc: customized gate control; mmoe: all experts shared; shared_bottom; none: the student learns alone."""
    shared_experts: PositiveInt = 3
    """Of the teacher."""
    task_experts: PositiveInt = 3
    """Of the teacher, for each task."""
    expert: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (256, 128)
    """Widths of each expert's layers."""
    tower: tuple[PositiveInt, ...] = (64,)
    """Widths of the layers of the teacher's towers, one a task."""
    entire_space: bool = True
    """The teacher learns products such as pCTCVR over all rows; off: each conditional, on rows with the task before."""
    layout: Layout = "item_per_task"
    """Of the student. item_per_task: one user tower, an item tower a task; user_per_task: the other way round, for a
    smaller index; two_towers: one each, so that all tasks rank items alike."""
    student: tuple[PositiveInt, ...] = (256, 128)
    """Widths of the hidden layers of the student's towers."""
    dim: PositiveInt = 64
    """Width of a tower's vector."""
    gate: Gate = "user"
    """How much each task counts in the retrieval score. user: by the user's features; global: learned, one for all;
    even: all the same."""
    gate_tower: tuple[PositiveInt, ...] = (64,)
    """Widths of the gate's hidden layers."""
    normalize: bool = False
    """Vectors of length 1; then give a temperature of 0.05 to 0.2."""
    temperature: PositiveFloat = 1.0
    """Inner products are divided by it."""
    distill: Distillation = "kl"
    """What the student learns from the teacher's logits."""
    distill_weight: NonNegativeFloat = 1.0
    """0: nothing is distilled."""
    detach: bool = True
    """No gradient of what is distilled reaches the teacher."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the training over which the weight of what is distilled grows from 0."""
    fuse_weight: NonNegativeFloat = 1.0
    """Of the loss of the retrieval score itself, against the mean of the tasks' labels; it trains the gate."""
    in_batch_weight: NonNegativeFloat = 0.0
    """Of a softmax over the items of the batch for each task's rows with label 1, corrected for how often each item is
    in one (log Q); 0: none. Needs ``retrieval.item``."""
    training: Literal["joint", "two_stage"] = "joint"
    """two_stage: the teacher and the tables first, alone; then the student, and neither they nor the bottom change
    (given a sparse optimizer that leaves rows without gradient alone, such as rowwise_adagrad)."""
    teacher_epochs: PositiveInt = 1
    """two_stage: of the teacher; ``train.epochs`` are the student's."""
    norm: Norm = "none"

    @property
    def needs_candidates(self) -> str:
        """In-batch negatives do."""
        why = "head.in_batch_weight: rows are negatives of one another only where the config says what their items are"
        return f"{why}; name their column in retrieval.item, or set it to 0" if self.in_batch_weight else ""

    @property
    def retrieves(self) -> bool:
        """It does."""
        return True

    @property
    def needs_sides(self) -> tuple[Side, ...]:
        """A tower reads one side alone."""
        return SIDES

    @property
    def trains_alone(self) -> bool:
        """The teacher does, and the softmax, and the retrieval score."""
        return self.teacher != "none" or self.in_batch_weight > 0 or self.fuse_weight > 0

    @property
    def distills(self) -> bool:
        """There is a teacher, and the student learns from it."""
        return self.teacher != "none" and self.distill_weight > 0

    def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
        """All tasks must be binary, a chain over one space, and no option without effect."""
        found = [f"{name}: without effect with {why}; remove it" for name, why in self._idle().items()]
        if other := [task.name for task in tasks if task.kind != "binary"]:
            found.append(
                f"dmmp retrieves by probabilities, and {', '.join(other)} is a regression; make it binary (such as "
                "above a threshold), or use another head"
            )
        elif len(tasks) > 1:
            found += chain_problems("dmmp", tasks, ordered=False)
            if self.fuse_weight == 0 and self.gate != "even":
                found.append(f"fuse_weight: nothing else trains gate: {self.gate}; raise it, or take gate: even")
        elif self.teacher != "none" and getattr(tasks[0].loss, "pos_weight", 1.0) != 1.0:
            found.append("dmmp's teacher learns probabilities, which pos_weight changes; remove pos_weight")
        names = {task.name for task in tasks}
        found += [
            f"dmmp writes predictions called {name}, and a task has that name; rename the task"
            for name in sorted(names & {"score", *(f"{other}_teacher" for other in names)})
        ]
        return found

    def _idle(self) -> dict[str, str]:
        """Return option -> why it does nothing, of those that are not at their defaults."""
        of_teacher = ("shared_experts", "task_experts", "expert", "tower", "entire_space", "training", "teacher_epochs")
        of_distillation = ("distill", "distill_weight", "detach", "warmup")
        idle = dict.fromkeys((*of_teacher, *of_distillation), "teacher: none") if self.teacher == "none" else {}
        if self.teacher == "shared_bottom":
            idle |= dict.fromkeys(("shared_experts", "task_experts"), "teacher: shared_bottom")
        if self.teacher != "none" and self.distill_weight == 0:
            idle |= dict.fromkeys(("distill", "detach", "warmup"), "distill_weight: 0")
        if self.training == "joint":
            idle["teacher_epochs"] = idle.get("teacher_epochs", "training: joint")
        else:
            idle["detach"] = "training: two_stage"
        if self.gate != "user":
            idle["gate_tower"] = f"gate: {self.gate}"
        fields = type(self).model_fields
        return {name: why for name, why in idle.items() if getattr(self, name) != fields[name].default}
