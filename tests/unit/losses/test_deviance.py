"""Deviances: against their formulas, far from the data, and as estimators of the mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.losses.deviance import Gamma, Poisson, Tweedie

MEAN = 40.0
SCALE = LabelScale(mean=MEAN)
LABELS = torch.tensor([0.0, 0.5, 40.0, 56.0, 1200.0])
LOGITS = torch.tensor([-1.0, 0.5, 0.0, 3.0, -4.0])


def tweedie_deviance(y, mu, p):
    y, mu = y.double(), mu.double()
    return 2 * (y ** (2 - p) / ((1 - p) * (2 - p)) - y * mu ** (1 - p) / (1 - p) + mu ** (2 - p) / (2 - p))


@pytest.mark.parametrize("power", [1.01, 1.3, 1.5, 1.9])
def test_tweedie_equals_its_formula(power):
    loss = Tweedie(Tweedie.Config(power=power), SCALE)
    expected = tweedie_deviance(LABELS, MEAN * LOGITS.double().exp(), power) / MEAN ** (2 - power)
    torch.testing.assert_close(loss(LOGITS, LABELS).double(), expected, rtol=1e-4, atol=1e-4)


def test_poisson_equals_its_formula():
    y, mu = LABELS.double(), MEAN * LOGITS.double().exp()
    expected = 2 * (torch.xlogy(y, y / mu) - y + mu) / MEAN
    torch.testing.assert_close(
        Poisson(Poisson.Config(), SCALE)(LOGITS, LABELS).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_gamma_equals_its_formula():
    y, mu = LABELS[1:].double(), MEAN * LOGITS[1:].double().exp()
    expected = 2 * (y / mu - 1 - torch.log(y / mu))
    found = Gamma(Gamma.Config(), SCALE)(LOGITS[1:], LABELS[1:])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def every():
    return [Tweedie(Tweedie.Config(power=p), SCALE) for p in (1.01, 1.5, 1.99)] + [
        Poisson(Poisson.Config(), SCALE),
        Gamma(Gamma.Config(), SCALE),
    ]


@settings(deadline=None, derandomize=True)
@given(st.floats(-100, 100), st.floats(1e-3, 1e6))
def test_deviance_is_never_negative_and_its_slope_leads_to_the_label(logit, label):
    for loss in every():
        z = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
        value = loss(z, torch.tensor([label], dtype=torch.float64))
        value.backward()
        assert value.item() >= -1e-9 * max(1.0, label / MEAN)
        gap = logit - np.log(label / MEAN)
        assert z.grad.item() * gap >= -1e-9
        if abs(gap) > 1e-3:
            assert z.grad.item() != 0


@pytest.mark.parametrize("loss", every(), ids=lambda loss: f"{type(loss).__name__}-{loss.power}")
def test_gradient(loss):
    z = torch.tensor([-30.0, -15.0, -1.0, 0.3, 2.0, 19.0, 25.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([3.0, 50.0, 10.0, 40.0, 90.0, 7.0, 1.0], dtype=torch.float64)
    # atol: a difference of losses of 1e10 has lost digits; the loss is a straight line beyond +-20.
    assert torch.autograd.gradcheck(lambda z: loss(z, labels).log1p(), z, atol=1e-4, rtol=1e-4)


def test_a_label_of_zero_leaves_logits_below_the_range_alone():
    for loss in every()[:4]:
        z = torch.tensor([-1e4, -30.0, 30.0], requires_grad=True)
        loss(z, torch.zeros(3)).sum().backward()
        assert torch.equal(z.grad[:2], torch.zeros(2))
        assert z.grad[2] > 0


def test_the_unit_of_the_label_does_not_matter():
    for small in every():
        config = Tweedie.Config(power=small.power) if isinstance(small, Tweedie) else type(small).Config()
        large = type(small)(config, LabelScale(mean=MEAN * 1000))
        torch.testing.assert_close(large(LOGITS, LABELS * 1000), small(LOGITS, LABELS))
        torch.testing.assert_close(large.predict(LOGITS), small.predict(LOGITS) * 1000)


def test_powers_between_lead_from_poisson_to_gamma():
    near_one, *_, poisson, gamma = every()
    near_two = Tweedie(Tweedie.Config(power=1.9999), SCALE)
    near_one = Tweedie(Tweedie.Config(power=1.0001), SCALE)
    torch.testing.assert_close(near_one(LOGITS, LABELS), poisson(LOGITS, LABELS), rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(near_two(LOGITS[1:], LABELS[1:]), gamma(LOGITS[1:], LABELS[1:]), rtol=5e-3, atol=1e-3)


def test_without_a_positive_mean_the_unit_is_one():
    assert Poisson(Poisson.Config(), LabelScale()).predict(torch.zeros(1)).item() == 1.0
