"""The head keeps the contract, and is what its paper writes."""

import pytest
import torch
from mtl_cross_stitch.head import CrossStitch

from torchrec_mtl import Representation
from torchrec_mtl.testing import check_head

TASKS = ["click", "long_view", "watch_time"]


@pytest.mark.parametrize("options", [{}, {"norm": "batch"}, {"tower": (8,), "layers": (16,)}], ids=str)
def test_it_keeps_the_contract_of_heads(options: dict[str, object]) -> None:
    check_head(CrossStitch, CrossStitch.Config.model_validate(options))


def test_it_is_the_equation_written_out_task_by_task() -> None:
    head, x = CrossStitch(4, TASKS, CrossStitch.Config(layers=(6, 5))), torch.randn(7, 4)
    torch.nn.init.normal_(head.alphas)
    of_task = [x, x, x]
    for layer, alpha in zip(head.layers, head.alphas):
        [m] = layer.linears
        own = [torch.relu(of_task[k] @ m.weight[k] + m.bias[k]) for k in range(3)]
        of_task = [sum(alpha[k, j] * own[j] for j in range(3)) for k in range(3)]
    for k, logits in enumerate(head(Representation(x)).logits.values()):
        expected = of_task[k] @ head.towers.last.weight[k] + head.towers.last.bias[k]
        torch.testing.assert_close(logits, expected.squeeze(1))


def test_without_stitches_tasks_are_alone() -> None:
    head = CrossStitch(4, TASKS, CrossStitch.Config(own=1.0))
    head(Representation(torch.randn(7, 4))).logits["click"].sum().backward()
    assert all((layer.linears[0].weight.grad[1:] == 0).all() for layer in head.layers)
    assert [row[1:] for row in head.findings()[0].rows] == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
