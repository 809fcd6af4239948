"""GradNorm and MetaBalance equal their papers' formulas on the lengths of gradients."""

import pytest
import torch

from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.gradients.gradnorm import GradNormRule
from torchrec_mtl.gradients.metabalance import MetaBalanceRule

TASKS = ("click", "like", "watch")


def gramian_of(lengths):
    return torch.diag_embed(torch.as_tensor(lengths, dtype=torch.float32).square())


def steps_of(num_steps, *shape):
    g = torch.Generator().manual_seed(0)
    return torch.rand(num_steps, *shape, generator=g) + 0.2


def test_gradnorm_descends_on_its_loss():
    alpha, lr = 1.5, 0.1
    rule = GradNormRule(GradNormRule.Config(alpha=alpha, lr=lr), TASKS)
    log_w, all_losses = torch.zeros(3), steps_of(10, 3)
    for norms, losses in zip(steps_of(10, 3) * torch.tensor([1.0, 5.0, 0.3]), all_losses):
        weights = rule.weights(gramian_of(norms).unsqueeze(0), losses)
        torch.testing.assert_close(weights, log_w.exp())
        leaf = log_w.clone().requires_grad_()
        lengths, progress = leaf.exp() * norms, losses / all_losses[0]
        mean = lengths.mean().detach()
        ((lengths - mean * (progress / progress.mean()) ** alpha).abs().sum() / mean).backward()
        log_w = log_w - lr * leaf.grad
        log_w = log_w - log_w.exp().mean().log()
        torch.testing.assert_close(rule.log_weights, log_w)


def test_gradnorm_makes_gradients_as_long_as_each_other():
    rule, norms = GradNormRule(GradNormRule.Config(alpha=0.0), TASKS), torch.tensor([100.0, 1.0, 10.0])
    for _ in range(2000):
        weights = rule.weights(gramian_of(norms).unsqueeze(0), torch.ones(3))
    lengths = weights * norms
    assert (lengths / lengths.mean() - 1).abs().max() < 0.1
    torch.testing.assert_close(weights.sum(), torch.tensor(3.0))


def test_gradnorm_raises_the_task_that_learns_slowly():
    rule = GradNormRule(GradNormRule.Config(), TASKS)
    for step in range(50):
        losses = torch.tensor([1.0, 0.5, 1.0]) if step else torch.ones(3)
        weights = rule.weights(gramian_of(torch.ones(3)).unsqueeze(0), losses)
    assert weights[1] < weights[0]


def test_gradnorm_starts_from_ones_keeps_their_sum_and_treats_equal_tasks_alike():
    rule = GradNormRule(GradNormRule.Config(lr=0.1), TASKS)
    for step, (norm, loss) in enumerate(zip(steps_of(30, 2), steps_of(30, 2).flip(0))):
        weights = rule.weights(gramian_of(norm[[0, 0, 1]]).unsqueeze(0), loss[[0, 0, 1]])
        torch.testing.assert_close(weights.sum(), torch.tensor(3.0))
        assert weights[0] == weights[1]
        assert (weights == 1).all() == (step == 0)


def test_gradnorm_leaves_a_task_without_loss_or_gradient_out():
    rule = GradNormRule(GradNormRule.Config(), TASKS)
    norms, losses = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([2.0, 0.0, 1.0])
    for _ in range(5):
        weights = rule.weights(gramian_of(norms).unsqueeze(0), losses)
    assert rule.first.tolist() == [2.0, 0.0, 1.0]
    assert weights[1] == 1
    assert weights[0] > 1 > weights[2]
    torch.testing.assert_close(weights.sum(), torch.tensor(3.0))
    rule.weights(gramian_of(torch.ones(3)).unsqueeze(0), torch.tensor([2.0, 7.0, 1.0]))
    assert rule.first.tolist() == [2.0, 7.0, 1.0]


def test_metabalance_equals_the_algorithm_table_by_table():
    relax, beta, core = 0.6, 0.8, 1
    rule = MetaBalanceRule(MetaBalanceRule.Config(core="like", relax=relax, beta=beta), TASKS, num_groups=2)
    average = torch.zeros(2, 3)
    for norms in steps_of(12, 2, 3):
        average = beta * average + (1 - beta) * norms
        expected = relax * average[:, [core]] / average + 1 - relax
        torch.testing.assert_close(rule.weights(gramian_of(norms), torch.ones(3)), expected)
        assert torch.equal(expected[:, core].round(decimals=5), torch.ones(2))


def test_metabalance_averages_over_the_steps_that_have_a_gradient():
    config = MetaBalanceRule.Config(core="watch", relax=1.0, beta=0.5)
    rule = MetaBalanceRule(config, TASKS)
    for _ in range(3):  # "like" comes late: an average from 0 would still be short, and raise its gradient
        rule.weights(gramian_of([[1.0, 0.0, 2.0]]), torch.ones(3))
    torch.testing.assert_close(
        rule.weights(gramian_of([[1.0, 4.0, 2.0]]), torch.ones(3)), torch.tensor([[2.0, 0.5, 1.0]])
    )
    before = rule.lengths.clone()
    rule.weights(gramian_of([[1.0, 0.0, 2.0]]), torch.ones(3))
    assert rule.lengths[0, 1] == before[0, 1]


def test_metabalance_leaves_tables_alone_that_the_core_does_not_reach():
    rule = MetaBalanceRule(MetaBalanceRule.Config(core="watch"), TASKS, num_groups=2)
    lengths = [[1.0, 4.0, 0.0], [1.0, 0.0, 2.0]]
    assert rule.weights(gramian_of(lengths), torch.ones(3)).tolist() == [[1, 1, 1], [pytest.approx(1.7), 1, 1]]


def test_metabalance_wants_its_core_among_two_tasks_or_more():
    tasks = [TaskConfig(name=t, kind="binary", label=t, loss=PluginConfig(type="bce")) for t in ("click", "like")]
    assert MetaBalanceRule.Config(core="click").problems(tasks) == []
    assert "no task 'clickk'. Did you mean 'click'?" in MetaBalanceRule.Config(core="clickk").problems(tasks)[0]
    assert "needs two tasks" in MetaBalanceRule.Config(core="click").problems(tasks[:1])[0]
