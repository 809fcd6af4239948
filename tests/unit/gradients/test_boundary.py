"""The boundary: fan-out equals per-task passes equals the dense algorithm on explicit gradients."""

import pytest
import torch

from torchrec_mtl.gradients.boundary import Boundary, global_gramian
from torchrec_mtl.gradients.htlnet import HTLNetRule
from torchrec_mtl.gradients.sum import SumRule

K = 3
CORE = 2


class World:
    """Tables below three boundary tensors of different shapes, and a tower a task above.

    No task reads the last tensor, and only the first task reads the second: what is not used has gradient zero.
    """

    def __init__(self, dtype=torch.float64):
        g = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, dtype=dtype, generator=g).requires_grad_()

        self.tables = [normal(5, 4), normal(7, 3), normal(2, 2)]
        self.towers = [normal(4) for _ in range(K)]
        self.second = normal(3)

    @property
    def boundary_tensors(self):
        return [2 * table for table in self.tables]

    def loss(self, k, tensors):
        loss = (torch.tanh(tensors[0] @ self.towers[k]) - k).square().mean() * 10.0**k
        return loss + (tensors[1] @ self.second).sum() if k == 0 else loss

    @property
    def leaves(self):
        return [*self.tables, *self.towers, self.second]

    def gradients(self):
        return [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.leaves]


def boundary(**options):
    return Boundary(HTLNetRule(HTLNetRule.Config(core="t2", **options), ["t0", "t1", "t2"]))


def by_fan_out(b, world):
    views = b.fan_out(world.boundary_tensors, K)
    sum(world.loss(k, view) for k, view in enumerate(views)).backward()
    return world.gradients()


def by_passes(b, world):
    tensors = world.boundary_tensors
    losses = torch.stack([world.loss(k, tensors) for k in range(K)])
    b.per_task_passes(losses, tensors)
    losses.sum().backward()
    return world.gradients()


def by_hand(options, world):
    """Algorithm 1 on the flattened gradients of each task, then what lies above and below by plain autograd."""
    c = HTLNetRule.Config(core="t2", **options)
    tensors = world.boundary_tensors
    losses = [world.loss(k, tensors) for k in range(K)]
    parts = [
        torch.autograd.grad(z, tensors, retain_graph=True, allow_unused=True, materialize_grads=True) for z in losses
    ]
    flat = [torch.cat([p.flatten() for p in part]) for part in parts]
    total = core = flat[CORE]
    for g in flat[:CORE]:
        if g @ core < 0:
            g = g - c.alpha * (g @ core) / core.norm() ** 2 * core
        w = (core.norm() / g.norm()).clamp(1 / c.clip, c.clip)
        total = total + c.gamma * w * g + (1 - c.gamma) * g
    pieces = total.split([t.numel() for t in tensors])
    above = [*world.towers, world.second]
    towers = torch.autograd.grad(sum(losses), above, retain_graph=True)
    tables = torch.autograd.grad(tensors, world.tables, [p.view_as(t) for p, t in zip(pieces, tensors)])
    return [*tables, *towers]


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 1.0, "gamma": 1.0, "clip": 3.0}, {"alpha": 0.0, "gamma": 0.9}], ids=str
)
@pytest.mark.parametrize("way", [by_fan_out, by_passes])
def test_both_ways_equal_the_dense_algorithm(way, options):
    # The weights are float32, as Gramians are; everything else is float64.
    expected = by_hand(options, World())
    torch.testing.assert_close(way(boundary(**options), World()), expected, rtol=1e-5, atol=1e-6)


def test_fan_out_equals_per_task_passes_bit_by_bit():
    one, other = boundary(gamma=0.8), boundary(gamma=0.8)
    for a, b in zip(by_fan_out(one, World(torch.float32)), by_passes(other, World(torch.float32))):
        assert torch.equal(a, b)
    assert torch.equal(one.gramian, other.gramian)
    assert torch.equal(one.weights, other.weights)


def test_the_rule_acts_below_the_boundary_only():
    plain, world = World(), World()
    sum(plain.loss(k, plain.boundary_tensors) for k in range(K)).backward()
    by_fan_out(boundary(gamma=1.0), world)
    for a, b in zip(world.towers, plain.towers):
        torch.testing.assert_close(a.grad, b.grad)
    assert not torch.allclose(world.tables[0].grad, plain.tables[0].grad)


@pytest.mark.parametrize("way", [by_fan_out, by_passes])
def test_weights_of_one_are_a_plain_backward(way):
    plain = World()
    sum(plain.loss(k, plain.boundary_tensors) for k in range(K)).backward()
    found = way(Boundary(SumRule(SumRule.Config(), ["t0", "t1", "t2"])), World())
    torch.testing.assert_close(found, plain.gradients(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", [by_fan_out, by_passes])
def test_tensors_that_a_task_does_not_use(way):
    world = World()
    way(boundary(), world)
    assert world.tables[2].grad is None or (world.tables[2].grad == 0).all()
    assert (world.tables[1].grad != 0).all()


def test_views_have_the_values_of_the_tensors():
    tensors = World().boundary_tensors
    for view in boundary().fan_out(tensors, K):
        assert all(torch.equal(a, b) for a, b in zip(view, tensors))


def test_each_step_forgets_the_one_before():
    b, world = boundary(), World()
    by_passes(b, world)
    first = [p.grad for p in world.leaves]
    for p in world.leaves:
        p.grad = None
    by_passes(b, world)
    for a, p in zip(first, world.leaves):
        assert (a is None and p.grad is None) or torch.equal(a, p.grad)


def test_gramian_is_of_the_whole_gradient():
    stacks = [torch.randn(K, 8), torch.randn(K, 5), torch.zeros(K, 0)]
    whole = torch.cat(stacks, 1)
    torch.testing.assert_close(global_gramian(stacks), whole @ whole.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_keep_the_dtype_of_their_tensor(dtype):
    world = World(dtype)
    assert {g.dtype for g in by_fan_out(boundary(), world)} == {dtype}
    assert boundary().gramian is None


def test_empty_sequences_are_no_trouble():
    b, field, empty = boundary(), torch.randn(4, 2, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    views = b.fan_out([field, empty], K)
    sum((k - 1) * v[0].sum() + v[1].sum() for k, v in enumerate(views)).backward()
    assert empty.grad.shape == (0, 3)
    assert torch.isfinite(field.grad).all()
