"""ESCM2's risks equal the paper's formulas, and are unbiased where clicks are no random sample."""

import numpy as np
import pytest
import torch

from tests.unit.heads.reference import tower
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.heads.base import HeadOutput
from torchrec_mtl.heads.escm2 import ESCM2
from torchrec_mtl.heads.esmm import ESMM
from torchrec_mtl.testing import check_head

OUTPUTS = {"click": 1, "cart": 1, "spend": 2, "buy": 1}
BINARY = ("click", "cart", "buy")
B, D = 40, 5
IPS = "escm2/buy_given_click"


def built(config):
    torch.manual_seed(0)
    return ESCM2(D, OUTPUTS, config, binary=BINARY)


def sigmoid(z):
    return 1 / (1 + np.exp(-z.detach().double().numpy()))


def rows():
    """Inputs, labels of a funnel, and weights, with rows that only some tasks have."""
    g = torch.Generator().manual_seed(1)
    labels = (torch.rand(B, 4, generator=g) < 0.6).float().cumprod(1)
    weights = torch.rand(B, 4, generator=g) + 0.5
    weights[:5, 0], weights[5:9, 3] = 0, 0
    return torch.randn(B, D, generator=g) * 5, labels, weights


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("estimator", ["ips", "dr"])
def test_risks_equal_the_formulas(estimator, per_task):
    head = built(ESCM2.Config(estimator=estimator, tower=(7,), clip=2.5, weight=0.3))
    x, labels, weights = rows()
    views = tuple(torch.randn(B, D) * 5 for _ in OUTPUTS)
    out = head(Representation(x, views if per_task else None))
    found = head.terms(out, labels, weights)
    read = dict(zip(OUTPUTS, views if per_task else [x] * 4, strict=True))
    position = list(OUTPUTS).index
    p = {task: sigmoid(tower(head.towers, position(task), read[task])[:, 0]) for task in BINARY}
    propensity = {"cart": p["click"], "buy": p["click"] * p["cart"]}
    for i, (before, task) in enumerate([("click", "cart"), ("cart", "buy")]):
        o, r = labels[:, position(before)].numpy(), labels[:, position(task)].numpy()
        delta = -r * np.log(p[task]) - (1 - r) * np.log(1 - p[task])
        inverse = np.minimum(1 / propensity[task], 2.5)
        assert inverse.max() == 2.5
        assert inverse.min() < 2.5
        name = f"escm2/{task}_given_{before}"
        if estimator == "ips":
            expected = {name: o * delta * inverse}
        else:
            imputed = np.log1p(np.exp(tower(head.towers, 4 + i, read[task])[:, 0].detach().double().numpy()))
            expected = {
                name: imputed + o * (delta - imputed) * inverse,
                f"{name}/imputation": o * (delta - imputed) ** 2 * inverse,
            }
        for key, value in expected.items():
            np.testing.assert_allclose(found[key].value.detach().numpy(), 0.3 * value, rtol=1e-4, atol=1e-6)
            both = weights[:, position(task)] * (weights[:, position(before)] > 0)
            assert torch.equal(found[key].weight, both)
    assert found.keys() == set(head.term_names)
    assert len(found) == (2 if estimator == "ips" else 4)


def test_logits_are_those_of_esmm():
    x, config = rows()[0], {"tower": (7,)}
    escm2 = built(ESCM2.Config(**config))
    esmm = ESMM(D, OUTPUTS, ESMM.Config(**config), binary=BINARY)
    esmm.load_state_dict(escm2.state_dict())
    found, expected = escm2(Representation(x)), esmm(Representation(x))
    torch.testing.assert_close(dict(found.logits), dict(expected.logits), rtol=0, atol=0)
    torch.testing.assert_close(dict(found.predictions), dict(expected.predictions), rtol=0, atol=0)


