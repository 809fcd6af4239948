"""The files of the Ali-CCP release: plain text of 10 GB and more, read in chunks of whole lines.

A skeleton has a line an impression, which names a line of the common features by its key. Both end in a feature list:
features between bytes 1, each a field, a byte 2, an id, a byte 3, and a value. Shapes: N lines, E entries of one field.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SKELETON_COLUMNS = ("sample_id", "click", "buy", "common_feature_index", "feature_num", "feature_list")
COMMON_COLUMNS = ("common_feature_index", "feature_num", "feature_list")

HISTORIES = ("109_14", "110_14", "127_14", "150_14")
COMMON_FIELDS = ("101", "121", "122", "124", "125", "126", "127", "128", "129", *HISTORIES)
SKELETON_FIELDS = ("205", "206", "207", "210", "216", "301", "508", "509", "702", "853")
LISTS = frozenset({*HISTORIES, "210", "853"})  # may have several values in a line
VALUED = frozenset({*HISTORIES, "508", "509", "702", "853"})  # the value says something

CHUNK_BYTES = 16 << 20
BLOCK_BYTES = 4 << 20  # parsed by one thread; longer than any line
AS_CSV = bytes.maketrans(b"\x01\x02\x03", b"\n,,")


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file without a header.

    Attributes:
        path: The file.
        columns: Its columns.
        first_line: Number of the first line, from 1.
        data: The lines.
    """

    path: Path
    columns: Sequence[str]
    first_line: int
    data: bytes


@dataclass(frozen=True)
class Entries:
    """One field of N lines: how many ids each has [N], all ids [E], and the sum of the values before any cut [N]."""

    lengths: Ints
    ids: Ints
    totals: Floats


