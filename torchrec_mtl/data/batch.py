"""One rank's share of a global batch, in the shape TorchRec's train pipelines want."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from torchrec_mtl.features import Candidates


@dataclasses.dataclass(frozen=True)
class Batch(Pipelineable):
    """B rows of a global batch. Every rank has the same B at every step; missing rows are padding.

    Attributes:
        dense: [B, D0] float32, normalised.
        sparse: ids of the pooled features (``EmbeddingBagCollection``), keys in config order.
        sequences: ids of the unpooled features (``EmbeddingCollection``), keys in config order.
        labels: [B, K] float32; 0 where the weight is 0.
        weights: [B, K] float32; 0 for padding and outside the task's space.
        valid: [B] float32; 1 for a row of data, 0 for padding, and for items drawn as negatives.
        rows: [B] int64; the row's slot in the global batch, 0 .. global_size - 1, the same at any world size.
        ids: name -> [B] int64; groups of gauc ("group"), items for in-batch negatives ("item"), queries for hard ones
            ("query"). Never an input.
        step: number of the global batch, counted over epochs; seeds the noise.
        global_size: rows of the global batch, padding included.
        full: no row is padding; known without reading ``valid`` back from a device.
        gaps: sequence -> [N] int64; how long ago each id was, in ``GAP_BUCKETS`` buckets, laid out as the values of its
            key in ``sequences``. Sequences without ``times`` have none.
        candidates: the rows' items, for in-batch negatives; None where nobody wants them.
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
    full: bool = False
    gaps: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    candidates: Candidates | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return the batch on another device."""
        return self._map(lambda t: t.to(device=device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that ``stream`` uses these tensors."""
        self._map(lambda t: t.record_stream(stream) or t)  # record_stream returns None

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, change: Callable[[Any], Any]) -> Batch:
        return Batch(
            dense=change(self.dense),
            sparse=change(self.sparse),
            sequences=change(self.sequences),
            labels=change(self.labels),
            weights=change(self.weights),
            valid=change(self.valid),
            rows=change(self.rows),
            ids={name: change(values) for name, values in self.ids.items()},
            step=self.step,
            global_size=self.global_size,
            full=self.full,
            gaps={name: change(values) for name, values in self.gaps.items()},
            candidates=None if self.candidates is None else self.candidates.mapped(change),
        )
