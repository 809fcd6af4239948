"""AITM equals its equations written out, and its calibrator is the hinge between consecutive binary tasks."""

import pytest
import torch

from tests.unit.heads.reference import layers
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.aitm import AITM
from torchrec_mtl.heads.base import HeadOutput
from torchrec_mtl.losses.binary import BinaryCrossEntropy
from torchrec_mtl.testing import check_head

OUTPUTS = {"click": 1, "spend": 2, "buy": 1}
BINARY = ("click", "buy")
B, D, H = 6, 5, 4


def transferred(unit, p, q):
    """The AIT module on one row, u by u."""
    scores = [(unit.h2(u) * unit.h3(u)).sum() / H**0.5 for u in (p, q)]
    share = torch.softmax(torch.stack(scores), 0)
    return share[0] * unit.h1(p) + share[1] * unit.h1(q)


def written_out(head, xs):
    z, logits = None, []
    for t, x in enumerate(xs):
        q = layers(head.towers.linears, t, x)
        if t == 0:
            z = q
        else:
            p = torch.relu(head.passes[t - 1].linears[0](z))
            z = torch.stack([transferred(head.transfers[t - 1], p[i], q[i]) for i in range(B)])
        logits.append(z @ head.last.weight[t] + head.last.bias[t])
    return logits


@pytest.mark.parametrize("per_task", [False, True])
def test_logits_equal_the_equations(per_task):
    torch.manual_seed(0)
    head = AITM(D, OUTPUTS, AITM.Config(tower=(7, H)), binary=BINARY)
    shared, views = torch.randn(B, D), tuple(torch.randn(B, D) for _ in OUTPUTS)
    found = head(Representation(shared, views if per_task else None)).logits
    expected = written_out(head, views if per_task else [shared] * 3)
    for k, (task, width) in enumerate(OUTPUTS.items()):
        torch.testing.assert_close(found[task].view(B, -1), expected[k][:, :width])


def test_information_flows_down_the_sequence_only():
    head = AITM(D, OUTPUTS, binary=BINARY)
    views = tuple(torch.randn(B, D, requires_grad=True) for _ in OUTPUTS)
    logits = head(Representation(views[0], views)).logits
    for k, task in enumerate(OUTPUTS):
        gradients = torch.autograd.grad(
            logits[task].sum(), views, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert [bool((g != 0).any()) for g in gradients] == [j <= k for j in range(3)]


def test_the_calibrator_is_the_hinge_where_both_tasks_have_the_row():
    head = AITM(D, OUTPUTS, AITM.Config(order_weight=0.6), binary=BINARY)
    assert head.constraint_names == ("aitm/buy<=click",)
    assert head.term_names == ()
    p = {"click": torch.tensor([0.5, 0.9, 0.2, 0.1]), "buy": torch.tensor([0.8, 0.3, 0.7, 0.6])}
    weights = torch.tensor([[1.0, 1, 2], [1, 1, 1], [0, 1, 1], [1, 1, 0]])
    output = HeadOutput(logits={task: torch.logit(value) for task, value in p.items()})
    (term,) = head.terms(output, torch.zeros(4, 3), weights).values()
    torch.testing.assert_close(term.value, 0.6 * torch.tensor([0.3, 0.0, 0.5, 0.5]))
    assert term.weight.tolist() == [1, 1, 0, 0]


def test_no_order_weight_is_no_calibrator():
    assert AITM(D, OUTPUTS, AITM.Config(order_weight=0.0), binary=BINARY).constraint_names == ()


def task(name, kind="binary", loss=None, **further):
    loss = loss or PluginConfig(type="bce")
    return TaskConfig.model_validate({"name": name, "kind": kind, "label": name, "loss": loss, **further})


REFUSED = [
    ([task("click"), task("buy", space="click")], "space: click and None.*give both the same space, or set 0"),
    ([task("click"), task("buy", order={"below": "click"})], "count twice; remove that order, or set 0"),
    (
        [task("click"), task("buy", loss=BinaryCrossEntropy.Config(pos_weight=3.0))],
        "logits of buy to other odds.*set 0",
    ),
]


@pytest.mark.parametrize(("tasks", "message"), REFUSED, ids=["space", "order", "pos_weight"])
def test_what_cannot_be_ordered_is_refused_with_a_remedy(tasks, message):
    (found,) = AITM.Config().problems(tasks)
    assert found.startswith("order_weight: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(found)
    assert AITM.Config(order_weight=0.0).problems(tasks) == []


def test_tasks_over_the_same_rows_are_taken():
    tasks = [task("click"), task("spend", "regression", space="click"), task("buy")]
    assert AITM.Config().problems(tasks) == []


def test_a_whole_model_learns_every_task():
    before, after = losses_over_training(AITM, AITM.Config(tower=(16, 8)))
    assert (after < before).all()


VARIANTS = [
    AITM.Config(tower=(8,), norm="batch"),
    AITM.Config(tower=(8, 4), norm="layer", order_weight=0.0),
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: c.norm)
@pytest.mark.parametrize("outputs", [("click",), ("click", "cart", "buy", "spend")], ids=len)
def test_options_break_no_promise(config, outputs):
    check_head(AITM, config, outputs=outputs)
