"""Statistics of a sample, and fits of one constant to it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchrec_mtl.losses.base import LabelScale, Loss, LossConfig
from torchrec_mtl.testing.loss_contract import scale_of


@pytest.fixture(name="scale_of")
def make_scale() -> Callable[..., LabelScale]:
    """Return the scale of labels [n], with the target of a config."""
    return lambda labels, config=None: scale_of(labels, config or LossConfig(type="any"))


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
