"""Regression by thresholds: buckets, probabilities, restored values."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from torchrec_mtl.data.statistics import to_bins
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.losses.ordinal import Ordinal


def scale(labels) -> LabelScale:
    quantiles, shares, bin_means = (tuple(v.tolist()) for v in to_bins(np.sort(labels)))
    return LabelScale(mean=labels.mean(), std=labels.std(), quantiles=quantiles, shares=shares, bin_means=bin_means)


def skewed(num_rows=5000):
    rng = np.random.default_rng(0)
    return np.where(rng.random(num_rows) < 0.5, np.round(rng.lognormal(1, 1, num_rows), 1), 0.0)


def test_thresholds_are_quantiles_and_buckets_average_their_labels():
    labels = np.arange(1.0, 1025.0)
    loss = Ordinal(Ordinal.Config(num_thresholds=3), scale(labels))
    assert loss.thresholds.tolist() == [256.0, 512.0, 768.0]
    assert loss.means.tolist() == [128.5, 384.5, 640.5, 896.5]
    torch.testing.assert_close(torch.sigmoid(loss.log_odds), torch.tensor([0.75, 0.5, 0.25]))


def test_zeros_make_one_threshold_whose_rate_is_exact():
    labels = skewed()
    loss = Ordinal(Ordinal.Config(), scale(labels))
    thresholds = loss.thresholds.numpy()
    assert thresholds[0] == 0.0
    assert (np.diff(thresholds) > 0).all()
    assert loss.num_outputs == len(thresholds) < 32
    buckets = np.searchsorted(thresholds, labels.astype(np.float32))
    np.testing.assert_allclose(loss.means, [labels[buckets == m].mean() for m in range(len(thresholds) + 1)], rtol=1e-5)
    rates = [(labels.astype(np.float32) > t).mean() for t in thresholds]
    np.testing.assert_allclose(torch.sigmoid(loss.log_odds), rates, rtol=1e-5)


@pytest.mark.parametrize("delta", [None, 0.5])
def test_loss_equals_its_formula(delta):
    labels = skewed(300)
    loss = Ordinal(
        Ordinal.Config(num_thresholds=8, restoration_weight=0.7, delta=delta, order_weight=0.3), scale(labels)
    )
    logits = torch.randn(300, loss.num_outputs, generator=torch.Generator().manual_seed(0))
    y = torch.tensor(labels, dtype=torch.float32)
    found, t, c = loss(logits, y), loss.thresholds, loss.means
    phi = torch.sigmoid(logits + loss.log_odds)
    for i in range(20):
        bce = np.mean([F.binary_cross_entropy(p, (y[i] > s).float()).item() for p, s in zip(phi[i], t)])
        restored = c[0] + sum(p * (b - a) for p, a, b in zip(phi[i], c, c[1:]))
        error = (restored - y[i]) / labels.std()
        huber = 0.5 * error**2 if delta is None else F.huber_loss(error, torch.tensor(0.0), delta=delta)
        order = sum(max(0.0, (b - a).item()) for a, b in zip(phi[i], phi[i, 1:]))
        assert found[i].item() == pytest.approx(bce + 0.7 * huber.item() + 0.3 * order, rel=1e-4)
        assert loss.predict(logits)[i].item() == pytest.approx(restored.item(), rel=1e-5)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=600), st.integers(1, 255))
def test_zero_logits_predict_the_training_mean(labels, num_thresholds):
    labels = np.array(labels, dtype=float)
    assume(labels.min() < labels.max())
    loss = Ordinal(Ordinal.Config(num_thresholds=num_thresholds), scale(labels))
    logits = torch.zeros(1) if loss.num_outputs == 1 else torch.zeros(1, loss.num_outputs)
    assert loss.predict(logits).item() == pytest.approx(labels.mean(), rel=1e-5, abs=1e-6)


def test_probabilities_of_a_fit_are_the_shares_above_the_thresholds(fit):
    labels = skewed()
    loss, y = Ordinal(Ordinal.Config(num_thresholds=8), scale(labels)), torch.tensor(labels, dtype=torch.float32)
    probabilities = torch.sigmoid(fit(loss, y, start=0.5) + loss.log_odds)[0]
    shares = (y.unsqueeze(1) > loss.thresholds).float().mean(0)
    torch.testing.assert_close(probabilities, shares, rtol=0, atol=1e-3)


def test_disorder_is_punished():
    labels = skewed()
    loss = Ordinal(Ordinal.Config(restoration_weight=0.0, order_weight=5.0), scale(labels))
    plain = Ordinal(Ordinal.Config(restoration_weight=0.0, order_weight=0.0), scale(labels))
    ordered = torch.zeros(1, loss.num_outputs)
    shuffled = ordered.clone()
    shuffled[0, 3] = 5.0
    y = torch.zeros(1)
    assert torch.equal(loss(ordered, y), plain(ordered, y))
    phi = torch.sigmoid(shuffled + loss.log_odds)[0]
    expected = 5 * (phi[3] - phi[2])
    torch.testing.assert_close((loss(shuffled, y) - plain(shuffled, y))[0], expected)


def test_without_quantiles_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"quantiles of the training labels are not known.*start a new run"):
        Ordinal(Ordinal.Config(), LabelScale())


def test_labels_that_are_all_equal_leave_no_threshold():
    with pytest.raises(ValueError, match=r"all training labels equal 3, .*; use another loss, or leave the task out"):
        Ordinal(Ordinal.Config(), scale(np.full(10, 3.0)))


@pytest.mark.parametrize("num_zeros", [1, 10])
def test_a_few_zeros_among_equal_labels_make_the_one_threshold(num_zeros):
    labels = np.full(1000, 5.0)
    labels[:num_zeros] = 0.0
    loss = Ordinal(Ordinal.Config(), scale(labels))
    assert loss.thresholds.tolist() == [0.0]
    assert loss.means.tolist() == [0.0, 5.0]
    assert torch.sigmoid(loss.log_odds).item() == pytest.approx(1 - num_zeros / 1000)
