"""The contract of a head. A head knows nothing of ranks, readers, or YAML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.features import FeaturesSpec
from torchrec_mtl.findings import Finding
from torchrec_mtl.heads.watched import WatchedGate


@dataclass(frozen=True)
class Term:
    """An extra loss of a head: distillation, a hinge between tasks.

    Attributes:
        value: [B].
        weight: [B]; the term is the sum of value x weight over the sum of weight, both over all ranks.
    """

    value: Tensor
    weight: Tensor


@dataclass(frozen=True)
class HeadOutput:
    """What a head returns.

    Attributes:
        logits: task -> [B], or [B, P] for a loss with P distribution parameters.
        predictions: further outputs, name -> [B].
        penalties: scalars of parameters only, added to the loss.
        hidden: what ``Head.terms`` needs of the forward pass besides logits; nobody else reads it.
        vectors: of a retrieval head, in evaluation: ``item`` [B, D], and ``query`` [B, K, D], whose sum over K (with
            weights, if so wished) times an item's vector is the retrieval score.
    """

    logits: Mapping[str, Tensor]
    predictions: Mapping[str, Tensor] = field(default_factory=dict)
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A stretch of training; schedules of learning rates span one phase.

    Attributes:
        name: shown, logged, and kept in checkpoints.
        epochs: passes over the training data.
        tasks: the tasks and terms whose losses count; None: all.
        alternate: a step trains one of these tasks, in turn.
        trial: only looked at by the head: evaluated at its end for ``Head.end_phase``, whereas the best checkpoint and
            early stopping take no notice.
        rewind: starts from where training was at the end of the phase marked ``origin``, or at step 0 without one; the
            order of the rows and the noise start again from there too. ``dense``: the tables stay as they are.
        origin: where later phases rewind to is the end of this one.
        steps: no more than these; None: all of the epochs.
        masked: ``Head.update_masks`` and ``Head.freezes_bottom`` are asked before each step, as where phases alternate.
            The dense optimizer begins it without moments, and counts its steps from 0.
    """

    name: str
    epochs: int
    tasks: tuple[str, ...] | None = None
    alternate: bool = False
    trial: bool = False
    rewind: Literal["none", "all", "dense"] = "none"
    origin: bool = False
    steps: int | None = None
    masked: bool = False


@dataclass(frozen=True)
class PhaseEnd:
    """What a head concluded at the end of a phase.

    Attributes:
        text: a line for people.
        values: numbers for the log, name -> value.
    """

    text: str
    values: Mapping[str, float]


class HeadConfig(PluginConfig):
    """Base of the heads' options."""

    def problems(self, tasks: Sequence[TaskConfig]) -> list[str]:
        """Return what makes this head impossible for these tasks; each with the remedy."""
        return []


