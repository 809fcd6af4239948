"""Checks of tables and features, and of features against tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

from torchrec_mtl.config.base import did_you_mean
from torchrec_mtl.config.draft import Draft
from torchrec_mtl.config.features import DenseConfig, SequenceConfig, SparseConfig
from torchrec_mtl.config.names import nearest

_RESERVED = "@/. "
_OF_SEQUENCES = frozenset({"table_wise", "row_wise", "column_wise"})  # what TorchRec shards an EmbeddingCollection by


def check_features(draft: Draft) -> Iterator[str]:
    """Yield what is wrong with names, tables, and what features read."""
    return chain(_names(draft), _tables(draft), _feeding(draft), _targets(draft), _moments(draft), _leaks(draft))


def _names(draft: Draft) -> Iterator[str]:
    features = dict(_features(draft))
    for name in _duplicates(f.name for f in features.values()):
        yield f"features: two features are called '{name}'; rename one and give it a 'column'"
    for name in _duplicates(t.name for t in draft.tables.values()):
        yield f"features.tables: two tables are called '{name}'; rename one"
    for name in _duplicates(t.name for t in draft.tasks.values()):
        yield f"tasks: two tasks are called '{name}'; rename one"
    named = {path: f.name for path, f in features.items()}
    named |= {f"features.tables.{i}": t.name for i, t in draft.tables.items()}
    named |= {f"tasks.{i}": t.name for i, t in draft.tasks.items()}
    for path, name in named.items():
        if bad := sorted({c for c in name if c in _RESERVED or not c.isprintable()}):
            held = " and ".join("a blank" if c == " " else f"'{c}'" for c in bad)
            yield f"{path}.name: '{name}' holds {held}, reserved in names; rename it"


def _tables(draft: Draft) -> Iterator[str]:
    from torch import nn  # its containers refuse some names

    taken = nn.ModuleDict()
    in_sequences = {s.table for s in draft.sequences.values()}
    for i, table in draft.tables.items():
        if table.sharding and table.name in in_sequences and not _OF_SEQUENCES & set(table.sharding):
            yield (
                f"features.tables.{i}.sharding: TorchRec has no {' or '.join(table.sharding)} for tables that "
                f"sequences read; add one of {', '.join(sorted(_OF_SEQUENCES))}"
            )
        if hasattr(taken, table.name):
            other = f"{table.name}_table"
            yield f"features.tables.{i}.name: torch keeps the name '{table.name}' to itself; take another, as '{other}'"
        if table.dim % 4:
            near = table.dim + -table.dim % 4
            yield f"features.tables.{i}.dim: FBGEMM wants a multiple of 4; found {table.dim}, take {near}"
    dims = {t.name: t.dim for t in draft.tables.values() if t.name in in_sequences}
    if len(set(dims.values())) > 1:
        found = ", ".join(f"{name} {dim}" for name, dim in sorted(dims.items()))
        yield (
            "features.tables: tables that sequences read live in one EmbeddingCollection, all of one dim; "
            f"found {found}; give them the same"
        )


def _feeding(draft: Draft) -> Iterator[str]:
    meant = set()
    for path, feature in _features(draft):
        if isinstance(feature, DenseConfig) or draft.table_names is None or feature.table in draft.table_names:
            continue
        meant.add(nearest(feature.table, draft.table_names))
        hint = did_you_mean(feature.table, draft.table_names) or " There are no tables; list them there."
        yield f"{path}.table: '{feature.table}' is not in features.tables.{hint}"
    if draft.fed_tables is None:
        return
    for i, table in draft.tables.items():
        if table.name not in draft.fed_tables | meant:
            yield f"features.tables.{i}: no feature reads table '{table.name}'; remove it, or name it in a feature"


def _targets(draft: Draft) -> Iterator[str]:
    fields = {f.name for f in draft.sparse.values()}
    for i, sequence in draft.sequences.items():
        if sequence.target is not None and sequence.target not in fields:
            hint = did_you_mean(sequence.target, fields)
            yield f"features.sequences.{i}.target: no sparse feature is called '{sequence.target}'.{hint}"


def _moments(draft: Draft) -> Iterator[str]:
    """How long ago an event was takes two moments, and a unit is of no use without them."""
    for i, sequence in draft.sequences.items():
        path = f"features.sequences.{i}"
        if sequence.times is not None and sequence.now is None:
            yield (
                f"{path}.now: missing; 'times' ('{sequence.times}') are compared with the row's own moment, name its "
                "column here"
            )
        elif sequence.now is not None and sequence.times is None:
            yield (
                f"{path}.times: missing; 'now' ('{sequence.now}') is compared with the moments of the ids, name their "
                "column here, or remove 'now'"
            )
        elif sequence.times is None and sequence.time_unit != "s":
            yield f"{path}.time_unit: '{sequence.time_unit}' of no columns; name these in 'times' and 'now'"


def _leaks(draft: Draft) -> Iterator[str]:
    secret = {t.label: f"the label of task '{t.name}'" for t in draft.tasks.values()}
    if draft.data is not None:
        secret |= dict.fromkeys(draft.data.outcomes, "declared in data.outcomes")
    for path, column in _columns(draft):
        if column in secret:
            yield f"{path}: reads column '{column}', {secret[column]}, unknown when predicting; remove it"


def _columns(draft: Draft) -> Iterator[tuple[str, str]]:
    """Yield (path, column) of all that the model reads."""
    for path, feature in _features(draft):
        yield path, feature.source
    for i, sequence in draft.sequences.items():
        if sequence.times is not None:
            yield f"features.sequences.{i}.times", sequence.times
        if sequence.now is not None:
            yield f"features.sequences.{i}.now", sequence.now


def _features(draft: Draft) -> Iterator[tuple[str, SparseConfig | SequenceConfig | DenseConfig]]:
    """Yield (path, feature)."""
    for i, sparse in draft.sparse.items():
        yield f"features.sparse.{i}", sparse
    for i, sequence in draft.sequences.items():
        yield f"features.sequences.{i}", sequence
    for i, dense in draft.dense.items():
        yield f"features.dense.{i}", dense


def _duplicates(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