def trained_towers(head, name):
    """Which towers a term trains."""
    x, labels, weights = rows()
    term = head.terms(head(Representation(x)), labels, weights)[name]
    head.zero_grad()
    (term.value * term.weight).sum().backward()
    return (head.towers.last.weight.grad.abs().sum((1, 2)) != 0).tolist()


def test_risks_do_not_train_the_propensity():
    assert trained_towers(built(ESCM2.Config()), "escm2/buy_given_cart") == [False, False, False, True]
    head = built(ESCM2.Config(estimator="dr"))
    for name in ("escm2/buy_given_cart", "escm2/buy_given_cart/imputation"):
        assert trained_towers(head, name) == [False, False, False, True, False, True]


def simulated(estimator):
    """Rows that are clicked the likelier the likelier they buy: the terms, and the risk were all outcomes known."""
    rng = np.random.default_rng(0)
    count = 400_000
    taste = rng.normal(size=count)
    propensity = 0.2 + 0.7 / (1 + np.exp(-2 * taste))
    would_buy = (rng.random(count) < 1 / (1 + np.exp(-1.5 * taste))).astype(float)
    clicked = (rng.random(count) < propensity).astype(float)
    conditional = torch.full((1, count), -0.5)
    full = np.mean(np.log1p(np.exp(-0.5)) + 0.5 * would_buy)
    hidden = {
        "conditional": conditional,
        "propensity": torch.from_numpy(propensity).float().log().unsqueeze(0),
        "imputed": torch.from_numpy(rng.random((1, count))).float(),
    }
    labels = torch.from_numpy(np.stack([clicked, clicked * would_buy], 1)).float()
    head = ESCM2(D, ["click", "buy"], ESCM2.Config(estimator=estimator, weight=1.0))
    terms = head.terms(HeadOutput(logits={}, hidden=hidden), labels, torch.ones_like(labels))
    clicks_only = np.mean((np.log1p(np.exp(-0.5)) + 0.5 * would_buy)[clicked == 1])
    return float(terms[IPS].value.double().mean()), full, clicks_only


@pytest.mark.parametrize("estimator", ["ips", "dr"])
def test_risk_is_unbiased_where_clicks_are_no_random_sample(estimator):
    found, full, clicks_only = simulated(estimator)
    assert abs(clicks_only - full) > 0.05
    assert abs(found - full) < 0.01


def test_clipping_bounds_the_weight_of_a_row():
    head = ESCM2(D, ["click", "buy"], ESCM2.Config(weight=1.0, clip=15.0))
    hidden = {"conditional": torch.zeros(1, 2), "propensity": torch.tensor([[-1e4, -0.1]])}
    terms = head.terms(HeadOutput(logits={}, hidden=hidden), torch.ones(2, 2), torch.ones(2, 2))
    expected = torch.tensor([15.0, np.exp(0.1)], dtype=torch.float32) * np.log(2)
    torch.testing.assert_close(terms[IPS].value, expected)


def test_space_is_refused_with_a_remedy():
    def task(name, **further):
        loss = PluginConfig(type="bce")
        return TaskConfig.model_validate({"name": name, "kind": "binary", "label": name, "loss": loss, **further})

    (found,) = ESCM2.Config().problems([task("click"), task("buy", space="click")])
    assert found.startswith("escm2 learns P(buy) over all rows of 'click'")
    assert "remove its space" in found


def test_a_whole_model_learns_every_task():
    before, after = losses_over_training(ESCM2, ESCM2.Config(tower=(16,), estimator="dr"))
    assert (after < before).all()


VARIANTS = [
    ESCM2.Config(estimator="dr", tower=(8,), norm="batch"),
    ESCM2.Config(estimator="dr", tower=()),
    ESCM2.Config(tower=(8,), norm="layer"),
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c.estimator}-{c.norm}")
@pytest.mark.parametrize("outputs", [("click",), ("click", "cart", "buy", "spend")], ids=len)
def test_options_break_no_promise(config, outputs):
    check_head(ESCM2, config, outputs=outputs)