class Head(nn.Module, ABC):
    """A representation to logits.

    Args:
        in_features: D of the representation.
        outputs: task -> number of logits its loss needs, in causal order; a sequence of names means one each.
        config: the head's options.

    Class attributes:
        tables: ``shared`` tables; ``own`` ones, a copy a task; or ``both``: ``representation.shared`` is then of the
            shared tables, and ``representation.of_task(k)`` of the tables of task k.
        reads_features: reads ``representation.features`` besides the representation itself.
    """

    Config: ClassVar[type[HeadConfig]]
    tables: ClassVar[Literal["shared", "own", "both"]] = "shared"
    reads_features: ClassVar[bool] = False
    shares_histories: ClassVar[bool] = False
    """Where it reads features: it can do with a `Jagged` that all rows read (``Jagged.pooled`` can)."""
    state_kept: tuple[str, ...] = ()
    """Names of the buffers that are not set back when training rewinds, and that ``end_phase`` may change."""
    term_names: tuple[str, ...] = ()
    """Names of the extra losses that ``terms`` returns, at every step; gradient rules balance them like tasks."""
    constraint_names: tuple[str, ...] = ()
    """Names of further ones that only tie tasks together (a hinge on their order): no rule balances them."""

    def __init__(self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: HeadConfig) -> None:
        """See the class."""
        super().__init__()
        self.in_features = in_features
        self.outputs = dict(outputs) if isinstance(outputs, Mapping) else dict.fromkeys(outputs, 1)
        self.config = config

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
        """Return the head of a whole model; override it where layers depend on more than the constructor takes.

        Args:
            in_features: D of the representation.
            outputs: task -> number of logits its loss needs, in causal order.
            config: the head's options.
            features: what the head may read, see ``reads_features``.
            binary: names of the binary tasks, in causal order; the others are regressions.
        """
        return cls(in_features, outputs, config)

    @property
    def num_tasks(self) -> int:
        """K."""
        return len(self.outputs)

    @property
    def isolates_tasks(self) -> bool:
        """True where task k's loss reaches the boundary only through ``representation.of_task(k)``."""
        return False

    @abstractmethod
    def forward(self, representation: Representation) -> HeadOutput:
        """Return logits by task."""

    def terms(self, output: HeadOutput, labels: Tensor, weights: Tensor) -> Mapping[str, Term]:
        """Return extra losses, by the names in ``term_names`` and ``constraint_names``.

        Args:
            output: what ``forward`` returned.
            labels: [B, K].
            weights: [B, K]; 0 for padding and outside a task's space.
        """
        return {}

    def phases(self, epochs: int) -> Sequence[Phase]:
        """Return the phases of training; by default one over the configured epochs."""
        return (Phase(name="train", epochs=epochs),)

    def begin_phase(self, phase: Phase) -> None:
        """Take note of the phase that begins, or in which a run goes on; called before each of its epochs."""
        return

    def activate(self, tasks: Sequence[str] | None) -> None:
        """Take note of whose losses count from now on (None: all); what it returns for others is not looked at."""
        return

    def set_progress(self, fraction: float, step: int) -> None:
        """Take note of the fraction of the phase done and the step, before each step (temperatures, warm-ups)."""
        return

    def end_phase(self, phase: Phase, metrics: Mapping[str, Mapping[str, float]]) -> PhaseEnd | None:
        """Draw conclusions at the end of a phase, before anything is rewound; only ``state_kept`` may change, in place.

        Rank 0's are then given to all ranks, and saved with the step.

        Args:
            phase: the one that ended.
            metrics: task -> metric -> value of an evaluation at its end, the same on every rank; empty where there was
                none, and of the tasks that the phase trained alone.
        """
        return None

    def update_masks(self) -> Sequence[tuple[nn.Parameter, Tensor]]:
        """Return parameters of which the next step of the optimizer may change a part only, with bool masks of it.

        What is masked keeps its value and its moments. Asked before every step of a run with a phase that alternates
        or is ``masked``.
        """
        return ()

    @property
    def freezes_bottom(self) -> bool:
        """The next step leaves the bottom's own parameters as they are; asked where ``update_masks`` is."""
        return False

    def findings(self) -> Sequence[Finding]:
        """Return what the trained head has to tell."""
        return ()

    def watched_gates(self) -> Sequence[WatchedGate]:
        """Return the gates whose use the report shall tell; looked at in the last evaluation alone."""
        return ()

    def for_inference(self) -> Head:
        """Return what is exported: a module of equal logits, itself unless there is a cheaper one.

        Further predictions that nobody needs where the model is deployed may be left out.
        """
        return self


class HeadOfKinds(Head):
    """A head whose layers depend on which tasks are binary; the constructor takes their names.

    Args:
        in_features: D of the representation.
        outputs: as for `Head`.
        config: the head's options.
        binary: names of the binary tasks, in causal order; None: nothing is said of the tasks' kinds.
    """

    def __init__(
        self,
        in_features: int,
        outputs: Mapping[str, int] | Sequence[str],
        config: HeadConfig,
        *,
        binary: Sequence[str] | None = None,
    ) -> None:
        """See the class."""
        super().__init__(in_features, outputs, config)

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
        """See `Head`."""
        return cls(in_features, outputs, config, binary=binary)
