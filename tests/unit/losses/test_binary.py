"""Losses of binary tasks."""

import pytest
import torch
from torch.nn import functional as F

from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.losses.binary import BinaryCrossEntropy, Focal

LABELS = torch.tensor([0.0, 1, 1, 0, 1])
LOGITS = torch.tensor([-2.0, 3.0, -0.5, 0.0, 1e-3])
EXTREME = torch.tensor([-1e4, -200.0, -90.0, 90.0, 200.0, 1e4])


def focal(**options) -> Focal:
    return Focal(Focal.Config(**options), LabelScale())


def test_bce_equals_its_formula():
    loss, p = BinaryCrossEntropy(BinaryCrossEntropy.Config(), LabelScale()), torch.sigmoid(LOGITS)
    torch.testing.assert_close(loss(LOGITS, LABELS), -LABELS * p.log() - (1 - LABELS) * (1 - p).log())
    torch.testing.assert_close(loss.predict(LOGITS), p)


def bce(**options) -> BinaryCrossEntropy:
    return BinaryCrossEntropy(BinaryCrossEntropy.Config(**options), LabelScale())


@pytest.mark.parametrize("weight", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_and_smoothed_bce_equals_its_formula(weight, smoothing):
    loss, p, y = bce(pos_weight=weight, label_smoothing=smoothing), torch.sigmoid(LOGITS), LABELS
    soft = y * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(loss(LOGITS, y), -weight * soft * p.log() - (1 - soft) * (1 - p).log())


def test_default_bce_is_the_plain_one_bit_for_bit():
    expected = F.binary_cross_entropy_with_logits(LOGITS, LABELS, reduction="none")
    assert torch.equal(bce()(LOGITS, LABELS), expected)
    assert torch.equal(bce().predict(LOGITS), torch.sigmoid(LOGITS))
    assert not bce(pos_weight=2.0).state_dict()  # checkpoints of any weight fit


@pytest.mark.parametrize("weight", [0.05, 7.0])
@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 0.3), (0.2, 0.34)])
def test_probabilities_stay_calibrated_under_pos_weight(fit, weight, smoothing, expected):
    loss = bce(pos_weight=weight, label_smoothing=smoothing)
    labels = torch.tensor([1.0] * 3 + [0.0] * 7)
    assert loss.predict(fit(loss, labels))[0].item() == pytest.approx(expected, rel=1e-3)
    assert loss.predict(torch.zeros(1)).item() == pytest.approx(1 / (1 + weight))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_focal_equals_its_formula(alpha, gamma):
    loss, p = focal(alpha=alpha, gamma=gamma), torch.sigmoid(LOGITS.double())
    on_ones, on_zeros = -alpha * (1 - p) ** gamma * p.log(), -(1 - alpha) * p**gamma * (1 - p).log()
    torch.testing.assert_close(loss(LOGITS.double(), LABELS.double()), torch.where(LABELS == 1, on_ones, on_zeros))
    torch.testing.assert_close(loss.predict(LOGITS), torch.sigmoid(LOGITS))


def test_focal_without_focus_is_weighted_cross_entropy():
    found = focal(alpha=0.5, gamma=0.0)(LOGITS, LABELS)
    torch.testing.assert_close(2 * found, F.binary_cross_entropy_with_logits(LOGITS, LABELS, reduction="none"))


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_is_finite_at_extreme_logits(gamma, label):
    logits = EXTREME.clone().requires_grad_()
    value = focal(gamma=gamma)(logits, torch.full_like(logits, label))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert (value >= 0).all()
    assert torch.isfinite(logits.grad).all()
    # Confidently right costs nothing, confidently wrong grows with the logit.
    right, wrong = (value[-1], value[0]) if label else (value[0], value[-1])
    assert right == 0
    assert wrong > 1000


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradient_of_focal(gamma):
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: focal(gamma=gamma)(z, LABELS.double()), logits)
