"""`exact: rows`: the Gramian of the true gradients of table rows, though fused tables never show their gradients.

A row's gradient is the sum over all its lookups, in the batch and over the ranks, pooling weights included. So the
gradients at the boundary are summed by (table, id) on each rank, sent to the rank that a hash of (table, id) names,
summed again, and multiplied there: whatever the sharding plan, every row counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import embedding_bag
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.collectives import world_size
from torchrec_mtl.gradients.layout import Layout

# Shapes: K tasks, B batch, P pooled columns, N lookups, U distinct rows, d width of a table, W ranks, D widths.

_ID_BITS = 40  # of a key: table << 40 | id


@dataclass(frozen=True)
class Ids:
    """The ids that were looked up for the boundary's tensors.

    Attributes:
        pooled: the features of the first tensor, in the order of ``Layout.pooled``; None where nothing is pooled.
        unpooled: [N_i] of each further tensor.
    """

    pooled: KeyedJaggedTensor | None
    unpooled: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class _Lookups:
    """Lookups: key [N], row of the matrix of gradients of its width [N], pooling weight [N]."""

    keys: Tensor
    sources: Tensor
    weights: Tensor


@dataclass(frozen=True)
class _Rows:
    """Distinct rows of tables of one width: keys [U], gradients [K, U, d]."""

    keys: Tensor
    gradients: Tensor


class RowGramian:
    """Gramians of row gradients.

    Args:
        layout: which table each part of the boundary's tensors comes from.
        by_table: one Gramian a table, else one of all.
    """

    def __init__(self, layout: Layout, *, by_table: bool = False) -> None:
        """See the class."""
        self.layout, self.by_table = layout, by_table
        self._widths = sorted(set(layout.dims))

    def __call__(self, stacks: Sequence[Tensor], ids: Ids) -> Tensor:
        """Return [G, K, K] over all ranks, in the order of ``Layout.tables`` or G = 1.

        Args:
            stacks: gradients of all tasks: [K, B, P] where something is pooled, then [K, N_i, d] each.
            ids: what was looked up.
        """
        rows = list(self._by_row(stacks, self._lookups(stacks, ids)))
        if world_size() > 1:
            rows = _to_owners(rows)
        num_tasks = stacks[0].shape[0]
        groups = len(self.layout.tables) if self.by_table else 1
        dtype = torch.promote_types(stacks[0].dtype, torch.float32)
        gramian = stacks[0].new_zeros(groups, num_tasks, num_tasks, dtype=dtype)
        for part in rows:
            self._add(gramian, part)
        if world_size() > 1:
            dist.all_reduce(gramian)
        # Data parallel averages, so that every rank's gradient is W times its part.
        return gramian / world_size() ** 2

    def _lookups(self, stacks: Sequence[Tensor], ids: Ids) -> _Lookups:
        """Return all lookups, ordered by key, so that tables of one width lie together."""
        keys, sources, weights = [], [], []
        filled = dict.fromkeys(self._widths, 0)
        if ids.pooled is not None:
            static = self.layout.tensors(stacks[0].device)
            batch = stacks[0].shape[1]
            lengths = ids.pooled.lengths().view(-1, batch)
            bags = torch.repeat_interleave(lengths.view(-1), output_size=ids.pooled.values().numel())
            pooled = lengths.clamp_min(1).to(stacks[0].dtype).reciprocal()
            pooled = torch.where(static.mean.unsqueeze(1), pooled, torch.ones_like(pooled))
            rows = torch.arange(batch, device=lengths.device) * static.per_width.unsqueeze(1) + static.slots.unsqueeze(
                1
            )
            tables = static.tables.unsqueeze(1).expand(-1, batch) << _ID_BITS
            keys.append(tables.reshape(-1)[bags] | ids.pooled.values())
            sources.append(rows.view(-1)[bags])
            weights.append(pooled.view(-1)[bags])
            for width, columns in static.columns.items():  # their rows come first
                filled[width] = columns.numel() // width * batch
        for table, values in zip(self.layout.unpooled, ids.unpooled, strict=True):
            width = self.layout.dims[table]
            keys.append(values | table << _ID_BITS)
            sources.append(torch.arange(filled[width], filled[width] + values.numel(), device=values.device))
            weights.append(torch.ones(values.numel(), device=values.device))
            filled[width] += values.numel()
        ordered, order = torch.sort(torch.cat(keys))
        dtype = stacks[0].dtype
        return _Lookups(ordered, torch.cat(sources)[order], torch.cat(weights)[order].to(dtype))

    def _by_row(self, stacks: Sequence[Tensor], lookups: _Lookups) -> Iterator[_Rows]:
        """Yield this rank's rows, by width."""
        firsts = [self.layout.dims.index(width) << _ID_BITS for width in self._widths]
        bounds = torch.searchsorted(lookups.keys, torch.tensor(firsts[1:], device=lookups.keys.device)).tolist()
        for width, low, high in zip(self._widths, [0, *bounds], [*bounds, lookups.keys.numel()], strict=True):
            part = _Lookups(lookups.keys[low:high], lookups.sources[low:high], lookups.weights[low:high])
            yield _summed(part, self._matrix(stacks, width))

    def _matrix(self, stacks: Sequence[Tensor], width: int) -> Tensor:
        """Return the boundary's gradients of one width, [K, rows, d], where ``_Lookups.sources`` point."""
        parts = []
        num_tasks = stacks[0].shape[0]
        unpooled = stacks[1:] if self.layout.pooled else stacks
        if self.layout.pooled and (columns := self.layout.tensors(stacks[0].device).columns.get(width)) is not None:
            whole = columns.numel() == stacks[0].shape[2]
            chosen = stacks[0] if whole else stacks[0].index_select(2, columns)
            parts.append(chosen.view(num_tasks, -1, width))
        for table, stack in zip(self.layout.unpooled, unpooled, strict=True):
            if self.layout.dims[table] == width:
                parts.append(stack)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _add(self, gramian: Tensor, rows: _Rows) -> None:
        gradients = rows.gradients.to(gramian.dtype)
        if not self.by_table:
            gramian[0] += gradients.flatten(1) @ gradients.flatten(1).T
            return
        by_row = gradients.transpose(0, 1)
        gramian.index_add_(0, rows.keys >> _ID_BITS, torch.bmm(by_row, by_row.transpose(1, 2)))


