"""Lognormal likelihoods: against torch's distribution, and as estimators of the mean."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import LogNormal as Reference
from torch.nn import functional as F

from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.losses.lognormal import LogNormal, ZeroInflatedLogNormal

SCALE = LabelScale(mean=3.0, std=2.0, positive_rate=0.3, log_mean=1.5, log_std=0.8)
LABELS = torch.tensor([0.0, 0.1, 4.0, 60.0, 0.0, 5.0])
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def parameters(logits, min_sigma=0.01, max_sigma=3.0):
    start = math.log(math.exp(1 - min_sigma) - 1)
    sigma = (min_sigma + F.softplus(logits[:, 1] + start)).clamp(max=max_sigma)
    return 1.5 + 0.8 * logits[:, 0], 0.8 * sigma


def test_lognormal_equals_the_distribution():
    loss, (mu, sigma) = LogNormal(LogNormal.Config(), SCALE), parameters(LOGITS[:, 1:])
    y = LABELS.clamp_min(0.01)
    torch.testing.assert_close(loss(LOGITS[:, 1:], y), -Reference(mu, sigma).log_prob(y))
    torch.testing.assert_close(loss.predict(LOGITS[:, 1:]), Reference(mu, sigma).mean)


def test_ziln_equals_its_formula():
    loss = ZeroInflatedLogNormal(ZeroInflatedLogNormal.Config(), SCALE)
    (mu, sigma), p = parameters(LOGITS[:, 1:]), torch.sigmoid(LOGITS[:, 0] + math.log(0.3 / 0.7))
    positive = LABELS > 0
    density = Reference(mu, sigma).log_prob(LABELS.clamp_min(0.01))
    expected = torch.where(positive, -p.log() - density, -(1 - p).log())
    torch.testing.assert_close(loss(LOGITS, LABELS), expected)
    torch.testing.assert_close(loss.predict(LOGITS), p * Reference(mu, sigma).mean)


def test_zero_logits_are_the_training_distribution():
    loss = ZeroInflatedLogNormal(ZeroInflatedLogNormal.Config(min_sigma=0.2), SCALE)
    expected = 0.3 * Reference(torch.tensor(1.5), torch.tensor(0.8)).mean
    torch.testing.assert_close(loss.predict(torch.zeros(2, 3)), expected.expand(2))


@pytest.mark.parametrize("start", [0.0, 2.0])
def test_a_constant_fit_finds_rate_and_mean_of_zero_inflated_data(fit, scale_of, start):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(20_000) < 0.4, rng.lognormal(1, 1.2, 20_000), 0.0)
    y = torch.tensor(labels, dtype=torch.float32)
    loss = ZeroInflatedLogNormal(ZeroInflatedLogNormal.Config(), scale_of(labels))
    assert loss.predict(fit(loss, y, start))[0].item() == pytest.approx(labels.mean(), rel=0.04)
    assert loss.predict(torch.zeros(1, 3))[0].item() == pytest.approx(labels.mean(), rel=0.04)
    alone = LogNormal(LogNormal.Config(), scale_of(labels[labels > 0]))
    found = alone.predict(fit(alone, y[y > 0], start))[0].item()
    assert found == pytest.approx(labels[labels > 0].mean(), rel=0.04)


def test_rows_of_label_zero_have_no_gradient_of_the_density():
    logits = LOGITS.clone().requires_grad_()
    ZeroInflatedLogNormal(ZeroInflatedLogNormal.Config(), SCALE)(logits, LABELS).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(logits.grad[LABELS == 0][:, 1:], torch.zeros(2, 2))
    assert (logits.grad[:, 0] != 0).all()


def test_sigma_is_bounded_and_finds_its_way_back():
    loss = LogNormal(LogNormal.Config(max_sigma=2.0), SCALE)
    wide = torch.tensor([[0.0, 50.0]], requires_grad=True)
    assert loss.predict(wide).item() == pytest.approx(math.exp(1.5 + (0.8 * 2.0) ** 2 / 2))
    loss(wide, torch.tensor([4.0])).sum().backward()
    assert wide.grad[0, 1] > 0


def test_predictions_are_finite_at_any_logit():
    loss = ZeroInflatedLogNormal(ZeroInflatedLogNormal.Config(), SCALE)
    found = loss.predict(torch.tensor([[1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [1e4, -1e4, 1e4]]))
    assert torch.isfinite(found).all()
    assert found.max() <= math.exp(1.5 + 0.8**2 / 2 + 20) * 1.001


def test_predictions_are_finite_where_no_mean_is(scale_of):
    labels = np.array([0.0, 1e-6, 1.0, 1e12])
    both = ZeroInflatedLogNormal(ZeroInflatedLogNormal.Config(), scale_of(labels))
    alone = LogNormal(LogNormal.Config(), scale_of(labels[1:]))
    found = both.predict(torch.tensor([[0.0, 0.0, 0.0], [-1e4, 0.0, 0.0], [1e4, 1e4, 1e4]]))
    assert torch.isfinite(found).all()
    assert found[1] == 0
    torch.testing.assert_close(alone.predict(torch.zeros(1, 2)), torch.tensor([math.exp(80)]))


def test_rates_of_all_or_nothing_stay_finite():
    for rate in (0.0, 1.0):
        loss = ZeroInflatedLogNormal(ZeroInflatedLogNormal.Config(), LabelScale(positive_rate=rate))
        assert torch.isfinite(loss(torch.zeros(2, 3), torch.tensor([0.0, 1.0]))).all()
