"""The shared bottom's batched towers equal towers written out a task at a time."""

import pytest
import torch

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.shared_bottom import SharedBottom

B, D = 6, 5
OUTPUTS = {"click": 1, "watch": 2}


def written_out(head, k, x):
    for m in head.shared.linears:
        x = torch.relu(x @ m.weight.T + m.bias)
    for m in head.towers.linears:
        x = torch.relu(x @ m.weight[k] + m.bias[k])
    return x @ head.towers.last.weight[k] + head.towers.last.bias[k]


@pytest.mark.parametrize("shared", [(8, 4), ()])
@pytest.mark.parametrize("per_task", [False, True])
def test_logits_equal_towers_written_out(shared, per_task):
    torch.manual_seed(0)
    head = SharedBottom(D, OUTPUTS, SharedBottom.Config(shared=shared, tower=(4, 3)))
    views = tuple(torch.randn(B, D) for _ in OUTPUTS) if per_task else None
    inputs = Representation(torch.randn(B, D), views)
    found = head(inputs).logits
    torch.testing.assert_close(found["click"], written_out(head, 0, inputs.of_task(0))[:, 0])
    torch.testing.assert_close(found["watch"], written_out(head, 1, inputs.of_task(1)))


def test_tasks_are_isolated_without_shared_layers_only():
    assert SharedBottom(D, OUTPUTS, SharedBottom.Config(shared=())).isolates_tasks
    assert not SharedBottom(D, OUTPUTS, SharedBottom.Config(shared=(4,))).isolates_tasks


def test_shared_layers_learn_from_every_task_and_towers_from_their_own():
    torch.manual_seed(0)
    head = SharedBottom(D, ["click", "watch"], SharedBottom.Config(shared=(8,), tower=(4,)))
    head(Representation(torch.randn(B, D))).logits["watch"].square().sum().backward()
    assert (head.shared.linears[0].weight.grad != 0).any()
    assert (head.towers.linears[0].weight.grad[0] == 0).all()
    assert (head.towers.linears[0].weight.grad[1] != 0).any()
