"""The promises of a gradient rule, each checked by a function of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.testing.rule_ranks import check_rules_on_ranks
from torchrec_mtl.testing.rule_subject import Call, RuleSubject, make_calls, seeded

# Shapes: G groups of tables, K tasks, S seeds.

_TOLERANCE = 1.0e-3
_SEEDS = 32  # of a rule that draws, whose weights are compared in the mean
_SIGMAS = 6.0

Reordered = Callable[[RuleConfig, Sequence[str]], RuleConfig]


def check_rule(
    rule_class: type[GradientRule],
    config: RuleConfig,
    tasks: Sequence[str],
    *,
    reordered: Reordered | None = None,
    world_size: int = 1,
) -> None:
    """Check that a gradient rule keeps its promises; call it in a test of your own rule.

    * Weights are [G, K] or [K] and finite for all Gramians and losses (without any gradient or loss, with opposed or
      equal gradients, tiny or huge ones), one after another; for one group of tables and, if it goes by table, three.
    * The combined gradient follows the tasks when they are listed in another order; in the mean, if the rule draws.
    * What the rule draws comes from torch's CPU generator; what it remembers is in buffers or parameters of fixed
      shape: restored from ``state_dict`` it goes on as if it had never stopped. So ranks, and resumed runs, agree.
    * It does not change its arguments, keeps its memory out of autograd's graph, and one that needs only losses reads
      none of them on the host (``.item()``), which would stall a GPU.
    * Weights stay when all gradients, or all losses, are multiplied by one number, if ``scale_invariant`` says so.
    * With ``world_size`` 2: two processes, each with half of a batch, come to the weights of one with the whole.

    Args:
        rule_class: the class.
        config: its options.
        tasks: names, at least two.
        reordered: returns the options for tasks in another order; needed where they go by position instead of by name.
        world_size: of the last promise; 1 leaves it out. Starts processes, to which the config's ``type`` must tell
            the class; to check several rules in one start see ``torchrec_mtl.testing.rule_ranks``.

    Raises:
        AssertionError: says which promise is broken.

    Example:
        >>> from torchrec_mtl.gradients.htlnet import HTLNetRule
        >>> check_rule(HTLNetRule, HTLNetRule.Config(core="watch"), ["click", "watch"])
    """
    subject = RuleSubject(rule_class, config, tuple(tasks))
    _check_class(subject)
    for num_groups in (1, 3) if rule_class.groups == "table" else (1,):
        grouped = replace(subject, num_groups=num_groups)
        calls = make_calls(len(tasks), num_groups)
        _check_weights(grouped, calls)
        _check_arguments(grouped, calls)
        _check_draws(grouped, calls)
        _check_memory(grouped, calls)
        _check_graph(grouped, calls)
        if rule_class.needs == "losses":
            _check_host(grouped, calls)
        if rule_class.scale_invariant:
            _check_scale(grouped, calls)
        _check_order(grouped, calls, reordered)
    if world_size > 1:
        check_rules_on_ranks([(rule_class, config)], tasks, world_size=world_size)


def _check_class(subject: RuleSubject) -> None:
    rule_class = subject.rule_class
    subject.require(len(subject.tasks) >= 2, "cannot be checked with fewer than two tasks")
    subject.require(issubclass(rule_class, GradientRule), "does not derive from GradientRule")
    for attribute, known in (("needs", ("nothing", "losses", "gramian")), ("groups", ("all", "table"))):
        found = getattr(rule_class, attribute)
        subject.require(found in known, f"has {attribute} '{found}', expected one of {', '.join(known)}")
    subject.require(
        rule_class.groups == "all" or rule_class.needs == "gramian", "weighs tables apart without needing the Gramian"
    )


def _check_weights(subject: RuleSubject, calls: Sequence[Call]) -> None:
    num_tasks, groups, rule = len(subject.tasks), subject.num_groups, subject.make()
    for step, call in enumerate(copy.deepcopy(list(calls))):
        with seeded(0, step):
            weights = subject.ask(rule, call)
        subject.require(
            tuple(weights.shape) in {(groups, num_tasks), (num_tasks,)} and weights.dtype == torch.float32,
            f"returns weights of shape {tuple(weights.shape)} and {weights.dtype}, expected "
            f"[G, K] = ({groups}, {num_tasks}) or [K] = ({num_tasks},), float32",
        )
        subject.require(bool(weights.isfinite().all()), f"returns weights that are not finite for {call.name}")


def _check_arguments(subject: RuleSubject, calls: Sequence[Call]) -> None:
    given = copy.deepcopy(list(calls))
    subject.run(given)
    same = all(torch.equal(a.gramian, b.gramian) and torch.equal(a.losses, b.losses) for a, b in zip(given, calls))
    subject.require(same, "changes its arguments")


def _check_draws(subject: RuleSubject, calls: Sequence[Call]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = subject.run(calls)
        torch.manual_seed(2)
        second = subject.run(calls)
    subject.require(
        all(map(torch.equal, first, second)),
        "returns other weights for the same calls from the same seed, so that ranks would part: draw from torch's CPU "
        "generator, which is seeded before each call",
    )


def _check_memory(subject: RuleSubject, calls: Sequence[Call]) -> None:
    lasting, middle = subject.make(), len(calls) // 2
    shapes = _shapes(lasting)
    subject.run(calls[:middle], rule=lasting)
    state = copy.deepcopy(lasting.state_dict())
    found = _shapes(lasting)
    subject.require(
        found == shapes, f"changes its state's names, shapes, or types after construction: from {shapes} to {found}"
    )
    restored = subject.make()
    restored.load_state_dict(state)
    goes_on, stopped = subject.run(calls[middle:], rule=lasting), subject.run(calls[middle:], rule=restored)
    subject.require(
        all(map(torch.equal, goes_on, stopped)),
        "goes on otherwise when it is restored from its state_dict: keep what it remembers in buffers",
    )


def _shapes(rule: GradientRule) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(value.shape), value.dtype) for name, value in rule.state_dict().items()}


def _check_graph(subject: RuleSubject, calls: Sequence[Call]) -> None:
    """Memory holds no graph, and a training step's gradients reach every parameter, finite."""
    rule = subject.make()
    for call in calls:
        with seeded(0, 0):
            objective = (subject.ask(rule, call) * call.losses).sum()
        penalty = rule.penalty()
        if penalty is not None:
            subject.require(penalty.dim() == 0, f"returns a penalty of shape {tuple(penalty.shape)}, expected a scalar")
            subject.require(bool(penalty.isfinite()), f"returns a penalty that is not finite for {call.name}")
            objective = objective + penalty
        held = [name for name, buffer in rule.named_buffers() if buffer.requires_grad]
        subject.require(not held, f"keeps a graph in {', '.join(held)}: update what it remembers under torch.no_grad()")
        parameters = dict(rule.named_parameters())
        if not parameters:
            continue
        subject.require(objective.requires_grad, "has parameters that neither its weights nor its penalty reach")
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            objective, list(parameters.values()), allow_unused=True
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            subject.require(gradient is not None, f"has a parameter '{name}' that neither weights nor penalty reach")
            assert gradient is not None
            subject.require(
                bool(gradient.isfinite().all()), f"has a gradient to '{name}' that is not finite for {call.name}"
            )


