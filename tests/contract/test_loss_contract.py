"""Every built-in loss keeps the promises of a loss, and the check refuses losses that break one."""

import pytest
import torch

from torchrec_mtl.losses.base import LabelScale, Loss, LossConfig
from torchrec_mtl.losses.binary import BinaryCrossEntropy
from torchrec_mtl.losses.regression import Huber, MeanSquaredError
from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.testing import check_loss


@pytest.mark.parametrize("name", BUILT_IN["loss"])
def test_built_in_loss_keeps_its_promises(name):
    check_loss(resolve("loss", name))


@pytest.mark.parametrize(
    "config",
    [
        MeanSquaredError.Config(transform="log1p", minimum=0),
        MeanSquaredError.Config(standardize=False, clip=50),
        BinaryCrossEntropy.Config(pos_weight=5.0, label_smoothing=0.1),
    ],
    ids=str,
)
def test_options_break_no_promise(config):
    check_loss(resolve("loss", config.type), config)


class Plain(Huber):
    """Sound."""


class NoKind(Huber):
    kinds = ()


class Summed(Huber):
    def forward(self, logits, labels):
        return super().forward(logits, labels).sum().unsqueeze(0)


class Centred(Huber):
    def forward(self, logits, labels):
        return super().forward(logits - logits.mean(), labels)


class Overflows(Huber):
    def forward(self, logits, labels):
        return (logits - self.standardised(labels)).cosh()


class RootOfZero(Huber):
    def forward(self, logits, labels):
        return (logits - logits.detach()).abs().sqrt() + super().forward(logits, labels)


class BelowZero(Huber):
    def forward(self, logits, labels):
        return super().forward(logits, labels) - 1


class PredictsLogits(BinaryCrossEntropy):
    def predict(self, logits):
        return logits


class PredictsColumns(Huber):
    def predict(self, logits):
        return super().predict(logits).unsqueeze(1)


class RanksPredictions(Huber):
    def predict(self, logits):
        return logits.argsort().argsort().float()


class Constant(Huber):
    def forward(self, logits, labels):
        return labels.abs() + 0 * logits


class Forgets(Loss):
    """Keeps the label's mean in an attribute."""

    kinds = ("regression",)
    Config = LossConfig

    def __init__(self, config, scale: LabelScale):
        super().__init__(config, scale)
        self.mean = scale.mean

    def forward(self, logits, labels):
        return (logits + self.mean - labels).abs()

    def predict(self, logits):
        return logits + self.mean


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (NoKind, r"has kinds \(\), expected some of 'binary', 'regression'"),
        (Summed, r"returns values of shape \(1,\), expected \[B\]"),
        (Centred, "lets a row's value depend on the other rows"),
        (Overflows, "has values that are not finite"),
        (RootOfZero, "has gradients that are not finite"),
        (BelowZero, "has a value of -0.* for a regression label .*; say may_be_negative = True"),
        (PredictsLogits, "predicts probabilities outside of 0 to 1"),
        (PredictsColumns, r"returns predictions of shape \(9, 1\), expected \[B\]"),
        (RanksPredictions, "lets a row's prediction depend on the other rows"),
        (Constant, "has no gradient for ordinary logits"),
        (Forgets, "keep what it knows in buffers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_promise_is_named(broken, message):
    check_loss(Plain, Huber.Config())
    config = LossConfig(type="x") if broken is Forgets else broken.Config(type="x")
    with pytest.raises(AssertionError, match=message):
        check_loss(broken, config)


def test_a_class_that_no_config_can_name_is_refused():
    class Inside(Huber):
        pass

    with pytest.raises(AssertionError, match="Inside cannot be named in a config"):
        check_loss(Inside, Huber.Config())
    assert torch.is_grad_enabled()
