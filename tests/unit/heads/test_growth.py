"""Summed gradients against those of the effective weights of the task that is watched."""

import torch

from torchrec_mtl.heads.growth import Growth
from torchrec_mtl.heads.subnetworks import SubNetworks

B, TASKS, WATCHED = 6, 2, 1


def made():
    torch.manual_seed(0)
    layers = SubNetworks(5, (7, 4))
    masks = torch.rand(TASKS, layers.num_connections) < 0.5
    return layers, masks, Growth(layers.num_connections)


def step(layers, masks, growth, x):
    weights = layers.masked(masks)
    growth.watch(weights, WATCHED)
    layers(x, weights).square().sum().backward()


def written_out(layers, mask, x):
    """Return [N], the gradient of one task's loss by weights that happen to be 0 where masked."""
    flat = (layers.connections() * mask).requires_grad_()
    h, start = x, 0
    for weight, bias in zip(layers.weights, layers.biases, strict=True):
        h = torch.relu(h @ flat[start : start + weight.numel()].view_as(weight).T + bias.detach())
        start += weight.numel()
    return torch.autograd.grad(h.square().sum(), flat)[0]


def test_the_sum_over_steps_is_the_gradient_as_if_nothing_were_masked():
    layers, masks, growth = made()
    batches = torch.randn(3, B, 5)
    for x in batches:
        step(layers, masks, growth, x)
        growth.take()
    expected = sum(written_out(layers, masks[WATCHED], x) for x in batches)
    torch.testing.assert_close(growth.summed, expected)
    assert growth.summed[~masks[WATCHED]].abs().sum() > 0  # also where no weight has a gradient


def test_a_step_counts_once_however_often_it_is_taken():
    layers, masks, growth = made()
    growth.take()
    step(layers, masks, growth, torch.randn(B, 5))
    growth.take()
    once = growth.summed.clone()
    growth.take()
    assert torch.equal(growth.summed, once)
    assert once.abs().sum() > 0


def test_watching_changes_no_gradient_of_the_weights():
    layers, masks, growth = made()
    x = torch.randn(B, 5)
    step(layers, masks, growth, x)
    watched = [p.grad.clone() for p in layers.parameters()]
    layers.zero_grad()
    layers(x, layers.masked(masks)).square().sum().backward()
    assert all(map(torch.equal, watched, [p.grad for p in layers.parameters()]))


def test_a_round_begins_at_0():
    layers, masks, growth = made()
    step(layers, masks, growth, torch.randn(B, 5))
    growth.take()
    growth.clear()
    assert (growth.summed == 0).all()


def test_a_state_dict_carries_the_sum():
    layers, masks, growth = made()
    step(layers, masks, growth, torch.randn(B, 5))
    growth.take()
    fresh = Growth(layers.num_connections)
    fresh.load_state_dict(growth.state_dict())
    for each in (growth, fresh):
        step(layers, masks, each, torch.ones(B, 5))
        each.take()
    assert torch.equal(fresh.summed, growth.summed)