def _check_host(subject: RuleSubject, calls: Sequence[Call]) -> None:
    """On the meta device there are no values to read."""
    rule = subject.make().to("meta")
    try:
        for call in calls:
            rule.weights(None, call.losses.to("meta"))
        rule.penalty()
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(
            f"{subject.rule_class.__name__} reads values on the host (.item(), `if` on a tensor), or makes tensors on "
            f"another device than its losses': {error}"
        ) from error


def _check_scale(subject: RuleSubject, calls: Sequence[Call]) -> None:
    expected = subject.run(calls)
    for factor in (0.25, 4.0):  # powers of two: no rounding
        scaled = [call.scaled(factor, losses=subject.acts_on_losses) for call in calls]
        for call, a, b in zip(calls, expected, subject.run(scaled)):
            subject.require(
                bool((subject.difference(call, a, b) <= _TOLERANCE).all()),
                f"returns other weights when all {'losses' if subject.acts_on_losses else 'gradients'} are multiplied "
                f"by one number ({call.name}); if it means to, it says scale_invariant = False",
            )


def _check_order(subject: RuleSubject, calls: Sequence[Call], reordered: Reordered | None) -> None:
    order = [*range(1, len(subject.tasks)), 0]
    tasks = tuple(subject.tasks[i] for i in order)
    config = subject.config if reordered is None else reordered(subject.config, tasks)
    other = replace(subject, config=config, tasks=tasks)
    theirs = [call.permuted(order) for call in calls]
    back = [order.index(k) for k in range(len(order))]
    seeds = range(_SEEDS if _draws(subject, calls) else 1)
    # [S, G, K] of each step
    here = [torch.stack(w) for w in zip(*(subject.run(calls, seed=s) for s in seeds))]
    there = [torch.stack(w)[..., back] for w in zip(*(other.run(theirs, seed=s + len(seeds)) for s in seeds))]
    for call, a, b in zip(calls, here, there):
        spread = sum(subject.difference(call, w, w.mean(0)).square().mean(0) for w in (a, b))
        allowed = _TOLERANCE + _SIGMAS * torch.as_tensor(spread / len(seeds)).sqrt()
        subject.require(
            bool((subject.difference(call, a.mean(0), b.mean(0)) <= allowed).all()),
            f"does not follow the tasks when they are listed in another order ({call.name}; "
            "pass `reordered` if its options go by position)",
        )


def _draws(subject: RuleSubject, calls: Sequence[Call]) -> bool:
    runs = [subject.run(calls, seed=seed) for seed in range(4)]
    return any(not torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run))
