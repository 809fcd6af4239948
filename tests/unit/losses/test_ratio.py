"""The loss of a fraction equals its formula; as in NCS4CVR, rows outside the task's space neither count nor train."""

import dataclasses

import numpy as np
import pytest
import torch

from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.losses.ratio import Ratio
from torchrec_mtl.model import build_model
from torchrec_mtl.testing.subject import Subject

LOSS = Ratio(Ratio.Config(), LabelScale())
LABELS = torch.tensor([0.0, 0.2, 0.5, 1.0, 3.0, -1.0])
LOGITS = torch.tensor([-2.0, -0.5, 0.0, 0.7, 2.0, 4.0])
WEIGHT = 1.5


def test_equals_its_formula():
    expected = [(1 / (1 + np.exp(-z)) - min(max(y, 0.0), 1.0)) ** 2 for z, y in zip(LOGITS.tolist(), LABELS.tolist())]
    torch.testing.assert_close(LOSS(LOGITS, LABELS), torch.tensor(expected, dtype=torch.float32))


def test_gradient_equals_its_formula():
    logits, p, c = LOGITS.clone().requires_grad_(), torch.sigmoid(LOGITS), LABELS.clamp(0, 1)
    LOSS(logits, LABELS).sum().backward()
    torch.testing.assert_close(logits.grad, 2 * (p - c) * p * (1 - p))
    assert torch.autograd.gradcheck(lambda z: LOSS(z, LABELS.double()), LOGITS.double().requires_grad_())


def test_predictions_are_fractions():
    found = LOSS.predict(torch.linspace(-15, 15, 61))
    assert ((found > 0) & (found < 1)).all()
    extreme = LOSS.predict(torch.tensor([-1e4, 0.0, 1e4]))
    assert extreme.tolist() == [0, 0.5, 1]


def test_the_scale_of_the_training_labels_is_ignored():
    scaled = Ratio(Ratio.Config(), LabelScale(mean=40.0, std=8.0, target_mean=0.3, target_std=0.1))
    assert torch.equal(scaled(LOGITS, LABELS), LOSS(LOGITS, LABELS))
    assert torch.equal(scaled.predict(LOGITS), LOSS.predict(LOGITS))


def test_a_fitted_constant_predicts_the_mean_of_the_clipped_labels(fit):
    labels = torch.tensor(np.random.default_rng(0).gamma(0.7, 0.8, 2001), dtype=torch.float32)
    assert LOSS.predict(fit(LOSS, labels)).item() == pytest.approx(labels.clamp(0, 1).mean().item(), abs=1e-4)


def trained_on(labels):
    """Return losses, output, and the model after one backward; rows with a label above 0 are those of the space."""
    raw = make_config("unused.parquet", run_dir="unused")
    task = {"name": "play_ratio", "kind": "regression", "label": "play_ratio", "space": "played", "weight": WEIGHT}
    raw["tasks"] = [raw["tasks"][0], task | {"loss": {"type": "ratio"}}]
    config = parse(raw)
    model = build_model(config, {}, tables="cpu")
    batch = Subject(type(model.objective.head), config.head, dict.fromkeys(config.task_names, 1), 1).batch(len(labels))
    batch.labels[:, 1] = labels
    weights = torch.stack([torch.zeros_like(labels), (labels > 0).float()], dim=1)  # the other task sends no gradient
    losses, output = model(dataclasses.replace(batch, weights=weights))
    losses.sum().backward()
    return losses, output, model


def test_loss_is_the_mean_over_the_rows_of_the_space_alone():
    labels = torch.tensor([0.0, 0.25, 1.0, 0.0, 2.5, 0.0])
    losses, output, model = trained_on(labels)
    p, inside = output.predictions[:, 1], labels > 0
    expected = WEIGHT * ((p - labels.clamp(0, 1)) ** 2)[inside].sum() / 3
    torch.testing.assert_close(losses[1].detach(), expected)
    torch.testing.assert_close(output.losses[1], expected / WEIGHT)
    assert output.weight_sums[1] == 3
    assert ((p > 0) & (p < 1)).all()
    assert any(w.grad.abs().sum() > 0 for w in model.parameters())


def test_a_batch_without_positives_has_loss_zero_and_zero_gradient():
    # Property 9 of the paper's notes: no row to average over, and no NaN.
    losses, output, model = trained_on(torch.zeros(6))
    assert losses.tolist() == output.losses.tolist() == [0, 0]
    assert all(torch.equal(w.grad, torch.zeros_like(w)) for w in model.parameters())


def test_it_is_for_labels_from_zero_up_and_for_regressions():
    assert Ratio.Config().domain == "non_negative"
    np.testing.assert_array_equal(Ratio.Config().target(np.array([0.0, 0.4, 7.0])), [0, 0.4, 1])
    raw = make_config("unused.parquet", run_dir="unused")
    raw["tasks"][0]["loss"] = {"type": "ratio"}
    with pytest.raises(ValueError, match=r"tasks.0.loss: 'ratio' is a loss of regression tasks, but 'click' is binary"):
        parse(raw)
