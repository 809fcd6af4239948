"""The promises of a gradient rule, each checked by a function of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule, RuleConfig

# Shapes: G groups of tables, K tasks.

_TOLERANCE = 1.0e-3


@dataclass(frozen=True)
class _Subject:
    rule_class: type[GradientRule]
    config: RuleConfig
    tasks: tuple[str, ...]

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise AssertionError(f"{self.rule_class.__name__} {message}")

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Ask a new rule."""
        needs_gramian = self.rule_class.needs == "gramian"
        return self.rule_class(self.config, self.tasks).weights(
            gramian.clone() if needs_gramian else None, losses.clone()
        )


def check_rule(
    rule_class: type[GradientRule],
    config: RuleConfig,
    tasks: Sequence[str],
    *,
    reordered: Callable[[RuleConfig, Sequence[str]], RuleConfig] | None = None,
    scale_invariant: bool = True,
) -> None:
    """Check that a gradient rule keeps its promises; call it in a test of your own rule.

    Its weights are [G, K] or [K], finite for every Gramian (without any gradient, with opposed or equal ones, tiny or
    huge ones), the same on every rank (a function of its arguments alone, which it does not change), and follow the
    tasks when they are listed in another order.

    Args:
        rule_class: the class.
        config: its options.
        tasks: names, at least two.
        reordered: returns the options for tasks in another order; needed where they go by position instead of by name.
        scale_invariant: check too that the weights stay when all gradients are multiplied by one number.

    Raises:
        AssertionError: says which promise is broken.

    Example:
        >>> from torchrec_mtl.gradients.htlnet import HTLNetRule
        >>> check_rule(HTLNetRule, HTLNetRule.Config(core="watch"), ["click", "watch"])
    """
    subject = _Subject(rule_class, config, tuple(tasks))
    subject.require(len(tasks) >= 2, "cannot be checked with fewer than two tasks")
    known = ("nothing", "losses", "gramian")
    subject.require(rule_class.needs in known, f"needs '{rule_class.needs}', expected one of {', '.join(known)}")
    for name, gramian in _gramians(len(tasks)).items():
        _check_weights(subject, gramian, name)
        _check_pure(subject, gramian)
        if scale_invariant:
            _check_scale(subject, gramian)
        _check_order(subject, gramian, reordered)


def _gramians(num_tasks: int) -> dict[str, Tensor]:
    """Return Gramians [G, K, K] of the cases that go wrong, by name."""
    g = torch.Generator().manual_seed(0)
    random = torch.randn(3, num_tasks, 40, generator=g)
    common = torch.randn(1, 1, 40, generator=g)
    signs = torch.ones(num_tasks)
    signs[1::2] = -1
    cases = {
        "random gradients": random,
        "agreeing gradients": random + 2 * common,
        "gradients of very different size": random * 10.0 ** torch.arange(num_tasks).view(-1, 1),
        "equal gradients": common.expand(1, num_tasks, -1),
        "opposed gradients": common * signs.view(-1, 1),
        "no gradient at all": torch.zeros(1, num_tasks, 1),
        **{f"no gradient of task {k}": random * (torch.arange(num_tasks) != k).view(-1, 1) for k in range(num_tasks)},
        "tiny gradients": random * 1e-8,
        "huge gradients": random * 1e8,
    }
    return {name: x @ x.transpose(1, 2) for name, x in cases.items()}


def _losses(num_tasks: int) -> Tensor:
    return torch.linspace(0.5, 1.5, num_tasks)


def _check_weights(subject: _Subject, gramian: Tensor, name: str) -> None:
    num_tasks = len(subject.tasks)
    weights = subject.weights(gramian, _losses(num_tasks))
    shape, groups = tuple(weights.shape), gramian.shape[0]
    subject.require(
        shape in {(groups, num_tasks), (num_tasks,)},
        f"returns weights of shape {shape}, expected [G, K] = ({groups}, {num_tasks}) or [K] = ({num_tasks},)",
    )
    subject.require(bool(torch.isfinite(weights).all()), f"returns weights that are not finite for {name}")


def _check_pure(subject: _Subject, gramian: Tensor) -> None:
    losses = _losses(len(subject.tasks))
    rule = subject.rule_class(subject.config, subject.tasks)
    given = gramian if subject.rule_class.needs == "gramian" else None
    untouched = gramian.clone(), losses.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = rule.weights(given, losses).clone()
        torch.manual_seed(2)
        second = rule.weights(given, losses)
    subject.require(torch.equal(gramian, untouched[0]) and torch.equal(losses, untouched[1]), "changes its arguments")
    subject.require(
        torch.equal(first, second), "returns other weights for the same Gramian: ranks, or a resumed run, would part"
    )


def _check_scale(subject: _Subject, gramian: Tensor) -> None:
    losses = _losses(len(subject.tasks))
    for factor in (0.25, 4.0):  # powers of two: no rounding
        subject.require(
            _close(subject.weights(gramian, losses), subject.weights(gramian * factor**2, losses)),
            "returns other weights when all gradients are multiplied by one number "
            "(pass scale_invariant=False if it means to)",
        )


def _check_order(
    subject: _Subject, gramian: Tensor, reordered: Callable[[RuleConfig, Sequence[str]], RuleConfig] | None
) -> None:
    order = [*range(1, len(subject.tasks)), 0]
    tasks = tuple(subject.tasks[i] for i in order)
    config = subject.config if reordered is None else reordered(subject.config, tasks)
    losses = _losses(len(tasks))
    there = _Subject(subject.rule_class, config, tasks).weights(gramian[:, order][:, :, order], losses[order])
    subject.require(
        _close(subject.weights(gramian, losses)[..., order], there),
        "does not follow the tasks when they are listed in another order "
        "(pass `reordered` if its options go by position)",
    )


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE / 100)
