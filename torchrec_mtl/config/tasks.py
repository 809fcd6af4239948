"""Tasks: what is predicted, over which rows, and with which loss."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, SerializeAsAny

from torchrec_mtl.config.base import Config, Name, PluginConfig


class OrderConfig(Config):
    """A penalty where this task is predicted likelier than one that it implies (AITM's, KDD 2021)."""

    below: Name
    """Earlier binary task that holds wherever this one does."""
    weight: PositiveFloat = 0.5
    """Weight of ``mean max(0, p - p_below)`` in the sum of losses."""


class TaskConfig(Config):
    """One task. Tasks are listed in causal order (click before purchase before amount)."""

    name: Name
    """What logs, metrics, and predictions call it."""
    kind: Literal["binary", "regression"]
    """binary: a probability; regression: a number."""
    label: Name
    """Column of the label: 0/1 for a binary task, a number for a regression."""
    space: Name | None = None
    """Column of 0/1: the task is defined where it is 1; elsewhere it has no loss, no gradient, and no metric."""
    weight: NonNegativeFloat = 1.0
    """Weight of the task in the sum of losses."""
    sample_weight: Name | None = None
    """Column of non-negative weights of the rows in this task's loss."""
    gate: Name | None = None
    """Regression: an earlier binary task that says whether the number is above 0. The loss then sees only rows where
    the gate's label is 1, and the prediction is ``P(gate) E[y | y > 0]``."""
    order: OrderConfig | None = None
    """Penalty that keeps this binary task's probability below that of a task it implies."""
    loss: SerializeAsAny[PluginConfig]
    """By default bce for a binary task, mse for a regression."""
