"""Which numbers are of 16 bits, and where they become 32 again."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import HeadOutput
from torchrec_mtl.widths import full

Precision = Literal["fp32", "bf16"]


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products are of this precision; parameters and their gradients stay fp32."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=torch.bfloat16)


def full_representation(representation: Representation) -> Representation:
    """Return it in fp32: tasks' gradients may meet there, and their inner products want more than 8 bits."""
    views = representation.per_task
    wide = full(views) if isinstance(views, Tensor) else None if views is None else tuple(full(v) for v in views)
    return dataclasses.replace(representation, shared=full(representation.shared), per_task=wide)


def full_output(output: HeadOutput) -> HeadOutput:
    """Return it in fp32, for losses, metrics, and an index."""
    names = [field.name for field in dataclasses.fields(output)]
    return HeadOutput(**{name: {key: full(v) for key, v in getattr(output, name).items()} for name in names})
