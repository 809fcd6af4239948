"""Tables to TorchRec collections, and the way back from their outputs to `Features`, by key."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_configs import DataType
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from torchrec_mtl.config.features import FeaturesConfig, SequenceConfig, SparseConfig
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.features import DenseSpec, Features, FeaturesSpec, FieldSpec, Jagged
from torchrec_mtl.gradients.layout import Layout, PooledField, order_tables
from torchrec_mtl.gradients.rows import Ids
from torchrec_mtl.noise import Noise
from torchrec_mtl.widths import full

# Shapes: B batch, N positions of one unpooled feature, d width of a table.

Sharing = Literal["shared", "own", "both"]


def table_copies(table: str, sharing: Sharing, tasks: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return (name, owning task or None) of each copy of a table: ``video`` shared, ``video@click`` of a task."""
    shared: list[tuple[str, str | None]] = [(table, None)] if sharing != "own" else []
    own: list[tuple[str, str | None]] = [(f"{table}@{task}", task) for task in tasks] if sharing != "shared" else []
    return shared + own


def features_spec(features: FeaturesConfig, sharing: Sharing, tasks: Sequence[str]) -> FeaturesSpec:
    """Return the static description of what the tables will deliver."""
    dims = {table.name: table.dim for table in features.tables}

    def specs(feature: SparseConfig | SequenceConfig) -> list[FieldSpec]:
        target = feature.target if isinstance(feature, SequenceConfig) else None
        behavior = (feature.behavior or feature.name) if isinstance(feature, SequenceConfig) else None
        length = feature.max_length if isinstance(feature, SequenceConfig) else 0
        gaps = isinstance(feature, SequenceConfig) and feature.times is not None
        return [
            FieldSpec(
                name=_owned(feature.name, task),
                dim=dims[feature.table],
                side=feature.side,
                table=copy,
                task=task,
                behavior=behavior,
                target=target and _owned(target, task),
                max_length=length,
                gaps=gaps,
            )
            for copy, task in table_copies(feature.table, sharing, tasks)
        ]

    return FeaturesSpec(
        fields=tuple(s for f in features.sparse for s in specs(f)),
        sequences=tuple(s for f in features.sequences for s in specs(f)),
        dense=tuple(DenseSpec(d.name, d.side) for d in features.dense),
    )


def _owned(feature: str, task: str | None) -> str:
    return feature if task is None else f"{feature}@{task}"


class Embeddings(nn.Module):
    """All tables of a model: one ``EmbeddingBagCollection`` and one ``EmbeddingCollection``, either may be absent.

    A table that any sequence reads lives whole in the ``EmbeddingCollection``, since TorchRec cannot share a table
    between the two.
    """

    def __init__(
        self,
        features: FeaturesConfig,
        sharing: Sharing,
        tasks: Sequence[str],
        device: torch.device | str = "meta",
    ) -> None:
        """Build on ``device``; on ``meta`` for sharding."""
        super().__init__()
        readers: dict[str, list[str]] = {}
        for feature in (*features.pooled, *features.unpooled):
            readers.setdefault(feature.table, []).append(feature.name)
        device = torch.device(device)
        bags: list[EmbeddingBagConfig] = []
        rows: list[EmbeddingConfig] = []
        for table in features.tables:
            for copy, _ in table_copies(table.name, sharing, tasks):
                names, dtype = list(readers[table.name]), DataType[table.dtype.upper()]
                if table.name in features.sequence_tables:
                    rows.append(EmbeddingConfig(table.rows, table.dim, copy, dtype, names))
                else:
                    pooling = PoolingType[table.pooling.upper()]
                    bags.append(EmbeddingBagConfig(table.rows, table.dim, copy, dtype, names, pooling=pooling))
        self.ebc = EmbeddingBagCollection(tables=bags, device=device) if bags else None
        self.ec = EmbeddingCollection(tables=rows, device=device) if rows else None

    def forward(self, batch: Batch) -> tuple[KeyedTensor | None, dict[str, JaggedTensor] | None]:
        """Look up all ids of a batch. Traced by TorchRec's pipelines: no logic here."""
        pooled = self.ebc(batch.sparse) if self.ebc is not None else None
        unpooled = self.ec(batch.sequences) if self.ec is not None else None
        return pooled, unpooled

    def parameters_of(self, tables: Sequence[str]) -> list[nn.Parameter]:
        """Return the weights of unsharded tables, by name."""
        named = {name.split(".")[-2]: parameter for name, parameter in self.named_parameters()}
        return [named[table] for table in tables]


@dataclass(frozen=True)
class Embedded:
    """Outputs of the tables for one batch, before they are named.

    Attributes:
        shared: tensors of shared tables, where the tasks' gradients meet: at most one [B, P] of pooled fields, then one
            [N, d] an unpooled feature.
        widths: field -> width of its columns in ``shared[0]``, in their order.
        own: field -> [B, d] of tables that one task owns.
        own_values: unpooled feature -> [N, d] of tables that one task owns.
        lengths: unpooled feature -> [B].
    """

    shared: tuple[Tensor, ...]
    widths: Mapping[str, int]
    own: Mapping[str, Tensor]
    own_values: Mapping[str, Tensor]
    lengths: Mapping[str, Tensor]


