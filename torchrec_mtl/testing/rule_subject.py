"""What the contract of gradient rules is checked on: rules, and what they are told in a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule, RuleConfig

# Shapes: G groups of tables, K tasks.


@dataclass(frozen=True)
class Call:
    """What a rule is told in one step."""

    name: str
    gramian: Tensor
    losses: Tensor

    def permuted(self, order: Sequence[int]) -> Call:
        """Return the call with the tasks in another order."""
        return replace(self, gramian=self.gramian[:, order][:, :, order], losses=self.losses[order])

    def scaled(self, factor: float, *, losses: bool) -> Call:
        """Return the call with all losses, or all gradients, times a factor."""
        if losses:
            return replace(self, losses=self.losses * factor)
        return replace(self, gramian=self.gramian * factor**2)


@dataclass(frozen=True)
class RuleSubject:
    """A rule that is checked, with the tasks that it is built for."""

    rule_class: type[GradientRule]
    config: RuleConfig
    tasks: tuple[str, ...]
    num_groups: int = 1

    def require(self, condition: bool, message: str) -> None:
        """Raise ``AssertionError`` where a promise is broken."""
        if not condition:
            raise AssertionError(f"{self.rule_class.__name__} {message}")

    @property
    def acts_on_losses(self) -> bool:
        """Whether it weighs losses."""
        return self.rule_class.needs == "losses"

    def make(self) -> GradientRule:
        """Build the rule."""
        if self.num_groups == 1:
            return self.rule_class(self.config, self.tasks)
        return self.rule_class(self.config, self.tasks, num_groups=self.num_groups)

    def ask(self, rule: GradientRule, call: Call) -> Tensor:
        """Return its weights."""
        return rule.weights(call.gramian if self.rule_class.needs == "gramian" else None, call.losses)

    def run(self, calls: Sequence[Call], *, seed: int = 0, rule: GradientRule | None = None) -> list[Tensor]:
        """Return the weights [G, K] of each step."""
        rule = rule or self.make()
        weights = []
        for step, call in enumerate(calls):
            with seeded(seed, step):
                answer = self.ask(rule, call).detach().clone()
            weights.append(answer.expand(self.num_groups, -1))
        return weights

    def difference(self, call: Call, one: Tensor, other: Tensor) -> Tensor:
        """Return [..., G], how far two combinations [..., G, K] of the gradients are from each other.

        In parts of what the weighted gradients are long: other weights of gradients that depend on each other, or are
        0, are no other combination.
        """
        size = torch.eye(len(self.tasks), dtype=torch.float64).expand(self.num_groups, -1, -1)
        if self.rule_class.needs == "gramian":
            size = call.gramian.double()
        gap, lengths = one.double() - other.double(), size.diagonal(dim1=1, dim2=2).sqrt()
        reach = (torch.maximum(one.abs(), other.abs()).double() * lengths).sum(-1)
        distance = torch.einsum("...gk,gkl,...gl->...g", gap, size, gap).clamp_min(0).sqrt()
        return distance / reach.clamp_min(1e-300)


@contextmanager
def seeded(seed: int, step: int) -> Iterator[None]:
    """Seed torch's CPU generator as the boundary does before each call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1000 * seed + step)
        yield


def make_calls(num_tasks: int, num_groups: int) -> list[Call]:
    """Return the cases that go wrong, in the order of a run's steps, the plain ones more than once."""
    generator = torch.Generator().manual_seed(0)
    calls = []
    for gramian in (gramians := _gramians(num_tasks, num_groups, generator)):
        losses = torch.rand(num_tasks, generator=generator) + 0.5
        gone = gramians[gramian].diagonal(dim1=1, dim2=2).sum(0) == 0
        calls.append(Call(gramian, gramians[gramian], losses.masked_fill(gone, 0.0)))
    plain = [replace(c, losses=c.losses * 0.9) for c in calls[:2]]
    return [*calls, *plain, replace(calls[0], name="losses of very different size", losses=_spread(num_tasks))]


def _spread(num_tasks: int) -> Tensor:
    return 1e-4 * 1e4 ** (torch.arange(num_tasks) / (num_tasks - 1) * 2)


def _gramians(num_tasks: int, num_groups: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return Gramians [G, K, K] by name."""
    random = torch.randn(num_groups, num_tasks, 40, generator=generator)
    common = torch.randn(num_groups, 1, 40, generator=generator)
    signs = torch.ones(num_tasks)
    signs[1::2] = -1
    cases = {
        "random gradients": random,
        "agreeing gradients": random + 2 * common,
        "opposing gradients": random + 2 * common * signs.view(-1, 1),
        "gradients of very different size": random * 10.0 ** torch.arange(num_tasks).view(-1, 1),
        "equal gradients": common.expand(-1, num_tasks, -1),
        "opposed gradients": common * signs.view(-1, 1),
        "no gradient at all": torch.zeros(num_groups, num_tasks, 1),
        **{f"no gradient of task {k}": random * (torch.arange(num_tasks) != k).view(-1, 1) for k in range(num_tasks)},
        **{f"a gradient of task {k} alone": random * (torch.arange(num_tasks) == k).view(-1, 1) for k in (0, 1)},
        "tiny gradients": random * 1e-8,
        "huge gradients": random * 1e8,
    }
    return {name: x @ x.transpose(1, 2) for name, x in cases.items()}
