"""The common features: a line for many impressions, held in memory for those that a skeleton uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from examples.ali_ccp import encoding, release
else:  # in a script, its own folder is on the path
    import encoding
    import release


@dataclass(frozen=True)
class Common:
    """Lines of the common features.

    Attributes:
        positions: Number of each key's line.
        pieces: Each field, in pieces that are to be laid end to end.
    """

    positions: dict[str, int]
    pieces: dict[str, list[release.Entries]]


@dataclass(frozen=True)
class Users:
    """Lines of the common features as they go into the rows.

    Attributes:
        positions: Number of each key's line.
        table: One row a line.
    """

    positions: dict[str, int]
    table: pa.Table


def add_keys(keys: dict[str, int], table: pa.Table, *, counted: npt.NDArray[np.bool_]) -> None:
    """Counts the rows of each key.

    Args:
        keys: Counts so far, added to in place.
        table: Rows of a skeleton.
        counted: [N] False for a row that adds its key, but does not count.
    """
    column = table["common_feature_index"].combine_chunks().dictionary_encode()
    rows = np.bincount(column.indices.to_numpy(), weights=counted, minlength=len(column.dictionary))
    for key, count in zip(column.dictionary.to_pylist(), rows.tolist(), strict=True):
        keys[key] = keys.get(key, 0) + int(count)


def read_common(path: Path, *, needed: Mapping[str, int], max_length: int) -> Common:
    """Reads the lines of the common features that a skeleton uses; where a key has several, the first.

    Args:
        path: The file.
        needed: The keys.
        max_length: Longest list.

    Returns:
        The lines, in the order of the file.

    Raises:
        ValueError: If a key has no line.
    """
    positions: dict[str, int] = {}
    pieces: dict[str, list[release.Entries]] = {name: [] for name in release.COMMON_FIELDS}
    for chunk in release.read_chunks(path, release.COMMON_COLUMNS):
        table = release.read_columns(chunk)
        lines = []
        for line, key in enumerate(table["common_feature_index"].to_pylist()):
            if key in needed and key not in positions:
                positions[key] = len(positions)
                lines.append(line)
        lists = table["feature_list"].take(pa.array(lines, pa.int64()))
        fields = release.split_features(chunk, lists, names=release.COMMON_FIELDS, max_length=max_length)
        for name, entries in fields.items():
            pieces[name].append(entries)
        if len(positions) == len(needed):
            break
    missing = needed.keys() - positions
    if missing:
        raise ValueError(
            f"{path}: no line for {len(missing):,} of the {len(needed):,} values of common_feature_index in the "
            f"skeleton, such as {min(missing)!r}; use the files of one release, whole"
        )
    return Common(positions, pieces)


def count_common(common: Common, *, keys: Mapping[str, int], min_count: int) -> encoding.Vocabulary:
    """Collects the values of the common fields with an id; each line counts once for every row of train that uses it.

    Args:
        common: The lines.
        keys: The number of train's rows of each key.
        min_count: Rows that a value needs.

    Returns:
        The values with an id, by field, ascending.
    """
    rows = np.array([keys[key] for key in common.positions], np.int64)
    vocabulary = {}
    for name, pieces in common.pieces.items():
        counts = encoding.Counts()
        first = 0
        for entries in pieces:
            last = first + len(entries.lengths)
            counts.add(entries.ids, np.repeat(rows[first:last], entries.lengths))
            first = last
        vocabulary[name] = counts.frequent(min_count)
    return vocabulary


def encode_common(common: Common, vocabulary: encoding.Vocabulary) -> Users:
    """Turns the lines of the common features into columns.

    Args:
        common: The lines.
        vocabulary: The values with an id, by field.

    Returns:
        One row a line.
    """
    columns: dict[str, pa.Array] = {}
    for name, pieces in common.pieces.items():
        lengths = np.concatenate([piece.lengths for piece in pieces])
        ids = np.concatenate([encoding.look_up(piece.ids, vocabulary[name]) for piece in pieces])
        columns |= encoding.to_columns(
            name, release.Entries(lengths, ids, np.concatenate([piece.totals for piece in pieces]))
        )
    return Users(common.positions, pa.table(columns))
