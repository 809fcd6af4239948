"""What is exported of NCS4CVR: a network of its own for each task, cut down to what it uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadOutput
from torchrec_mtl.heads.chain import chain_logits, conditional_predictions
from torchrec_mtl.heads.compact import CompactNetwork


class CompactHead(Head):
    """Logits of all tasks, each by its compact network; for inference alone.

    Args:
        trained: the head that they were made of.
        networks: one a task.
        chain: tasks whose logits are of conditionals, in causal order.
    """

    def __init__(self, trained: Head, networks: Sequence[CompactNetwork], chain: Sequence[str]) -> None:
        """See the class."""
        super().__init__(trained.in_features, trained.outputs, trained.config)
        self.networks, self.chain = nn.ModuleList(networks), tuple(chain)

    def forward(self, representation: Representation) -> HeadOutput:
        """Return logits, and the conditional probabilities of a chain."""
        made = {
            task: network(representation.of_task(k))
            for k, (task, network) in enumerate(zip(self.outputs, self.networks, strict=True))
        }
        logits = {task: z.squeeze(1) if self.outputs[task] == 1 else z for task, z in made.items()}
        if not self.chain:
            return HeadOutput(logits=logits)
        conditional = torch.stack([logits[name] for name in self.chain])
        logits |= zip(self.chain, chain_logits(conditional)[0], strict=True)
        return HeadOutput(logits=logits, predictions=conditional_predictions(self.chain, conditional))
