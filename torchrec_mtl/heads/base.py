"""The contract of a head. A head knows nothing of ranks, readers, or YAML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig


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
    """

    logits: Mapping[str, Tensor]
    predictions: Mapping[str, Tensor] = field(default_factory=dict)
    penalties: Mapping[str, Tensor] = field(default_factory=dict)


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
        tables: ``shared`` tables, ``own`` ones (a copy per task), or ``both``.
        reads_features: reads ``representation.features`` besides the representation itself.
    """

    Config: ClassVar[type[HeadConfig]]
    tables: ClassVar[Literal["shared", "own", "both"]] = "shared"
    reads_features: ClassVar[bool] = False
    term_names: tuple[str, ...] = ()
    """Names of the extra losses that ``terms`` returns, at every step."""

    def __init__(self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: HeadConfig) -> None:
        """See the class."""
        super().__init__()
        self.in_features = in_features
        self.outputs = dict(outputs) if isinstance(outputs, Mapping) else dict.fromkeys(outputs, 1)
        self.config = config

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
        """Return extra losses by name.

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


def split_logits(stacked: Tensor, outputs: Mapping[str, int]) -> dict[str, Tensor]:
    """Cut [K, B, P] into task -> [B] (one logit) or [B, P_k]."""
    return {
        name: stacked[k, :, 0] if width == 1 else stacked[k, :, :width]
        for k, (name, width) in enumerate(outputs.items())
    }
