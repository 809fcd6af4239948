"""DMMP (Yi et al., Knowledge-Based Systems 284, 2024): a multi-task ranking teacher, and retrieval towers it teaches.

Of the paper only the abstract is known to us. Certain are the teacher (shared and task experts under customised gates,
pCTR and pCTCVR over the entire space), the student of three towers with a user-preference gate, and that the losses are
weighed adaptively. All forms are reconstructions from its ancestors, or ours: `DMMP` says which.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.features import Features, FeaturesSpec
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput, Phase, Term
from torchrec_mtl.heads.chain import chain_logits
from torchrec_mtl.heads.distillation import distillation
from torchrec_mtl.heads.dmmp_config import DMMPConfig
from torchrec_mtl.heads.in_batch import in_batch_softmax
from torchrec_mtl.heads.student import Encoded, Student
from torchrec_mtl.heads.teacher import Teacher
from torchrec_mtl.heads.watched import WatchedGate
from torchrec_mtl.widths import in_full

# Shapes: B batch, K tasks, D representation.


class DMMP(Head):
    """A ranking teacher of all features, and a retrieval student whose score is one inner product.

    The tasks' logits are the student's, ``s_k``: what is deployed is what metrics are of. Losses, all of them balanced
    by the gradient rule:

    * each task's own, of ``s_k`` (label y_k of ALL rows: for a conversion that of pCTCVR, our choice);
    * ``dmmp/teacher/TASK``: of the teacher's products ``p_1 ... p_k``, as in ESMM (Ma et al., SIGIR 2018);
    * ``dmmp/distill/TASK``: of ``s_k`` against the teacher's product (Bernoulli KL; DMTL; our choice of form);
    * ``dmmp/in_batch/TASK``, if asked for: a softmax over the items of the batch (`in_batch_softmax`);
    * ``dmmp/fused``: of ``s = sum_k g_k s_k`` against the mean label; without it nothing would train the gate (ours).

    Teacher and student read the same tables; the student's towers read one side each, the gate users alone. ``predict``
    writes ``score`` = s and ``TASK_teacher`` beside the tasks.

    Args:
        in_features: D.
        outputs: task -> number of logits, in causal order; a sequence of names means one each.
        config: options.
        features: what the towers may read, with their sides.

    Raises:
        ValueError: a loss wants more than one logit, or a side has no features.
    """

    Config = DMMPConfig
    reads_features = True
    shares_histories = True

    def __init__(
        self,
        in_features: int,
        outputs: Mapping[str, int] | Sequence[str],
        config: DMMPConfig | None = None,
        *,
        features: FeaturesSpec,
    ) -> None:
        """See the class."""
        config = config or DMMPConfig()
        super().__init__(in_features, outputs, config)
        self.options, self.tasks = config, tuple(self.outputs)
        if wide := [task for task, width in self.outputs.items() if width != 1]:
            raise ValueError(f"dmmp wants one logit a task, but the losses of {wide} ask for more; use bce")
        self.teacher: Teacher | None = None
        if config.teacher != "none":
            self.teacher = Teacher(
                config.teacher,
                in_features,
                self.tasks,
                expert=config.expert,
                shared_experts=config.shared_experts,
                task_experts=config.task_experts,
                tower=config.tower,
                norm=config.norm,
            )
        self.student = Student(
            features,
            self.num_tasks,
            layout=config.layout,
            sizes=config.student,
            dim=config.dim,
            gate=config.gate,
            gate_sizes=config.gate_tower,
            normalize=config.normalize,
            temperature=config.temperature,
            norm=config.norm,
        )
        self.of_teacher = tuple(f"dmmp/teacher/{task}" for task in self.tasks) if self.teacher is not None else ()
        self.of_distillation = tuple(f"dmmp/distill/{task}" for task in self.tasks) if config.distills else ()
        self.of_fusion = ("dmmp/fused",) if config.fuse_weight else ()
        self.of_batch = tuple(f"dmmp/in_batch/{task}" for task in self.tasks) if config.in_batch_weight else ()
        self.of_student = (*self.of_distillation, *self.of_fusion, *self.of_batch)
        self.term_names = (*self.of_teacher, *self.of_student)
        self._warmth, self._stage = 0.0 if config.warmup else 1.0, ""

    @classmethod
    def create(
        cls,
        in_features: int,
        outputs: Mapping[str, int],
        config: HeadConfig,
        *,
        features: FeaturesSpec,
        binary: Sequence[str],
    ) -> Self:
        """Return the head for these features."""
        assert isinstance(config, DMMPConfig)
        return cls(in_features, outputs, config, features=features)

    def forward(self, representation: Representation) -> HeadOutput:
        """Return the student's logits; in evaluation also the vectors that an index needs."""
        features = representation.features
        assert features is not None, "dmmp reads features"
        encoded: Encoded = self.student(_detached(features) if self._in_second_stage else features)
        scores = encoded.scores()
        fused = encoded.fused(scores)
        hidden, predictions = {"scores": scores, "fused": fused}, {"score": fused}
        if self.teacher is not None:
            conditional = self.teacher(representation)
            products, _ = chain_logits(conditional)
            hidden |= {"conditional": conditional, "products": products}
            predictions |= {f"{task}_teacher": p for task, p in zip(self.tasks, products.sigmoid(), strict=True)}
        if self.of_batch:
            hidden["in_batch"] = self._in_batch(encoded, features) if self.training else torch.zeros_like(scores)
        vectors = {} if self.training else {"item": encoded.item_vectors(), "query": encoded.query_vectors()}
        logits = dict(zip(self.tasks, scores, strict=True))
        return HeadOutput(logits=logits, predictions=predictions, hidden=hidden, vectors=vectors)

    def terms(self, output: HeadOutput, labels: Tensor, weights: Tensor) -> Mapping[str, Term]:
        """Return the losses of the teacher, of what is distilled, and of the retrieval score."""
        y, w, found = labels.T, weights.T, dict[str, Term]()
        if self.of_teacher:
            found |= _terms(self.of_teacher, *self._teacher_losses(output, y, w))
        if self.of_distillation:
            products = output.hidden["products"]
            target = products.detach() if self.options.detach or self._in_second_stage else products
            values = distillation(self.options.distill, output.hidden["scores"], target)
            # The gradient warms up, not the value: rules that compare losses with their first ones would be misled.
            warmed = torch.lerp(values.detach(), values, self._warmth)
            found |= _terms(self.of_distillation, warmed * self.options.distill_weight, w)
        for name in self.of_fusion:
            value = F.binary_cross_entropy_with_logits(output.hidden["fused"], y.mean(0), reduction="none")
            found[name] = Term(value * self.options.fuse_weight, w.amin(0))
        if self.of_batch:
            found |= _terms(self.of_batch, output.hidden["in_batch"] * self.options.in_batch_weight, w * (y > 0))
        return found

    def for_inference(self) -> Self:
        """See `Head`: without the teacher, whose predictions are not deployed."""
        made = copy.deepcopy(self)
        made.teacher = None
        return made

    def phases(self, epochs: int) -> Sequence[Phase]:
        """Return one phase, or the teacher's and the student's."""
        if self.options.training == "joint" or self.teacher is None:
            return super().phases(epochs)
        students = (*self.tasks, *self.of_student)
        return (
            Phase("teacher", self.options.teacher_epochs, tasks=self.of_teacher, trial=True, masked=True),
            Phase("student", epochs, tasks=students, masked=True),
        )

    def begin_phase(self, phase: Phase) -> None:
        """Freeze the student in the teacher's phase, and the teacher in the student's."""
        self._stage = phase.name if phase.masked else ""
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; a frozen teacher stays in evaluation, or batch norm would go on counting."""
        super().train(mode)
        if self._in_second_stage and self.teacher is not None:
            self.teacher.eval()
        return self

    @property
    def _in_second_stage(self) -> bool:
        return self._stage == "student"

    @property
    def freezes_bottom(self) -> bool:
        """In the second stage."""
        return self._in_second_stage

    def update_masks(self) -> Sequence[tuple[nn.Parameter, Tensor]]:
        """In each stage, leave the other's network alone: weight decay would move it without a gradient."""
        frozen = {"teacher": self.student, "student": self.teacher}.get(self._stage)
        if frozen is None:
            return ()
        return [(p, torch.zeros((), dtype=torch.bool, device=p.device)) for p in frozen.parameters()]

    def set_progress(self, fraction: float, step: int) -> None:
        """Warm up what is distilled."""
        self._warmth = min(1.0, fraction / self.options.warmup) if self.options.warmup else 1.0

    def watched_gates(self) -> Sequence[WatchedGate]:
        """Return the teacher's gates over experts, and the users' gate over tasks."""
        found = [] if self.teacher is None else self.teacher.watched_gates(self.tasks)
        if self.student.gate is not None:
            title, gate = "Preference gate", self.student.gate
            found.append(WatchedGate(title, gate, ("all users",), self.tasks, 0, softmax=True, by_user=True))
        return found

    def _in_batch(self, encoded: Encoded, features: Features) -> Tensor:
        if features.candidates is None:
            raise ValueError(
                "head.in_batch_weight: the features do not say which rows are of one item; name retrieval.item in the "
                "config, or give Features.candidates"
            )
        with in_full(encoded.items):  # corrections of popularity are added inside the product
            return in_batch_softmax(encoded, features.candidates)

    def _teacher_losses(self, output: HeadOutput, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and weights, [K, B] each."""
        if self.options.entire_space:
            return F.binary_cross_entropy_with_logits(output.hidden["products"], y, reduction="none"), w
        values = F.binary_cross_entropy_with_logits(output.hidden["conditional"], y, reduction="none")
        return values, torch.cat([w[:1], w[1:] * y[:-1]])


def _terms(names: Sequence[str], values: Tensor, weights: Tensor) -> dict[str, Term]:
    return {name: Term(v, w) for name, v, w in zip(names, values, weights, strict=True)}


def _detached(features: Features) -> Features:
    """Return the same features, through which no gradient reaches the tables."""
    return features.mapped(torch.Tensor.detach)
