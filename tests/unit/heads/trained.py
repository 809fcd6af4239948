"""A head inside a whole model, trained for a few steps on one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchrec_mtl.testing.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

    from torchrec_mtl.heads.base import Head, HeadConfig

TASKS = ("click", "long_view", "watch_time")


def losses_over_training(head_class: type[Head], config: HeadConfig, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Return the losses [K] before and after ``steps`` of Adam, tables included."""
    torch.manual_seed(0)
    subject = Subject(head_class, config, dict.fromkeys(TASKS, 1), in_features=12)
    model, batch = subject.model(), subject.batch(32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen = []
    for _ in range(steps + 1):
        losses, _ = model(batch)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        seen.append(losses.detach()[: len(TASKS)])
    return seen[0], seen[-1]
