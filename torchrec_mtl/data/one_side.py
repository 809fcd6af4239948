"""Files that know one side only, users or items: columns of the other sides are taken to be empty."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from torchrec_mtl.config.features import FeaturesConfig, Side
from torchrec_mtl.data.arrow import get_array
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.ids import encode_keys
from torchrec_mtl.data.rows import Ints


@dataclass(frozen=True)
class OneSidedFile(DataFile):
    """A file in which some columns may be missing; they are read as nulls: no id, an empty list, the mean.

    Attributes:
        optional: names of the columns.
        kept: by row group, the rows that are read; None: all.
    """

    optional: frozenset[str] = frozenset()
    kept: tuple[Ints, ...] | None = None

    @functools.cached_property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of each row group."""
        found = tuple(self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups))
        return found if self.kept is None else tuple(len(rows) for rows in self.kept)

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """Names and types of its columns, those that are missing among them."""
        found = self.metadata.schema.to_arrow_schema()
        missing = sorted(self.optional - set(found.names))
        return pa.schema([*found, *(pa.field(name, pa.null()) for name in missing)])

    def read_row_group(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Read some columns of one row group, with nulls where there is no such column."""
        columns = list(dict.fromkeys(columns))
        here = set(self.metadata.schema.to_arrow_schema().names)
        # One column at least, or the number of rows is lost.
        table = super().read_row_group(index, [name for name in columns if name in here] or sorted(here)[:1])
        for name in columns:
            if name not in here:
                table = table.append_column(name, pa.nulls(table.num_rows))
        table = table.select(columns)
        return table if self.kept is None else table.take(pa.array(self.kept[index]))


def first_of_each(files: Sequence[OneSidedFile], column: str) -> tuple[Ints, tuple[OneSidedFile, ...]]:
    """Return the keys [n] of a column in the order in which they first appear, and the files cut down to those rows."""
    known, cut = np.zeros(0, np.int64), list[OneSidedFile]()
    for file in files:
        kept = list[Ints]()
        for group in range(len(file.row_groups)):
            found = encode_keys(get_array(file.read_row_group(group, [column]), column))
            values, first = np.unique(found, return_index=True)
            kept.append(np.sort(first[np.isin(values, known, invert=True)]))
            known = np.concatenate([known, found[kept[-1]]])
        cut.append(dataclasses.replace(file, kept=tuple(kept)))
    return known, tuple(cut)


def one_sided(files: Sequence[DataFile], features: FeaturesConfig, side: Side) -> tuple[OneSidedFile, ...]:
    """Return the files, which need to have the columns of this side's features alone."""
    used = [(s.side, s.source) for s in features.sparse] + [(s.side, s.source) for s in features.sequences]
    used += [(d.side, d.source) for d in features.dense]
    used += [(s.side, name) for s in features.sequences for name in (s.times, s.now) if name is not None]
    optional = frozenset(name for _, name in used) - {name for whose, name in used if whose == side}
    return tuple(OneSidedFile(f.path, f.filesystem, f.size, f.metadata, optional) for f in files)
