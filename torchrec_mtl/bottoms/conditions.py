"""What makes a layer norm conditional: scales and shifts for every task and behaviour, from a hyper-network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

# Shapes: K tasks, J sequences, n layer norms, d their width.

Condition = Literal["both", "task", "behavior"]


class HyperNetwork(nn.Module):
    """Scales and shifts of n layer norms for all pairs of a task and a sequence: ``MLP([t_k; b_j])`` (DTRN, TIM).

    ``scale = 1 + MLP(..)``, and the last layer starts at zero, so that at first all norms are plain ones. One more task
    costs its embedding t_k, one more type of behaviour its b_j.

    Args:
        num_tasks: K.
        behaviors: type of each of the J sequences; those of one type share b_j.
        num_norms: n.
        width: d.
        condition: both; or only the task, or only the behaviour, is known to the network.
        task_dim: width of t_k.
        behavior_dim: width of b_j.
        hidden: widths of the MLP's hidden layers.
    """

    kinds: Tensor

    def __init__(
        self,
        num_tasks: int,
        behaviors: Sequence[str],
        num_norms: int,
        width: int,
        *,
        condition: Condition = "both",
        task_dim: int = 16,
        behavior_dim: int = 16,
        hidden: Sequence[int] = (64,),
    ) -> None:
        """See the class."""
        super().__init__()
        kinds = list(dict.fromkeys(behaviors))
        self.register_buffer("kinds", torch.tensor([kinds.index(b) for b in behaviors]), persistent=False)
        self.num_tasks, self.num_norms, self.width = num_tasks, num_norms, width
        self.tasks = nn.Parameter(torch.randn(num_tasks, task_dim)) if condition != "behavior" else None
        self.behaviors = nn.Parameter(torch.randn(len(kinds), behavior_dim)) if condition != "task" else None
        known = sum(e.shape[1] for e in (self.tasks, self.behaviors) if e is not None)
        layers: list[nn.Module] = []
        for i, o in pairwise((known, *hidden)):
            layers += [nn.Linear(i, o), nn.ReLU()]
        last = nn.Linear((known, *hidden)[-1], 2 * num_norms * width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(*layers, last)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return scales and shifts, [n, J, K, d] each."""
        shape = (len(self.kinds), self.num_tasks)
        parts = []
        if self.tasks is not None:
            parts.append(self.tasks.unsqueeze(0).expand(*shape, -1))
        if self.behaviors is not None:
            parts.append(self.behaviors[self.kinds].unsqueeze(1).expand(*shape, -1))
        made = self.mlp(torch.cat(parts, dim=-1)).unflatten(-1, (2, self.num_norms, self.width))
        scale, shift = made.permute(2, 3, 0, 1, 4).unbind(0)
        return 1 + scale, shift


class PlainNorms(nn.Module):
    """Scales and shifts of n layer norms that know neither task nor behaviour, as in any transformer.

    Args:
        num_sequences: J.
        num_norms: n.
        width: d.
    """

    def __init__(self, num_sequences: int, num_norms: int, width: int) -> None:
        """See the class."""
        super().__init__()
        self.num_sequences = num_sequences
        self.weight = nn.Parameter(torch.ones(num_norms, 1, 1, width))
        self.bias = nn.Parameter(torch.zeros(num_norms, 1, 1, width))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return scales and shifts, [n, J, 1, d] each."""
        shape = (-1, self.num_sequences, -1, -1)
        return self.weight.expand(shape), self.bias.expand(shape)


class FixedNorms(nn.Module):
    """Scales and shifts that no longer change: what a hyper-network gave when training ended.

    Args:
        scale: [n, J, K, d].
        shift: [n, J, K, d].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("shift", shift.detach().clone())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return scales and shifts."""
        return self.scale, self.shift
