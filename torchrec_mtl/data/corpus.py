"""All items that there are, encoded once and kept in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_mtl.data.arrow import get_array
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import DataFile, read_tables
from torchrec_mtl.data.ids import encode_keys
from torchrec_mtl.data.lookup import Lookup
from torchrec_mtl.data.rows import Ints, Jagged, Rows


@dataclass(frozen=True)
class Corpus:
    """N items.

    Attributes:
        rows: their features; what is not of the item is empty.
        keys: [N], of their names.
    """

    rows: Rows
    keys: Ints


def check_names(lookup: Lookup, column: str) -> None:
    """Raise ``ValueError`` where two rows of a corpus name one item."""
    if (same := lookup.repeated()).size:
        raise ValueError(
            f"retrieval.items: {len(same)} rows name an item that another row names (the first is key {same[0]} of "
            f"column {column}); keep one row an item"
        )


def read_corpus(files: Sequence[DataFile], encoder: Encoder, column: str) -> Corpus:
    """Read all items.

    Args:
        files: with the columns of the item features (`one_sided`).
        encoder: of the run, without labels.
        column: that names the item.

    Raises:
        ValueError: two rows name one item, or a value is bad.
    """
    parts, keys = list[Rows](), list[Ints]()
    for file in files:
        for table in read_tables([file], [*encoder.columns, column]):
            parts.append(encoder.encode(table, file.path))
            keys.append(encode_keys(get_array(table, column)))
    found = Corpus(Rows.concat(parts), np.concatenate(keys))
    check_names(Lookup(found.keys), column)
    return found


def laid_out_as(items: Corpus, rows: Rows) -> Rows:
    """Return the items' features as if they stood in files like those of ``rows``: lists where these are lists.

    Args:
        items: of one side; empty columns have no type of their own.
        rows: encoded rows of the training data.

    Returns:
        [N] rows without labels; keys of which the items have none are 0.

    Raises:
        ValueError: a feature of the item is a list here and a single id there.
    """
    count, mine = len(items.keys), items.rows
    present = np.ones(mine.single.shape, bool) if mine.present is None else mine.present
    columns = {name: (mine.single[:, i], present[:, i]) for i, name in enumerate(mine.single_names)}
    empty = Jagged(np.zeros(0, np.int64), np.zeros(count + 1, np.int64))
    single, lists = [], dict[str, Jagged]()
    for name in rows.single_names:
        if name not in columns and len(mine.lists[name].flat):
            raise ValueError(
                f"feature '{name}': a list in retrieval.items, one id a row in data.train; write them alike"
            )
        single.append(columns.get(name, (np.zeros(count, np.int64), np.zeros(count, bool))))
    for name in rows.lists:
        if name in columns and columns[name][1].any():
            raise ValueError(
                f"feature '{name}': one id a row in retrieval.items, a list in data.train; write them alike"
            )
        lists[name] = mine.lists.get(name, empty)
    return dataclasses.replace(
        mine,
        labels=np.zeros((count, rows.labels.shape[1]), np.float32),
        weights=np.zeros((count, rows.weights.shape[1]), np.float32),
        ids={name: items.keys if name == "item" else np.zeros(count, np.int64) for name in rows.ids},
        single_names=rows.single_names,
        single=np.stack([values for values, _ in single], axis=1) if single else np.zeros((count, 0), np.int64),
        present=np.stack([there for _, there in single], axis=1) if single else None,
        lists=lists,
    )
