"""ESMM's logits are those of products of probabilities, over all rows."""

import re

import pytest
import torch

from tests.unit.heads.reference import tower
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.esmm import ESMM
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.losses.binary import BinaryCrossEntropy
from torchrec_mtl.testing import check_head

OUTPUTS = {"click": 1, "cart": 1, "spend": 2, "buy": 1}
BINARY = ("click", "cart", "buy")
B, D = 6, 5


@pytest.mark.parametrize("per_task", [False, True])
def test_logits_are_those_of_the_products(per_task):
    torch.manual_seed(0)
    head = ESMM(D, OUTPUTS, ESMM.Config(tower=(7, 4)), binary=BINARY)
    shared, views = torch.randn(B, D), tuple(torch.randn(B, D) for _ in OUTPUTS)
    out = head(Representation(shared, views if per_task else None))
    own = {task: tower(head.towers, k, views[k] if per_task else shared) for k, task in enumerate(OUTPUTS)}
    click, cart, buy = (torch.sigmoid(own[task][:, 0]) for task in BINARY)
    for task, p in {"click": click, "cart": click * cart, "buy": click * cart * buy}.items():
        torch.testing.assert_close(torch.sigmoid(out.logits[task]), p)
    torch.testing.assert_close(out.logits["spend"], own["spend"])
    assert out.predictions.keys() == {"cart_given_click", "buy_given_cart"}
    torch.testing.assert_close(out.predictions["cart_given_click"], cart)
    torch.testing.assert_close(out.predictions["buy_given_cart"], buy)


def test_the_later_tasks_loss_trains_the_towers_before_it():
    head = ESMM(D, OUTPUTS, binary=BINARY)
    head(Representation(torch.randn(50, D))).logits["cart"].sum().backward()
    reached = head.towers.last.weight.grad.abs().sum((1, 2)) != 0
    assert reached.tolist() == [True, True, False, False]


def test_a_chain_of_labels_is_learned_over_all_rows():
    """P(click) = 1/2 and P(buy | click) = 1/4, learned from losses over all rows alone."""
    torch.manual_seed(0)
    head = ESMM(1, ["click", "buy"], ESMM.Config(tower=()))
    labels = {"click": torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]), "buy": torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])}
    bce = BinaryCrossEntropy(BinaryCrossEntropy.Config(), LabelScale())
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def total():
        optimizer.zero_grad()
        out = head(Representation(torch.zeros(8, 1)))
        value = sum(bce(out.logits[t], y).mean() for t, y in labels.items())
        value.backward()
        return value

    optimizer.step(total)
    out = head(Representation(torch.zeros(8, 1)))
    torch.testing.assert_close(torch.sigmoid(out.logits["click"]), torch.full((8,), 0.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(out.predictions["buy_given_click"], torch.full((8,), 0.25), rtol=0, atol=1e-3)


def task(name, kind="binary", loss=None, **further):
    loss = loss or PluginConfig(type="bce")
    return TaskConfig.model_validate({"name": name, "kind": kind, "label": name, "loss": loss, **further})


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task("click"), task("buy", space="click")], "over all rows of 'click'.*'buy' is .* space: click; remove its"),
        ([task("click"), task("spend", "regression")], "fewer than two .found click.*add a binary task"),
        ([task("a", "regression"), task("b", "regression")], "found none"),
        ([task("click"), task("buy", order={"below": "click"})], "its order cannot act; remove order"),
        (
            [task("click"), task("buy", loss=BinaryCrossEntropy.Config(pos_weight=2.0))],
            "pos_weight trains the logits of buy to other odds; remove pos_weight",
        ),
    ],
)
def test_what_is_no_chain_is_refused_with_a_remedy(tasks, message):
    (found,) = ESMM.Config().problems(tasks)
    assert re.search(message, found), found


@pytest.mark.parametrize(
    "tasks",
    [
        [task("click"), task("buy"), task("spend", "regression", space="buy")],
        [task("click", space="shown"), task("buy", space="shown")],
        [task("click")],
    ],
)
def test_chains_over_one_space_are_taken(tasks):
    assert ESMM.Config().problems(tasks) == []


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_norms_break_no_promise(norm):
    check_head(ESMM, ESMM.Config(tower=(8, 4), norm=norm))


@pytest.mark.parametrize("outputs", [{"click": 1}, {"click": 1, "cart": 1, "buy": 1, "spend": 3}], ids=len)
def test_other_tasks_break_no_promise(outputs):
    check_head(ESMM, ESMM.Config(tower=(8,)), outputs=outputs)


def test_a_whole_model_learns_every_task():
    before, after = losses_over_training(ESMM, ESMM.Config(tower=(16,)))
    assert (after < before).all()