def _summed(lookups: _Lookups, matrix: Tensor) -> _Rows:
    """Sum rows of a matrix [K, rows, d] by key; keys are ordered."""
    num_tasks, num_rows, width = matrix.shape
    keys, counts = torch.unique_consecutive(lookups.keys, return_counts=True)
    if not keys.numel():
        return _Rows(keys, matrix.new_zeros(num_tasks, 0, width))
    # A bag is a row of a table, its members the lookups: one fused kernel for all tasks, and no [K, N, d] in memory.
    task = torch.arange(num_tasks, device=keys.device).unsqueeze(1)
    sums = embedding_bag(
        (lookups.sources + task * num_rows).view(-1),
        matrix.reshape(-1, width),
        (counts.cumsum(0) - counts + task * lookups.keys.numel()).view(-1),
        mode="sum",
        per_sample_weights=lookups.weights.repeat(num_tasks),
    )
    return _Rows(keys, sums.view(num_tasks, -1, width))


def _to_owners(rows: Sequence[_Rows]) -> list[_Rows]:
    """Send each row to its owner, and sum there what several ranks sent; one entry a width, as given."""
    ranks = dist.get_world_size()
    owners = [_hashed(part.keys) % ranks for part in rows]
    orders = [torch.argsort(owner, stable=True) for owner in owners]
    sent = torch.stack([torch.bincount(owner, minlength=ranks) for owner in owners], dim=1)  # [W, D]
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    to, come = sent.tolist(), received.tolist()
    keys = _exchange([part.keys[order] for part, order in zip(rows, orders, strict=True)], to, come)
    by_row = [part.gradients.transpose(0, 1)[order] for part, order in zip(rows, orders, strict=True)]
    return [_merged(k, g.transpose(0, 1)) for k, g in zip(keys, _exchange(by_row, to, come), strict=True)]


def _exchange(parts: Sequence[Tensor], sent: list[list[int]], received: list[list[int]]) -> list[Tensor]:
    """All-to-all of rows ordered by destination: one message for tensors of all widths.

    Args:
        parts: D tensors [U] or [U, K, d].
        sent: [W][D] rows to each rank.
        received: [W][D] rows from each rank.
    """
    sizes = [part.shape[1:].numel() for part in parts]
    pieces = [torch.split(part, [row[i] for row in sent]) for i, part in enumerate(parts)]
    message = torch.cat([piece[w].reshape(-1) for w in range(len(sent)) for piece in pieces])
    counts = [[n * size for n, size in zip(row, sizes, strict=True)] for row in received]
    answer = message.new_empty(sum(map(sum, counts)))
    to = [sum(n * size for n, size in zip(row, sizes, strict=True)) for row in sent]
    dist.all_to_all_single(answer, message, [sum(row) for row in counts], to)
    flat = torch.split(answer, [n for row in counts for n in row])
    return [torch.cat(flat[i :: len(parts)]).view(-1, *part.shape[1:]) for i, part in enumerate(parts)]


def _merged(keys: Tensor, gradients: Tensor) -> _Rows:
    ordered, order = torch.sort(keys)
    return _summed(
        _Lookups(ordered, order, torch.ones(len(order), dtype=gradients.dtype, device=keys.device)), gradients
    )


def _hashed(keys: Tensor) -> Tensor:
    """Spread keys over 31 bits (Fibonacci hashing)."""
    return (keys * -7046029254386353131) >> 33 & 0x7FFFFFFF