def find_files(source: Path, split: str) -> tuple[Path, Path]:
    """Finds the skeleton and the common features of train or test, in SOURCE or in the folder of their archive."""
    found = []
    for name in (f"sample_skeleton_{split}.csv", f"common_features_{split}.csv"):
        folders = (source, source / f"sample_{split}")
        paths = [folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            archive = source / f"sample_{split}.tar.gz"
            todo = f"unpack {archive} first" if archive.is_file() else "it is part of Ali-CCP, put it there"
            raise ValueError(f"no file {name} or {name}.gz in {source} or its folder sample_{split}; {todo}")
        found.append(path)
    return found[0], found[1]


def read_chunks(path: Path, columns: Sequence[str], *, rows: int | None = None) -> Iterator[Chunk]:
    """Reads a file, plain or .gz, by whole lines.

    Args:
        path: The file.
        columns: Its columns.
        rows: Stop after so many lines; None reads all.

    Yields:
        Some megabytes of lines each time.

    Raises:
        ValueError: If the file is empty, or cannot be unpacked.
    """
    done = 0
    for data in _read_lines(path):
        count = data.count(b"\n") + (not data.endswith(b"\n"))
        if rows is not None and done + count > rows:
            count = rows - done
            data = b"".join(itertools.islice(io.BytesIO(data), count))
        yield Chunk(path, columns, done + 1, data)
        done += count
        if done == rows:
            return
    if not done:
        raise ValueError(f"{path} is empty; unpack or download it again")


def _read_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while True:
            try:
                block = file.read(CHUNK_BYTES)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(f"{path} cannot be unpacked: {error}; download it again") from error
            data = rest + block
            end = data.rfind(b"\n") + 1 if block else len(data)
            if end:
                yield data[:end]
            if not block:
                return
            rest = data[end:]


def read_columns(chunk: Chunk) -> pa.Table:
    """Reads the columns of some lines, the features in one piece.

    Args:
        chunk: The lines.

    Returns:
        A row a line.

    Raises:
        ValueError: If a line is malformed.
    """
    types = {"sample_id": pa.int64(), "click": pa.bool_(), "buy": pa.bool_(), "feature_num": pa.int64()}
    return _read_csv(chunk, chunk.data, {name: types.get(name, pa.string()) for name in chunk.columns})


def split_features(
    chunk: Chunk, lists: pa.ChunkedArray, *, names: Sequence[str], max_length: int
) -> dict[str, Entries]:
    """Takes feature lists apart. With other separators a feature is a line of CSV, which Arrow reads fast.

    Args:
        chunk: Where the lists come from.
        lists: [N] feature lists of some of its lines.
        names: The fields to return; others are left out.
        max_length: Longest list.

    Returns:
        Every field of `names`.

    Raises:
        ValueError: If a feature is malformed.
    """
    num_rows = len(lists)
    whole = pa.ListArray.from_arrays(pa.array([0, num_rows], pa.int32()), lists.combine_chunks())
    text = pc.binary_join(whole, "\x01")[0].as_buffer().to_pybytes().translate(AS_CSV) + b"\n"
    types = {"field": pa.string(), "id": pa.int64(), "value": pa.float64()}
    features = _read_csv(chunk, text, types) if num_rows else pa.schema(list(types.items())).empty_table()
    lengths = pc.add(pc.count_substring(lists, "\x01"), 1).to_numpy()
    rows = np.repeat(np.arange(num_rows), lengths)
    fields = pc.index_in(features["field"], value_set=pa.array(names, pa.string())).fill_null(len(names))
    codes = fields.to_numpy().astype(np.int8)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    ids, values = features["id"].to_numpy(), features["value"].to_numpy()
    if not np.isfinite(values).all():
        raise ValueError(find_fault(chunk) or f"{chunk.path}, from line {chunk.first_line} on: a value is infinite")
    entries = {}
    for name, first, last in zip(names, bounds[:-1], bounds[1:], strict=True):
        chosen = order[first:last]
        if name in LISTS:
            entries[name] = _gather_lists(
                rows[chosen], ids[chosen], values[chosen], num_rows=num_rows, max_length=max_length
            )
        else:
            entries[name] = _gather_last(rows[chosen], ids[chosen], values[chosen], num_rows=num_rows)
    return entries


def _gather_last(rows: Ints, ids: Ints, values: Floats, *, num_rows: int) -> Entries:
    """The last entry of each row; rows are ascending."""
    kept = np.append(rows[1:] != rows[:-1], [True])[: len(rows)]
    rows = rows[kept]
    totals = np.bincount(rows, weights=values[kept], minlength=num_rows).astype(np.float64)
    return Entries(np.bincount(rows, minlength=num_rows), ids[kept], totals)


def _gather_lists(rows: Ints, ids: Ints, values: Floats, *, num_rows: int, max_length: int) -> Entries:
    """The entries of each row with the largest values, the largest last, where a reader that cuts lists keeps them."""
    totals = np.bincount(rows, weights=values, minlength=num_rows).astype(np.float64)
    order = np.lexsort((values, rows))
    rows, ids = rows[order], ids[order]
    ends = np.cumsum(np.bincount(rows, minlength=num_rows))
    kept = np.arange(len(rows)) >= ends[rows] - max_length
    return Entries(np.bincount(rows[kept], minlength=num_rows), ids[kept], totals)


def _read_csv(chunk: Chunk, text: bytes, types: Mapping[str, pa.DataType]) -> pa.Table:
    try:
        return pacsv.read_csv(
            pa.py_buffer(text),
            read_options=pacsv.ReadOptions(column_names=list(types), block_size=BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            convert_options=pacsv.ConvertOptions(
                column_types=types, null_values=[], true_values=["1"], false_values=["0"]
            ),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(find_fault(chunk) or f"{chunk.path}, from line {chunk.first_line} on: {error}") from error


def find_fault(chunk: Chunk) -> str | None:
    """Names the first malformed line of a chunk. Slow, so it is called only where there is one."""
    for number, line in enumerate(io.BytesIO(chunk.data), chunk.first_line):
        fault = _find_line_fault(line.decode("utf-8", "replace").rstrip("\r\n"), chunk.columns)
        if fault:
            return f"{chunk.path}, line {number}: {fault}; the file may be cut off or changed, unpack it again"
    return None


def _find_line_fault(line: str, columns: Sequence[str]) -> str | None:
    parts = line.split(",")
    if len(parts) != len(columns):
        return f"{len(parts)} columns, looked for {len(columns)} ({', '.join(columns)})"
    row = dict(zip(columns, parts, strict=True))
    for name in ("sample_id", "feature_num"):
        if not re.fullmatch(r"-?\d+", row.get(name, "0")):
            return f"{name} {row[name]!r} is not a whole number"
    for name in ("click", "buy"):
        if row.get(name, "0") not in ("0", "1"):
            return f"{name} {row[name]!r} is neither 0 nor 1"
    for feature in row["feature_list"].split("\x01"):
        if not re.fullmatch(r"[^\x02\x03]+\x02-?\d+\x03[-+.\deE]+", feature):
            return f"feature {feature!r} is not FIELD\\x02ID\\x03VALUE with a whole ID and a numeric VALUE"
    return None
