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
    """

    logits: Mapping[str, Tensor]
    predictions: Mapping[str, Tensor] = field(default_factory=dict)
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: shown, logged, and kept in checkpoints.
        epochs: passes over the training data.
        tasks: the tasks whose losses count; None: all.
    """

    name: str
    epochs: int
    tasks: tuple[str, ...] | None = None


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

    def set_progress(self, fraction: float, step: int) -> None:
        """Take note of the fraction of training done and the step, before each step (temperatures, warm-ups)."""
        return


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
