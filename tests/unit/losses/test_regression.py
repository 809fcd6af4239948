"""Losses of regressions: standardised labels, predictions on the label's scale."""

import pytest
import torch

from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.losses.regression import Huber, MeanSquaredError

SCALE = LabelScale(mean=40.0, std=8.0)
LABELS = torch.tensor([0.0, 40.0, 56.0, 120.0])
LOGITS = torch.tensor([-1.0, 0.5, 2.0, 3.0])
STANDARDISED = (LABELS - 40) / 8


def test_mse_equals_its_formula():
    loss = MeanSquaredError(MeanSquaredError.Config(), SCALE)
    torch.testing.assert_close(loss(LOGITS, LABELS), (LOGITS - STANDARDISED) ** 2)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_huber_equals_its_formula(delta):
    error = (LOGITS - STANDARDISED).abs()
    expected = torch.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta))
    torch.testing.assert_close(Huber(Huber.Config(delta=delta), SCALE)(LOGITS, LABELS), expected)


@pytest.mark.parametrize("loss_class", [MeanSquaredError, Huber])
def test_predicting_the_standardised_label_is_the_label_and_costs_nothing(loss_class):
    loss = loss_class(loss_class.Config(), SCALE)
    torch.testing.assert_close(loss.predict(loss.standardised(LABELS)), LABELS)
    assert torch.equal(loss(loss.standardised(LABELS), LABELS), torch.zeros(4))


@pytest.mark.parametrize("loss_class", [MeanSquaredError, Huber])
def test_without_standardisation_the_statistics_are_ignored(loss_class):
    loss = loss_class(loss_class.Config(standardize=False), SCALE)
    assert torch.equal(loss.predict(LOGITS), LOGITS)
    assert torch.equal(loss.standardised(LABELS), LABELS)


def test_minimum_raises_predictions_and_leaves_the_loss():
    clamped = MeanSquaredError(MeanSquaredError.Config(minimum=35.0), SCALE)
    free = MeanSquaredError(MeanSquaredError.Config(), SCALE)
    assert torch.equal(clamped.predict(LOGITS), free.predict(LOGITS).clamp_min(35.0))
    assert clamped.predict(LOGITS)[0] == 35.0
    assert torch.equal(clamped(LOGITS, LABELS), free(LOGITS, LABELS))


def test_statistics_travel_with_the_state_dict():
    loss = MeanSquaredError(MeanSquaredError.Config(), SCALE)
    loaded = MeanSquaredError(MeanSquaredError.Config(), LabelScale())
    loaded.load_state_dict(loss.state_dict())
    assert torch.equal(loaded.predict(LOGITS), loss.predict(LOGITS))


def test_mse_gradient_does_not_depend_on_the_unit_of_the_label():
    def gradient(unit):
        logits = LOGITS.clone().requires_grad_()
        scale = LabelScale(SCALE.mean * unit, SCALE.std * unit)
        MeanSquaredError(MeanSquaredError.Config(), scale)(logits, LABELS * unit).sum().backward()
        return logits.grad

    torch.testing.assert_close(gradient(1.0), gradient(1000.0))
