"""Proposes settings of a space: the config's own first, then what an optuna sampler makes of the results told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from torchrec_mtl.bench.identity import section
from torchrec_mtl.bench.space import Dimension, as_word
from torchrec_mtl.config.run import RunConfig

optuna.logging.set_verbosity(optuna.logging.WARNING)

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Proposal:
    """What is to be tried.

    Attributes:
        words: overrides; empty: the config as it is.
        trial: optuna's; None where the config's own values lie outside the space, so that it cannot be told of them.
    """

    words: tuple[str, ...]
    trial: optuna.trial.Trial | None


class Proposer:
    """Proposes, and takes results; the same calls in the same order give the same proposals.

    Args:
        run: the config.
        space: what is searched.
        sampler: seeded.
        directions: one an objective.
    """

    def __init__(
        self, run: RunConfig, space: Sequence[Dimension], sampler: BaseSampler, directions: Sequence[Direction]
    ) -> None:
        self.study = optuna.create_study(directions=list(directions), sampler=sampler)
        self._space = {d.name: _distribution(d) for d in space}
        self._own = {d.name: _own_value(d, section(run, d.name)) for d in space}
        self._is_first = True

    def propose(self) -> Proposal:
        """Return what to try next."""
        if self._is_first:
            self._is_first = False
            if None in self._own.values():
                return Proposal((), None)
            self.study.enqueue_trial({name: value for name, value in self._own.items() if value is not None})
            return Proposal((), self.study.ask(self._space))
        trial = self.study.ask(self._space)
        return Proposal(tuple(_word(name, value, self._space[name]) for name, value in trial.params.items()), trial)

    def tell(self, proposal: Proposal, values: Sequence[float] | None) -> None:
        """Take the values of the objectives; None: the run failed."""
        if proposal.trial is None:
            return
        if values is None:
            self.study.tell(proposal.trial, state=TrialState.FAIL)
        else:
            self.study.tell(proposal.trial, list(values))


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices:
        return CategoricalDistribution([json.dumps(choice) for choice in dimension.choices])
    low, high = dimension.low, dimension.high
    assert low is not None
    assert high is not None
    if dimension.is_whole:
        return IntDistribution(int(low), int(high), log=dimension.log)
    return FloatDistribution(low, high, log=dimension.log)


def _own_value(dimension: Dimension, value: object) -> Any:  # noqa: ANN401
    """Return the config's own value as the search would give it; None where it lies outside."""
    if dimension.choices:
        return next((json.dumps(choice) for choice in dimension.choices if choice == value), None)
    inside = (
        isinstance(value, (int, float))
        and dimension.low is not None
        and dimension.high is not None
        and dimension.low <= value <= dimension.high
        and (not dimension.is_whole or value == int(value))
    )
    return value if inside else None


def _word(name: str, value: Any, distribution: BaseDistribution) -> str:  # noqa: ANN401
    if isinstance(distribution, CategoricalDistribution):
        return f"{name}={value}"
    if isinstance(distribution, FloatDistribution):
        return as_word(name, float(f"{value:.4g}"))
    return as_word(name, value)
