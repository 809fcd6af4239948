"""Rules that need only losses equal their papers' formulas, and bear tasks that have no loss in a step."""

import math

import pytest
import torch

from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.registry import resolve

TASKS = ("click", "like", "watch")


def rule_of(name, tasks=TASKS, **options):
    rule_class = resolve("rule", name)
    return rule_class(rule_class.Config(**options), tasks)


def run(rule, losses):
    return [rule.weights(None, torch.tensor(row)) for row in losses]


def falling(num_steps, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(num_steps, 3, generator=g) + 0.5) * torch.tensor([1.0, 0.1, 20.0])


def test_uncertainty_is_the_gradient_of_kendalls_loss():
    rule, losses = rule_of("uncertainty"), torch.tensor([0.7, 0.1, 30.0])
    assert rule.log_variance.tolist() == [-0.5] * 3
    with torch.no_grad():
        rule.log_variance.copy_(torch.tensor([0.3, -1.0, 2.0]))
    s = rule.log_variance.detach().clone().requires_grad_()
    leaves = losses.clone().requires_grad_()
    (leaves / (2 * s.exp()) + s / 2).sum().backward()
    weights = rule.weights(None, losses)
    (gradient,) = torch.autograd.grad((weights * losses).sum() + rule.penalty(), rule.log_variance)
    torch.testing.assert_close(weights, leaves.grad)
    torch.testing.assert_close(gradient, s.grad)


def test_uncertainty_settles_where_the_variance_is_the_loss():
    rule, losses = rule_of("uncertainty"), torch.tensor([0.5, 1.0, 3.0])
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        ((rule.weights(None, losses) * losses).sum() + rule.penalty()).backward()
        optimizer.step()
    torch.testing.assert_close(rule.log_variance.exp(), losses, rtol=1e-3, atol=0.0)


def test_uncertainty_of_a_task_without_loss_stays():
    rule, losses = rule_of("uncertainty"), torch.tensor([1.0, 0.0, 1.0])
    ((rule.weights(None, losses) * losses).sum() + rule.penalty()).backward()
    assert rule.log_variance.grad[1] == 0
    assert rule.log_variance.grad[0] != 0


def test_dwa_equals_the_formula_on_means_of_windows():
    every, temperature = 4, 0.5
    rule, losses = rule_of("dwa", every=every, temperature=temperature), falling(5 * every)
    means = losses.view(5, every, 3).mean(1)
    for step, weights in enumerate(run(rule, losses.tolist())):
        window = step // every
        expected = torch.ones(3)
        if window >= 2:
            expected = 3 * torch.softmax(means[window - 1] / means[window - 2] / temperature, dim=0)
        torch.testing.assert_close(weights, expected)


def test_dwa_averages_over_the_steps_that_have_a_loss():
    rule, full = rule_of("dwa", every=3), rule_of("dwa", every=2)
    run(rule, [[1.0, 2.0, 3.0], [2.0, 0.0, 3.0], [3.0, 4.0, 3.0]] * 2)
    run(full, [[2.0, 2.0, 3.0], [2.0, 4.0, 3.0]] * 2)
    assert torch.equal(rule.newer, full.newer)


def test_dwa_keeps_the_ratio_of_a_task_that_is_not_trained_for_a_window():
    rule = rule_of("dwa", every=1)
    run(rule, [[1.0, 1.0, 1.0], [0.5, 1.0, 1.0], [0.5, 0.0, 1.0]])
    assert rule.newer.tolist() == [0.5, 1.0, 1.0]
    assert rule.older.tolist() == [0.5, 1.0, 1.0]


class FAMO:
    """The authors' way, with autograd and torch's Adam, on the losses of successive batches."""

    def __init__(self, lr, gamma):
        self.logits = torch.nn.Parameter(torch.zeros(3))
        self.adam = torch.optim.Adam([self.logits], lr=lr, weight_decay=gamma)
        self.previous = None

    def weights(self, losses):
        if self.previous is not None:
            fall = self.previous.log() - losses.log()
            (self.logits.grad,) = torch.autograd.grad(torch.softmax(self.logits, 0), self.logits, fall)
            self.adam.step()
        self.previous = losses
        leaves, z = losses.clone().requires_grad_(), torch.softmax(self.logits.detach(), 0)
        ((z * leaves.log()).sum() / (z / losses).sum()).backward()
        return 3 * leaves.grad


def test_famo_equals_autograd_and_adam_on_successive_losses():
    rule, reference = rule_of("famo", lr=0.1, gamma=0.01), FAMO(0.1, 0.01)
    for losses in falling(50):
        torch.testing.assert_close(rule.weights(None, losses), reference.weights(losses), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rule.logits, reference.logits.detach(), rtol=1e-4, atol=1e-5)
    assert rule.logits.std() > 0.01


def test_famo_weighs_the_task_that_falls_slowly_more():
    rule = rule_of("famo")
    losses = [[math.exp(-0.03 * t), math.exp(-0.01 * t), math.exp(-0.001 * t)] for t in range(100)]
    run(rule, losses)
    assert rule.logits[0] < rule.logits[1] < rule.logits[2]


def test_famo_leaves_a_task_without_loss_out():
    one, other = rule_of("famo"), rule_of("famo")
    steps = falling(20)
    for row in steps.tolist():
        one.weights(None, torch.tensor(row))
        other.weights(None, torch.tensor(row))
    without = steps[0].clone()
    without[1] = 0
    weights = one.weights(None, without)
    assert one.previous[1] == other.previous[1]
    assert one.logits[1] == other.logits[1]
    assert one.steps.tolist() == [20.0, 19.0, 20.0]
    assert weights[1] == 1
    torch.testing.assert_close(weights[[0, 2]].sum(), torch.tensor(2.0))


@pytest.mark.parametrize("name", ["dwa", "famo"])
def test_no_loss_at_all_changes_nothing_but_the_count_of_steps(name):
    rule = rule_of(name)
    run(rule, falling(5).tolist())
    before = {key: value.clone() for key, value in rule.state_dict().items() if key != "steps" or name == "famo"}
    assert torch.equal(rule.weights(None, torch.zeros(3)), torch.ones(3))
    assert all(torch.equal(rule.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "famo", "gradnorm"])
def test_a_loss_that_may_be_negative_is_refused(name):
    tasks = [
        TaskConfig(name=task, kind="regression", label=task, loss=PluginConfig(type=loss))
        for task, loss in (("watch", "mse"), ("spend", "lognormal"))
    ]
    rule_class = resolve("rule", name)
    assert rule_class.Config().problems(tasks[:1]) == []
    (problem,) = rule_class.Config().problems(tasks)
    assert "'spend' has loss 'lognormal', which may be negative" in problem
