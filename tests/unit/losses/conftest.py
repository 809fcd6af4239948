"""Statistics of a sample, and fits of one constant to it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from torchrec_mtl.data.statistics import LabelStatistics, Moments, Sample, to_bins
from torchrec_mtl.losses.base import LabelScale, Loss, LossConfig


@pytest.fixture
def scale_of() -> Callable[..., LabelScale]:
    """Return the scale of labels [n], with the target of a config."""

    def moments(values):
        found = Moments()
        found.add(values)
        return found.mean, found.std

    def build(labels, config: LossConfig | None = None) -> LabelScale:
        sample = Sample()
        sample.add(labels)
        (mean, std), (log_mean, log_std) = moments(labels), moments(np.log(labels[labels > 0]))
        target_mean, target_std = moments(labels if config is None else config.target(labels))
        quantiles, shares, bin_means = (tuple(values.tolist()) for values in to_bins(sample.sorted()))
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

    return build


@pytest.fixture
def fit() -> Callable[[Loss, Tensor], Tensor]:
    """Fit one row of logits to labels [n]; return it, [1] or [1, P]."""

    def run(loss: Loss, labels: Tensor, start: float = 0.0) -> Tensor:
        shape = (1,) if loss.num_outputs == 1 else (1, loss.num_outputs)
        logits = torch.full(shape, start, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], lr=1, max_iter=300, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            value = loss(logits.expand(len(labels), *shape[1:]), labels).mean()
            value.backward()
            return value

        optimizer.step(closure)
        return logits.detach()

    return run
