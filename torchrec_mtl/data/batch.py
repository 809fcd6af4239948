"""One rank's share of a global batch, in the shape TorchRec's train pipelines want."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclasses.dataclass(frozen=True)
class Batch(Pipelineable):
    """B rows of a global batch. Every rank has the same B at every step; missing rows are padding.

    Attributes:
        dense: [B, D0] float32, normalised.
        sparse: ids of the pooled features (``EmbeddingBagCollection``), keys in config order.
        sequences: ids of the unpooled features (``EmbeddingCollection``), keys in config order.
        labels: [B, K] float32; 0 where the weight is 0.
        weights: [B, K] float32; 0 for padding and outside the task's space.
        valid: [B] float32; 1 for a row of data, 0 for padding.
        rows: [B] int64; the row's slot in the global batch, 0 .. global_size - 1, the same at any world size.
        ids: name -> [B] int64; groups of gauc ("group"). Never an input.
        step: number of the global batch, counted over epochs; seeds the noise.
        global_size: rows of the global batch, padding included.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    sequences: KeyedJaggedTensor
    labels: Tensor
    weights: Tensor
    valid: Tensor
    rows: Tensor
    ids: Mapping[str, Tensor]
    step: int
    global_size: int

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return the batch on another device."""
        moved = {
            field.name: value.to(device=device, non_blocking=non_blocking)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, KeyedJaggedTensor))
        }
        ids = {name: value.to(device=device, non_blocking=non_blocking) for name, value in self.ids.items()}
        return dataclasses.replace(self, ids=ids, **moved)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that ``stream`` uses these tensors."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (Tensor, KeyedJaggedTensor)):
                value.record_stream(stream)
        for value in self.ids.values():
            value.record_stream(stream)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory."""
        pinned = {
            field.name: value.pin_memory()
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, KeyedJaggedTensor))
        }
        return dataclasses.replace(self, ids={k: v.pin_memory() for k, v in self.ids.items()}, **pinned)
