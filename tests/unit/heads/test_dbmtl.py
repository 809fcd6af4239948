"""DBMTL equals its equations written out: a task reads the relations of all earlier tasks, and of no later one."""

import pytest
import torch

from tests.unit.heads.reference import layers
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.dbmtl import DBMTL
from torchrec_mtl.testing import check_head

OUTPUTS = {"click": 1, "cart": 1, "spend": 2}
B, D = 6, 5


def plain(mlp, x):
    for linear in mlp.linears:
        x = torch.relu(linear(x))
    return x


def written_out(head, xs):
    related, logits = [], []
    for t, x in enumerate(xs):
        own = layers(head.towers.linears, t, plain(head.shared, x))
        related.append(plain(head.relations[t], torch.cat([own, *related], dim=1)))
        logits.append(related[t] @ head.last.weight[t] + head.last.bias[t])
    return logits


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        DBMTL.Config(shared=(8, 7), task=(6, 4), relation=(5, 3)),
        DBMTL.Config(shared=(), task=(4,), relation=(3,)),
        DBMTL.Config(shared=(), task=(), relation=(3,)),
    ],
    ids=["all layers", "no shared layers", "relation layers only"],
)
def test_logits_equal_the_equations(config, per_task):
    torch.manual_seed(0)
    head = DBMTL(D, OUTPUTS, config)
    shared, views = torch.randn(B, D), tuple(torch.randn(B, D) for _ in OUTPUTS)
    found = head(Representation(shared, views if per_task else None)).logits
    expected = written_out(head, views if per_task else [shared] * 3)
    for k, (task, width) in enumerate(OUTPUTS.items()):
        torch.testing.assert_close(found[task].view(B, -1), expected[k][:, :width])


def test_a_task_reads_earlier_tasks_only():
    head = DBMTL(D, OUTPUTS)
    views = tuple(torch.randn(B, D, requires_grad=True) for _ in OUTPUTS)
    logits = head(Representation(views[0], views)).logits
    for k, task in enumerate(OUTPUTS):
        gradients = torch.autograd.grad(
            logits[task].sum(), views, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert [bool((g != 0).any()) for g in gradients] == [j <= k for j in range(3)]


def test_a_whole_model_learns_every_task():
    before, after = losses_over_training(DBMTL, DBMTL.Config(shared=(16,), task=(8,), relation=(8,)))
    assert (after < before).all()


VARIANTS = [
    DBMTL.Config(shared=(8,), task=(6,), relation=(4, 3), norm="batch"),
    DBMTL.Config(shared=(), task=(6,), relation=(4,), norm="layer"),
    DBMTL.Config(shared=(8,), task=(), relation=(4,)),
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: c.norm)
@pytest.mark.parametrize("outputs", [("click",), ("click", "cart", "buy", "spend")], ids=len)
def test_options_break_no_promise(config, outputs):
    check_head(DBMTL, config, outputs=outputs)