class FeatureReader:
    """Names the outputs of `Embeddings`.

    The one place that reads a ``KeyedTensor``: TorchRec returns it in the order of the sharding plan.

    Args:
        features: tables and features.
        sharing: which copies of the tables there are.
        tasks: names of the tasks.
    """

    def __init__(self, features: FeaturesConfig, sharing: Sharing, tasks: Sequence[str]) -> None:
        """Work out under which key TorchRec will deliver each field."""
        self.spec = features_spec(features, sharing, tasks)
        self._pooling = {table.name: table.pooling for table in features.tables}
        pooled = {f.name for f in features.pooled}
        several = len(table_copies("", sharing, tasks)) > 1
        self._keys = {}
        for spec in (*self.spec.fields, *self.spec.sequences):
            feature = spec.name.removesuffix(f"@{spec.task}") if spec.task else spec.name
            # TorchRec adds the table's name as soon as a feature feeds two tables.
            self._keys[spec.name] = f"{feature}@{spec.table}" if several else feature
        self._bags = [f for f in self.spec.fields if f.name.split("@")[0] in pooled]
        self._rows = [f for f in (*self.spec.fields, *self.spec.sequences) if f.name.split("@")[0] not in pooled]
        self._shared_bags = [f for f in self._bags if f.task is None]
        self._shared_rows = [f for f in self._rows if f.task is None]
        fed = {f.table for f in (*self._shared_bags, *self._shared_rows)}
        self.shared_tables, self._dims = order_tables({t.name: t.dim for t in features.tables if t.name in fed})
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def read(self, pooled: KeyedTensor | None, unpooled: Mapping[str, JaggedTensor] | None) -> Embedded:
        """Take the outputs of `Embeddings` apart, in fp32: unsharded tables of fp16 return what they hold."""
        shared: list[Tensor] = []
        widths: dict[str, int] = {}
        own: dict[str, Tensor] = {}
        if pooled is not None:
            shared_bags = self._shared_bags
            if len(shared_bags) == len(self._bags):  # the usual case: no copy
                shared.append(full(pooled.values()))
                names = {self._keys[f.name]: f.name for f in self._bags}
                lengths = zip(pooled.keys(), pooled.length_per_key(), strict=True)
                widths = {names[key]: width for key, width in lengths}
            else:
                by_key = {key: full(value) for key, value in pooled.to_dict().items()}
                own = {f.name: by_key[self._keys[f.name]] for f in self._bags if f.task is not None}
                widths = {f.name: f.dim for f in shared_bags}
                if shared_bags:
                    shared.append(torch.cat([by_key[self._keys[f.name]] for f in shared_bags], dim=1))
        jagged = {f.name: (unpooled or {})[self._keys[f.name]] for f in self._rows}
        shared += [full(jagged[f.name].values()) for f in self._shared_rows]
        return Embedded(
            shared=tuple(shared),
            widths=widths,
            own=own,
            own_values={f.name: full(jagged[f.name].values()) for f in self._rows if f.task is not None},
            lengths={name: value.lengths() for name, value in jagged.items()},
        )

    def layout(self, embedded: Embedded) -> Layout:
        """Return which table each part of ``embedded.shared`` comes from; made once for a sharding plan."""
        order = tuple(embedded.widths)
        if order not in self._layouts:
            numbers = {name: i for i, name in enumerate(self.shared_tables)}
            ends = itertools.accumulate(embedded.widths.values(), initial=0)
            columns = dict(zip(order, ends, strict=False))
            self._layouts[order] = Layout(
                tables=self.shared_tables,
                dims=self._dims,
                pooled=tuple(
                    PooledField(numbers[f.table], columns[f.name], self._pooling[f.table] == "mean")
                    for f in self._shared_bags
                ),
                unpooled=tuple(numbers[f.table] for f in self._shared_rows),
            )
        return self._layouts[order]

    def ids(self, batch: Batch) -> Ids:
        """Return the ids that were looked up for ``Embedded.shared``."""
        return Ids(
            pooled=batch.sparse if self._shared_bags else None,
            unpooled=tuple(batch.sequences[f.name].values() for f in self._shared_rows),
        )

    def features(self, embedded: Embedded, batch: Batch, seed: int, shared: Sequence[Tensor] | None = None) -> Features:
        """Return the named features.

        Args:
            embedded: from ``read``.
            batch: the batch that was looked up.
            seed: of the run, for noise.
            shared: in place of ``embedded.shared``: one task's view of it.
        """
        shared = embedded.shared if shared is None else shared
        values = dict(embedded.own_values)
        first = 1 if embedded.widths else 0
        values.update(zip((f.name for f in self._shared_rows), shared[first:], strict=True))
        fields = dict(embedded.own)
        if embedded.widths:
            # One split for all: the backward of a slice a field would fill and add [B, P] for each of them.
            fields.update(
                zip(embedded.widths, torch.split(shared[0], list(embedded.widths.values()), dim=1), strict=True)
            )
        jagged = {name: Jagged(value, embedded.lengths[name]) for name, value in values.items()}
        for f in self.spec.fields:
            if f.name in jagged:
                fields[f.name] = jagged[f.name].pooled(self._pooling[f.table.split("@")[0]])
        for s in self.spec.sequences:
            if s.gaps:  # one column, whichever tasks' tables the ids are looked up in
                jagged[s.name] = replace(jagged[s.name], gaps=batch.gaps[s.name.split("@")[0]])
        return Features(
            fields=fields,
            sequences={s.name: jagged[s.name] for s in self.spec.sequences},
            dense=batch.dense,
            spec=self.spec,
            noise=Noise(seed, batch.step, batch.rows, batch.global_size),
            valid=None if batch.full else batch.valid,
            candidates=batch.candidates,
        )
