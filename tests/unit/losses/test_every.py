"""What holds for every built-in loss of a regression."""

import numpy as np
import pytest
import torch

from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.registry import BUILT_IN, resolve

NAMES = [name for name in BUILT_IN["loss"] if "regression" in resolve("loss", name).kinds]
POSITIVE = ("gamma", "lognormal")


def sample(name, num_rows=20_000):
    """Skewed labels that the loss is for."""
    rng = np.random.default_rng(0)
    labels = rng.gamma(0.7, 20.0, num_rows).astype(np.float32).astype(float)
    return labels if name in POSITIVE else np.where(rng.random(num_rows) < 0.4, labels, 0.0)


SHAPES = {
    "plain": lambda labels: labels,
    "tiny": lambda labels: labels * 1e-30,
    "huge": lambda labels: labels * 1e30,
    "wide": lambda labels: np.where(labels > 0, np.resize([1e-6, 1.0, 1e12], len(labels)), 0.0),
    "constant": lambda labels: np.full(len(labels), 3.0),
}


def build(name, scale_of, labels, **options):
    loss_class = resolve("loss", name)
    config = loss_class.Config(**options)
    return loss_class(config, scale_of(labels, config))


def rows(loss, values):
    values = torch.tensor(values)
    return values if loss.num_outputs == 1 else values.unsqueeze(1).expand(-1, loss.num_outputs).contiguous()


@pytest.mark.parametrize(
    ("name", "shape"), [(n, s) for n in NAMES for s in SHAPES if (n, s) != ("ordinal", "constant")]
)
def test_extreme_logits_and_labels_give_finite_losses_gradients_and_predictions(name, shape, scale_of):
    training = SHAPES[shape](sample(name, 2000)).astype(np.float32).astype(float)
    loss, unit = build(name, scale_of, training), training.std() or 1.0
    for label in (0.0, 1e-3 * unit, unit, 1e6 * unit):
        logits = rows(loss, [-1e4, -200.0, -20.0, 0.0, 20.0, 200.0, 1e4]).requires_grad_()
        value = loss(logits, torch.full((7,), label))
        assert value.shape == loss.predict(logits).shape == (7,)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(logits.grad).all()
        assert torch.isfinite(loss.predict(logits)).all()
        if not loss.may_be_negative:
            assert (value >= -1e-6).all()


@pytest.mark.parametrize("name", ["tweedie", "poisson", "gamma"])
@pytest.mark.parametrize("mean", [1e-38, 1e38])
def test_deviances_of_any_mean_stay_finite(name, mean):
    loss = resolve("loss", name)(resolve("loss", name).Config(), LabelScale(mean=mean))
    values = torch.cartesian_prod(torch.tensor([-200.0, 0.0, 200.0]), torch.tensor([0.0, 1.0, 1e38]))
    logits = values[:, 0].clone().requires_grad_()
    loss(logits, values[:, 1]).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(loss.predict(logits)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_of_weight_zero_has_no_gradient(name, scale_of):
    # As the model masks rows; their label is 0.
    loss = build(name, scale_of, sample(name, 2000))
    logits, weights = rows(loss, [-1e4, 0.3, 1e4]).requires_grad_(), torch.zeros(3)
    value = loss(logits, torch.zeros(3))
    torch.where(weights > 0, value * weights, torch.zeros(3)).sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", ["mse", "tweedie", "poisson", "gamma", "ordinal"])
def test_zero_logits_and_constant_fits_predict_the_mean(name, scale_of, fit):
    labels = sample(name)
    loss, y = build(name, scale_of, labels), torch.tensor(labels, dtype=torch.float32)
    assert loss.predict(rows(loss, [0.0])).item() == pytest.approx(labels.mean(), rel=1e-4)
    for start in (-1.0, 0.5):
        assert loss.predict(fit(loss, y, start)).item() == pytest.approx(labels.mean(), rel=0.01)


@pytest.mark.parametrize(("name", "options"), [("mae", {}), ("huber", {}), ("mse", {"transform": "log1p"})])
def test_what_the_docs_call_uncalibrated_is(name, options, scale_of, fit):
    labels = sample(name)
    loss = build(name, scale_of, labels, **options)
    found = loss.predict(fit(loss, torch.tensor(labels, dtype=torch.float32)))
    assert found.item() < 0.9 * labels.mean()


@pytest.mark.parametrize("name", NAMES)
def test_buffers_travel_with_the_state_dict(name, scale_of):
    labels = sample(name, 2000)
    loss, other = build(name, scale_of, labels), build(name, scale_of, labels * 3)
    other.load_state_dict(loss.state_dict())
    logits, y = rows(loss, [-1.0, 0.2, 3.0]), torch.tensor([1.0, 2.0, 30.0])
    assert torch.equal(other(logits, y), loss(logits, y))
    assert torch.equal(other.predict(logits), loss.predict(logits))


@pytest.mark.parametrize("name", NAMES)
def test_predictions_grow_with_the_logits(name, scale_of):
    loss = build(name, scale_of, sample(name, 2000))
    found = loss.predict(rows(loss, [-3.0, -1.0, 0.0, 1.0, 3.0]))
    assert (found.diff() > 0).all()


def test_the_scale_takes_all_that_it_names_from_statistics(scale_of):
    labels = sample("mse", 2000)
    scale = scale_of(labels)
    assert (scale.mean, scale.std) == pytest.approx((labels.mean(), labels.std()))
    assert len(scale.quantiles) == len(scale.shares) == 257
    assert len(scale.bin_means) == 256
    assert scale != LabelScale()
