"""Losses of regressions: standardised labels, predictions on the label's scale."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.losses.regression import Huber, MeanAbsoluteError, MeanSquaredError, Quantile

ALL = [MeanSquaredError, MeanAbsoluteError, Huber, Quantile]
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


@pytest.mark.parametrize("loss_class", ALL)
def test_predicting_the_standardised_label_is_the_label_and_costs_nothing(loss_class):
    loss = loss_class(loss_class.Config(), SCALE)
    torch.testing.assert_close(loss.predict(loss.standardised(LABELS)), LABELS)
    assert torch.equal(loss(loss.standardised(LABELS), LABELS), torch.zeros(4))


@pytest.mark.parametrize("loss_class", ALL)
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


def test_plain_mse_is_bit_identical_to_the_standardised_formula():
    # Golden losses rest on it: neither transforms nor target statistics may touch the plain loss.
    scale = LabelScale(mean=40.1, std=8.3, target_mean=1.0, target_std=2.0)
    loss, mean, std = MeanSquaredError(MeanSquaredError.Config(), scale), torch.tensor(40.1), torch.tensor(8.3)
    assert torch.equal(loss(LOGITS, LABELS), F.mse_loss(LOGITS, (LABELS - mean) / std, reduction="none"))
    assert torch.equal(loss.predict(LOGITS), LOGITS * std + mean)


def test_mae_equals_its_formula():
    loss = MeanAbsoluteError(MeanAbsoluteError.Config(), SCALE)
    torch.testing.assert_close(loss(LOGITS, LABELS), (LOGITS - STANDARDISED).abs())


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_quantile_equals_its_formula(q):
    error = STANDARDISED - LOGITS
    expected = torch.where(error >= 0, q * error, (q - 1) * error)
    torch.testing.assert_close(Quantile(Quantile.Config(q=q), SCALE)(LOGITS, LABELS), expected)


@pytest.mark.parametrize("transform", ["none", "log1p"])
@pytest.mark.parametrize("q", [0.25, 0.8])
def test_a_constant_fitted_to_the_pinball_loss_is_the_quantile(fit, scale_of, q, transform):
    labels = np.random.default_rng(0).lognormal(1, 1, 2001)
    config = Quantile.Config(q=q, transform=transform)
    loss = Quantile(config, scale_of(labels, config))
    found = loss.predict(fit(loss, torch.tensor(labels, dtype=torch.float32)))[0].item()
    assert abs((labels <= found).mean() - q) < 0.01


@pytest.mark.parametrize("loss_class", ALL)
@pytest.mark.parametrize("options", [{"transform": "log1p"}, {"clip": 60.0}, {"transform": "log1p", "clip": 60.0}])
def test_transforms_are_standardised_and_inverted(scale_of, loss_class, options):
    labels = np.random.default_rng(0).lognormal(3, 1, 1000)
    config = loss_class.Config(**options)
    loss, y = loss_class(config, scale_of(labels, config)), torch.tensor(labels, dtype=torch.float32)
    clipped = np.minimum(labels, options.get("clip", np.inf))
    target = np.log1p(clipped) if "transform" in options else clipped
    found = loss.standardised(y)
    torch.testing.assert_close(found.double(), torch.tensor((target - target.mean()) / target.std()), rtol=0, atol=1e-5)
    torch.testing.assert_close(loss.predict(found).double(), torch.tensor(clipped), rtol=1e-5, atol=1e-5)


def test_a_logarithm_wants_labels_from_zero_up():
    assert MeanSquaredError.Config().domain == "real"
    assert MeanSquaredError.Config(transform="log1p").domain == "non_negative"
