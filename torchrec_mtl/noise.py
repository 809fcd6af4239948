"""Random numbers that depend on (seed, step, name, row of the global batch) alone.

There is nothing to resume, and they are equal at any world size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def stable_seed(*parts: object) -> int:
    """Return a 63-bit seed from a hash of ``parts``, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Noise:
    """Noise of one step.

    Attributes:
        seed: seed of the run.
        step: number of the global batch.
        rows: [B] slots of this rank's rows in the global batch.
        global_size: rows of the global batch.
    """

    seed: int
    step: int
    rows: Tensor
    global_size: int

    def uniform(self, name: str, *size: int) -> Tensor:
        """Return [B, *size] numbers in (0, 1); ``name`` tells one use in a model from another."""
        generator = torch.Generator().manual_seed(stable_seed(self.seed, self.step, name))
        everyone = torch.rand(self.global_size, *size, generator=generator)
        # torch.rand may return 0, whose logit is infinite.
        tiny = torch.finfo(torch.float32).tiny
        return everyone.clamp_min_(tiny).to(self.rows.device, non_blocking=True)[self.rows]
