"""STEM equals its equations written out; every task reads all experts, and trains its own and the shared ones only."""

import pytest
import torch

from tests.unit.heads.reference import layers, mixture, tower
from tests.unit.heads.reference_sets import expert
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.stem import STEM
from torchrec_mtl.testing import check_head

OUTPUTS = {"click": 1, "buy": 1, "spend": 2}
TASKS = tuple(OUTPUTS)
B, D = 6, 5


def made(**options):
    torch.manual_seed(0)
    head = STEM(D, OUTPUTS, STEM.Config(**{"expert": (7, 4), "tower": (3,), **options}))
    shared = torch.randn(B, D, requires_grad=True)
    return head, Representation(shared, tuple(torch.randn(B, D, requires_grad=True) for _ in OUTPUTS))


def written_out(head, k, representation):
    x_0, x_k = representation.shared, representation.of_task(k)
    values = [layers(head.shared_experts.mlp.linears, i, x_0) for i in range(head.config.shared_experts)]
    for j in range(len(OUTPUTS)):
        values += [expert(head.task_experts, j, i, representation.of_task(j)) for i in range(head.config.task_experts)]
    return tower(head.towers, k, mixture(head.gates.linear.weight[k], x_k + x_0, values))


@pytest.mark.parametrize("options", [{}, {"shared_experts": 2, "task_experts": 3}, {"expert": (4,), "tower": ()}])
def test_logits_equal_the_equations(options):
    head, representation = made(**options)
    found = head(representation).logits
    for k, (task, width) in enumerate(OUTPUTS.items()):
        expected = written_out(head, k, representation)
        torch.testing.assert_close(found[task].view(B, -1), expected[:, :width])


def test_loss_trains_nothing_of_other_tasks():
    head, representation = made(task_experts=2, norm="layer")
    sets = head.task_experts
    for k, task in enumerate(TASKS):
        head.zero_grad()
        logits = head(representation).logits
        views = torch.autograd.grad(logits[task].sum(), representation.per_task, retain_graph=True, allow_unused=True)
        logits[task].sum().backward()
        parts = [sets.first.weight, sets.norms[0].weight, sets.rest[0].bias, head.gates.linear.weight]
        for j in range(len(TASKS)):
            trained = [part.grad.view(len(TASKS), -1)[j].abs().sum() > 0 for part in parts]
            assert all(trained) if j == k else not any(trained)
            assert (views[j] is not None and views[j].abs().sum() > 0) == (j == k)
        assert head.shared_experts.mlp.linears[0].weight.grad.abs().sum() > 0


def test_a_task_reads_the_experts_of_all_tasks():
    head, representation = made()
    before = head(representation).logits
    with torch.no_grad():
        head.task_experts.rest[-1].bias[2] += 1
    after = head(representation).logits
    assert all((before[task] - after[task]).abs().max() > 1e-3 for task in TASKS)


def test_shared_representation_reaches_every_loss():
    head, representation = made(tower=())
    for task in TASKS:
        (gradient,) = torch.autograd.grad(head(representation).logits[task].sum(), representation.shared)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("outputs", [("watch",), ("click", "watch"), {"click": 1, "long_view": 1, "watch": 3}])
def test_keeps_the_promises_of_a_head(norm, outputs):
    check_head(STEM, STEM.Config(expert=(8, 4), task_experts=2, tower=(), norm=norm), outputs=outputs, in_features=5)


def test_trains_in_a_whole_model():
    before, after = losses_over_training(STEM, STEM.Config(expert=(8,), tower=(4,)))
    assert (after < before).all()
