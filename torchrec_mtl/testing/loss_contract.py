"""The promises of a loss, each checked by a function of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchrec_mtl.data.arrow import Doubles
from torchrec_mtl.data.statistics import LabelStatistics, Moments, Sample, to_bins
from torchrec_mtl.losses.base import LabelScale, Loss, LossConfig
from torchrec_mtl.registry import resolve

# Shapes: B rows, P logits a row.

_LOGITS = (-1.0e4, -200.0, -20.0, -1.0, 0.0, 1.0, 20.0, 200.0, 1.0e4)
_ROUNDING = -1.0e-6


def check_loss(loss_class: type[Loss], config: LossConfig | None = None) -> None:
    """Check that a loss keeps its promises; call it in a test of your own loss.

    It returns one finite value a row with finite gradients, for logits of any size and for all labels of its domain; a
    row's value depends on that row alone; it has a lower bound of 0 unless ``may_be_negative`` says otherwise; its
    predictions are finite, one a row, and of a binary task between 0 and 1; what it knows of the labels is in buffers,
    which a state dict carries; a config can name it.

    Args:
        loss_class: the class, at the top level of a module.
        config: options; by default the class's own.

    Raises:
        AssertionError: says which promise is broken.

    Example:
        >>> from torchrec_mtl.losses.regression import Huber
        >>> check_loss(Huber, Huber.Config(delta=2.0))
    """
    config = loss_class.Config(type=loss_class.__name__) if config is None else config
    subject = _Subject(loss_class, config)
    _check_class(subject)
    for kind in loss_class.kinds:
        _check_values(subject, kind)
        _check_rows(subject, kind)
        _check_state(subject, kind)


@dataclass(frozen=True)
class _Subject:
    loss_class: type[Loss]
    config: LossConfig

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise AssertionError(f"{self.loss_class.__name__} {message}")

    def labels(self, kind: str) -> Doubles:
        """Return labels of its kind and domain: half of them 0 where it takes zeros, and skewed."""
        rng = np.random.default_rng(0)
        zeros = rng.random(2000) < 0.5
        if kind == "binary":
            return zeros.astype(float)
        values = rng.gamma(0.7, 20.0, 2000).astype(np.float32).astype(float) + 1e-3
        if self.config.domain == "real":
            values = np.where(rng.random(2000) < 0.3, -values, values)
        return values if self.config.domain == "positive" else np.where(zeros, 0.0, values)

    def build(self, labels: Doubles) -> Loss:
        return self.loss_class(self.config, scale_of(labels, self.config))


def _check_class(subject: _Subject) -> None:
    loss_class = subject.loss_class
    subject.require(issubclass(loss_class, Loss), "is no subclass of torchrec_mtl.Loss")
    subject.require(issubclass(loss_class.Config, LossConfig), "has a Config that is no subclass of LossConfig")
    kinds = getattr(loss_class, "kinds", ())
    known = bool(kinds) and set(kinds) <= {"binary", "regression"}
    subject.require(known, f"has kinds {kinds!r}, expected some of 'binary', 'regression'")
    path = f"{loss_class.__module__}:{loss_class.__qualname__}"
    try:
        found = resolve("loss", path)
    except ValueError as error:
        raise AssertionError(f"{loss_class.__name__} cannot be named in a config: {error}") from error
    subject.require(found is loss_class, f"cannot be named in a config: '{path}' is another class")


def _check_values(subject: _Subject, kind: str) -> None:
    labels = subject.labels(kind)
    loss = subject.build(labels)
    subject.require(loss.num_outputs >= 1, f"asks for {loss.num_outputs} logits a row")
    for label in sorted({float(labels.min()), float(np.median(labels)), float(labels.max())}):
        logits = _rows(loss, torch.tensor(_LOGITS)).requires_grad_()
        values = loss(logits, torch.full((len(_LOGITS),), label))
        when = f"for a {kind} label of {label:g}"
        shape = tuple(values.shape)
        subject.require(shape == (len(_LOGITS),), f"returns values of shape {shape}, expected [B] {when}")
        subject.require(bool(torch.isfinite(values).all()), f"has values that are not finite {when}, {_LOGITS=}")
        low = float(values.detach().min())
        remedy = "say may_be_negative = True"
        may = subject.loss_class.may_be_negative or low >= _ROUNDING
        subject.require(may, f"has a value of {low:g} {when}; {remedy}")
        [gradient] = torch.autograd.grad(values.sum(), logits)
        subject.require(bool(torch.isfinite(gradient).all()), f"has gradients that are not finite {when}")
        found = loss.predict(logits.detach())
        subject.require(tuple(found.shape) == shape, f"returns predictions of shape {tuple(found.shape)}, expected [B]")
        subject.require(bool(torch.isfinite(found).all()), "has predictions that are not finite")
        within = kind != "binary" or bool(((found >= 0) & (found <= 1)).all())
        subject.require(within, "predicts probabilities outside of 0 to 1")


def _check_rows(subject: _Subject, kind: str) -> None:
    y = torch.tensor(subject.labels(kind)[:8], dtype=torch.float32)
    loss, g = subject.build(subject.labels(kind)), torch.Generator().manual_seed(0)
    logits = _rows(loss, torch.randn(8, generator=g))
    order = torch.tensor([5, 2, 7])
    for what, whole, part in (
        ("value", loss(logits, y), loss(logits[order], y[order])),
        ("prediction", loss.predict(logits), loss.predict(logits[order])),
    ):
        same = torch.allclose(whole[order], part, rtol=1e-4, atol=1e-5)
        subject.require(same, f"lets a row's {what} depend on the other rows of the batch")
    moved = torch.autograd.grad(loss(logits.requires_grad_(), y).sum(), logits)[0]
    subject.require(bool((moved != 0).any()), "has no gradient for ordinary logits")


def _check_state(subject: _Subject, kind: str) -> None:
    labels = subject.labels(kind)
    one, other = subject.build(labels), subject.build(labels if kind == "binary" else labels * 3)
    other.load_state_dict(one.state_dict())
    logits = _rows(one, torch.tensor([-1.0, 0.2, 3.0]))
    y = torch.tensor(labels[:3], dtype=torch.float32)
    same = torch.equal(one(logits, y), other(logits, y)) and torch.equal(one.predict(logits), other.predict(logits))
    subject.require(
        same, "is another loss once its state dict is loaded into one of other labels; keep what it knows in buffers"
    )


def _rows(loss: Loss, values: Tensor) -> Tensor:
    """Return logits [B], or [B, P] of P equal ones."""
    return values if loss.num_outputs == 1 else values.unsqueeze(1).repeat(1, loss.num_outputs)


def scale_of(labels: Doubles, config: LossConfig) -> LabelScale:
    """Return what the pass over the training data would say of the labels."""
    sample = Sample()
    sample.add(labels)
    quantiles, shares, bin_means = (tuple(values.tolist()) for values in to_bins(sample.sorted()))
    mean, std = _moments(labels)
    target_mean, target_std = _moments(config.target(labels))
    log_mean, log_std = _moments(np.log(labels[labels > 0]))
    return LabelScale.of(
        LabelStatistics(
            rows=len(labels),
            weight=float(len(labels)),
            mean=mean,
            std=std,
            positive_rate=float((labels > 0).mean()),
            target_mean=target_mean,
            target_std=target_std,
            log_mean=log_mean,
            log_std=log_std,
            quantiles=quantiles,
            shares=shares,
            bin_means=bin_means,
        )
    )


def _moments(values: Doubles) -> tuple[float, float]:
    found = Moments()
    found.add(values)
    return found.mean, found.std
