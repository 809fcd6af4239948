"""MMoE equals its equations written out, expert by expert and task by task."""

import pytest
import torch

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.mmoe import MMoE

OUTPUTS = {"click": 1, "buy": 1, "spend": 2}
B, D = 6, 5


def tower(head, k, x):
    for m in head.towers.linears:
        x = torch.relu(x @ m.weight[k] + m.bias[k])
    return x @ head.towers.last.weight[k] + head.towers.last.bias[k]


def expert(head, i, x):
    for m in head.experts.mlp.linears:
        x = torch.relu(x @ m.weight[i] + m.bias[i])
    return x


def written_out(head, k, x):
    gate = torch.softmax(x @ head.gates.linear.weight[k], dim=1)
    return tower(head, k, sum(gate[:, i : i + 1] * expert(head, i, x) for i in range(head.config.experts)))


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("sizes", [((7, 4), (3,)), ((4,), ())])
def test_logits_equal_the_equations(sizes, per_task):
    torch.manual_seed(0)
    head = MMoE(D, OUTPUTS, MMoE.Config(experts=3, expert=sizes[0], tower=sizes[1]))
    shared, views = torch.randn(B, D), tuple(torch.randn(B, D) for _ in OUTPUTS)
    found = head(Representation(shared, views if per_task else None)).logits
    for k, (task, width) in enumerate(OUTPUTS.items()):
        expected = written_out(head, k, views[k] if per_task else shared)
        torch.testing.assert_close(found[task].view(B, -1), expected[:, :width])


def test_gates_choose_experts_by_task():
    torch.manual_seed(0)
    head = MMoE(D, ("click", "buy"), MMoE.Config(experts=2, expert=(4,), tower=()))
    x = torch.rand(B, D) + 0.5
    with torch.no_grad():
        head.gates.linear.weight[0, :, 0] = 100.0
        head.gates.linear.weight[1, :, 1] = 100.0
    logits = head(Representation(x)).logits
    logits["click"].sum().backward()
    reached = head.experts.mlp.linears[0].weight.grad.abs().sum((1, 2)) > 1e-6
    assert reached.tolist() == [True, False]
