"""Gradient rules on several ranks: with a part of the batch each, they come to the weights of one with all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec_mtl.collectives import all_sum, rank, world_size
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.boundary import Boundary
from torchrec_mtl.gradients.layout import Layout, PooledField
from torchrec_mtl.registry import resolve
from torchrec_mtl.testing.ranks import run_ranks

# Shapes: B batch over all ranks, K tasks, P pooled columns, of two tables.

_BATCH, _STEPS = 8, 4
_LAYOUT = Layout(("narrow", "wide"), (2, 3), (PooledField(0, 0, mean=False), PooledField(1, 2, mean=False)), ())
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Case:
    """A rule by name, since classes of a test need not be importable elsewhere."""

    options: Mapping[str, object]
    tasks: tuple[str, ...]

    @property
    def rule_class(self) -> type[GradientRule]:
        rule_class: type[GradientRule] = resolve("rule", str(self.options["type"]))
        return rule_class

    def make(self) -> GradientRule:
        num_groups = len(_LAYOUT.tables) if self.rule_class.groups == "table" else 1
        return self.rule_class(self.rule_class.Config.model_validate(self.options), self.tasks, num_groups)


def check_rules_on_ranks(
    rules: Sequence[tuple[type[GradientRule], RuleConfig]], tasks: Sequence[str], *, world_size: int = 2
) -> None:
    """Check that every rank comes to the weights that one process comes to with the whole batch, step after step.

    All rules are checked in one start of processes, behind the real boundary.

    Args:
        rules: classes and their options; ``type`` must tell the class, as in a run's config.
        tasks: names.
        world_size: number of gloo ranks on this machine; it divides 8.

    Raises:
        AssertionError: says for which rule it does not hold.
    """
    cases = [_Case(config.model_dump(), tuple(tasks)) for _, config in rules]
    for case, (rule_class, _) in zip(cases, rules, strict=True):
        if case.rule_class is not rule_class:
            raise AssertionError(
                f"{rule_class.__name__} is not what its config's type '{case.options['type']}' leads to, so that other "
                "processes cannot find it"
            )
    alone = _weights_of(cases)
    by_rank = run_ranks(_weights_of, world_size, cases)
    for i, (rule_class, _) in enumerate(rules):
        first = by_rank[0][i]
        if not all(torch.equal(first, other[i]) for other in by_rank[1:]):
            raise AssertionError(f"{rule_class.__name__} comes to other weights on other ranks")
        if not torch.allclose(first, alone[i], rtol=_TOLERANCE, atol=_TOLERANCE / 100):
            raise AssertionError(
                f"{rule_class.__name__} comes to other weights on {world_size} ranks than on one with the whole batch"
            )


def _weights_of(cases: Sequence[_Case]) -> list[Tensor]:
    """Return [steps, G, K] for each rule; run on every rank."""
    return [_train(case) for case in cases]


def _train(case: _Case) -> Tensor:
    rule = case.make()
    boundary = Boundary(rule)
    weights = []
    for step in range(_STEPS):
        z_BP, tower_PK, y_BK = _data(step, len(case.tasks))
        mine = slice(rank() * _BATCH // world_size(), (rank() + 1) * _BATCH // world_size())
        leaf = z_BP[mine].requires_grad_()
        views = boundary.fan_out([leaf * 1.0], len(case.tasks))
        # Each rank's loss is its part of the mean over the whole batch, times the world size: data parallel averages.
        losses = torch.stack(
            [(z @ tower_PK[:, k] - y_BK[mine, k]).square().sum() / _BATCH for k, (z,) in enumerate(views)]
        )
        boundary.prepare(step=step, losses=all_sum(losses), layout=_LAYOUT)
        if rule.needs == "losses":
            losses = losses * boundary.loss_weights()
        (losses.sum() * world_size()).backward()  # type: ignore[no-untyped-call]
        assert boundary.weights is not None
        weights.append(boundary.weights.clone())
    return torch.stack(weights)


def _data(step: int, num_tasks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the whole batch and the towers of a step, the same on all ranks."""
    g = torch.Generator().manual_seed(step)
    width = sum(_LAYOUT.dims)
    return (
        torch.randn(_BATCH, width, generator=g),
        torch.randn(width, num_tasks, generator=g),
        torch.randn(_BATCH, num_tasks, generator=g),
    )
