"""What a bottom reads: the embeddings of one batch, by name, and the static description of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec_mtl.config.features import GAP_BUCKETS, Side
from torchrec_mtl.noise import Noise

__all__ = ["GAP_BUCKETS", "DenseSpec", "Features", "FeaturesSpec", "FieldSpec", "Jagged"]

# Shapes: B batch, N positions of all sequences of the batch together, D0 dense columns, d width of a table.


@dataclass(frozen=True)
class FieldSpec:
    """One pooled field or sequence.

    Attributes:
        name: the feature's name; ``feature@task`` where the table belongs to one task.
        dim: d.
        side: user, item, or context.
        table: the table it reads.
        task: the task that owns the table, or None where it is shared.
        behavior: type of behaviour; None for a pooled field.
        target: pooled field of the scored item, for sequences.
        max_length: longest sequence; 0 for a pooled field.
        gaps: whether the sequence says how long ago each of its ids was.
    """

    name: str
    dim: int
    side: Side
    table: str
    task: str | None = None
    behavior: str | None = None
    target: str | None = None
    max_length: int = 0
    gaps: bool = False


@dataclass(frozen=True)
class DenseSpec:
    """One dense column."""

    name: str
    side: Side


@dataclass(frozen=True)
class FeaturesSpec:
    """Static description of `Features`; the order of the tuples is the order of the config."""

    fields: tuple[FieldSpec, ...]
    sequences: tuple[FieldSpec, ...]
    dense: tuple[DenseSpec, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each field, sequence (as one vector), and dense column, side by side in this order."""
        return (*(f.dim for f in (*self.fields, *self.sequences)), *(1 for _ in self.dense))

    def select(
        self,
        *,
        names: Collection[str] | None = None,
        side: Side | None = None,
        task: str | None = None,
        shared: bool = False,
    ) -> FeaturesSpec:
        """Keep what is named and on this side.

        With ``task`` only what that task owns, under its plain feature name; with ``shared`` only what no task owns.
        """

        def keep(spec: FieldSpec | DenseSpec) -> bool:
            return (names is None or spec.name in names) and (side is None or spec.side == side)

        def owned(specs: tuple[FieldSpec, ...]) -> tuple[FieldSpec, ...]:
            mine = (s for s in specs if (task is None and not shared) or s.task == task)
            return tuple(s for s in (_plain(s, task) for s in mine) if keep(s))

        return FeaturesSpec(
            fields=owned(self.fields), sequences=owned(self.sequences), dense=tuple(d for d in self.dense if keep(d))
        )


def _plain(spec: FieldSpec, task: str | None) -> FieldSpec:
    if task is None:
        return spec
    target = spec.target and spec.target.removesuffix(f"@{task}")
    return dataclasses.replace(spec, name=spec.name.removesuffix(f"@{task}"), target=target)


@dataclass(frozen=True)
class Jagged:
    """Sequences of different lengths, laid end to end.

    Attributes:
        values: [N, d].
        lengths: [B]; [1] where there are ``readers``.
        gaps: [N] int64, how long ago each was, in ``GAP_BUCKETS`` buckets of floor(log2(1 + seconds)); None where the
            data do not say.
        readers: B where this is one history that all B rows read (one user, many candidates); None: each row has its
            own. Only what ``shares_histories`` gets to see it.
    """

    values: Tensor
    lengths: Tensor
    gaps: Tensor | None = None
    readers: int | None = None

    def rows(self) -> Tensor:
        """Return [N], the row of each value."""
        numbers = torch.arange(self.lengths.numel(), device=self.values.device)
        return torch.repeat_interleave(numbers, self.lengths.long(), output_size=self.values.shape[0])

    def pooled(self, how: str) -> Tensor:
        """Return [B, d]: ``sum`` or ``mean`` over each sequence; zeros for an empty one."""
        empty = self.values.new_zeros(self.lengths.numel(), self.values.shape[1])
        total = empty.index_add(0, self.rows(), self.values)
        if how == "mean":
            total = total / self.lengths.clamp_min(1).to(total.dtype).unsqueeze(1)
        return total if self.readers is None else total.expand(self.readers, -1)

    def repeated(self) -> Jagged:
        """Return the same with a copy of the history for each row that reads it."""
        if self.readers is None:
            return self
        count = self.readers
        gaps = None if self.gaps is None else self.gaps.repeat(count)
        return Jagged(self.values.repeat(count, 1), self.lengths.expand(count), gaps)


@dataclass(frozen=True)
class Candidates:
    """The rows' items, as negatives of one another; never an input.

    Attributes:
        keys: [B] int64, equal where rows are of one item.
        log_share: [B], logarithm of the item's share of the training rows; with items drawn, of all such batches.
        present: [B], 1 where a row has an item, 0 for padding; None: all have.
        num_rows: rows of data, which come first; the others are items drawn, or padding. None: all are.
    """

    keys: Tensor
    log_share: Tensor
    present: Tensor | None = None
    num_rows: int | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Candidates:
        """Return the same with every tensor changed."""
        present = None if self.present is None else change(self.present)
        return Candidates(change(self.keys), change(self.log_share), present, self.num_rows)


@dataclass(frozen=True)
class Features:
    """Embeddings of one batch, read by key, never by position.

    Attributes:
        fields: name -> [B, d].
        sequences: name -> jagged [N, d].
        dense: [B, D0].
        spec: static description.
        noise: source of random numbers that agree over ranks; None outside our trainer (torch's own generator is used).
        valid: [B], 1 for a row of data, 0 for padding and for items drawn; None: all rows are data.
        candidates: the rows' items, for in-batch negatives; None where nobody wants them.
    """

    fields: Mapping[str, Tensor]
    sequences: Mapping[str, Jagged]
    dense: Tensor
    spec: FeaturesSpec
    noise: Noise | None = None
    valid: Tensor | None = None
    candidates: Candidates | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Features:
        """Return the same with every embedding changed; dense columns are data, and stay."""
        sequences = {n: dataclasses.replace(s, values=change(s.values)) for n, s in self.sequences.items()}
        return dataclasses.replace(self, fields={n: change(v) for n, v in self.fields.items()}, sequences=sequences)

    def select(
        self,
        *,
        names: Collection[str] | None = None,
        side: Side | None = None,
        task: str | None = None,
        shared: bool = False,
    ) -> Features:
        """Return the named features, those of one side, or those whose tables one task, or no task, owns.

        Args:
            names: fields, sequences, and dense columns to keep; plain feature names with ``task``.
            side: user, item, or context.
            task: keep what this task owns, under the plain feature names; dense columns stay.
            shared: keep what no task owns; dense columns stay.
        """
        spec = self.spec.select(names=names, side=side, task=task, shared=shared)
        suffix = f"@{task}" if task is not None else ""
        columns = [i for i, d in enumerate(self.spec.dense) if d in spec.dense]
        dense = self.dense if len(columns) == len(self.spec.dense) else self.dense[:, columns]
        return dataclasses.replace(
            self,
            fields={f.name: self.fields[f.name + suffix] for f in spec.fields},
            sequences={s.name: self.sequences[s.name + suffix] for s in spec.sequences},
            dense=dense,
            spec=spec,
        )
