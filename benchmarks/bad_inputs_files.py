"""Parquet files with something wrong in them, drawn at random: spoilt tables, and spoilt bytes."""

# ruff: noqa: ARG001 - all kinds are called alike
from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bad_inputs_tables import ROLES, VALUES, Bad, Proof, put


def zero_rows(rng: Random, table: pa.Table, path: Path) -> Bad:
    """A file without rows, or without row groups."""
    if rng.random() < 0.5:
        pq.write_table(table.slice(0, 0), path)
    else:
        pq.ParquetWriter(path, table.schema).close()
    return Bad("no rows", ("no rows",), fails=True)


def truncated(rng: Random, table: pa.Table, path: Path) -> Bad:
    """A copy that stopped."""
    content = _bytes(table, path)
    size = rng.choice([0, 1, 4, 7, 8, 12, rng.randrange(len(content)), len(content) - rng.randrange(1, 12)])
    path.write_bytes(content[:size])
    return Bad(f"cut to {size} of {len(content)} bytes", (str(path),), fails=True)


def flipped(rng: Random, table: pa.Table, path: Path) -> Bad:
    """Some bits are not what was written; without checksums in Parquet some of that passes for data."""
    content = bytearray(_bytes(table, path))
    footer = len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]
    start, end = rng.choice([(0, footer), (footer, len(content)), (len(content) - 8, len(content))])
    places = [rng.randrange(start, end) for _ in range(rng.choice([1, 1, 3, 20]))]
    for place in places:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return Bad(f"bits flipped at {places} of {len(content)} bytes", (str(path), "data", *ROLES))


def wrong_codec(rng: Random, table: pa.Table, path: Path) -> Bad:
    """The footer names a codec that the pages are not written in, or that nobody has."""
    content = _bytes(table, path)
    footer = len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]
    codec = rng.choice([3, 2, 4, 5, 6, 7, 9])  # LZO, those that there are, and none at all
    # In the footer's compact encoding the codec stands between the column's path and its number of values.
    replaced = re.sub(rb"\x15\x02\x16", bytes([0x15, 2 * codec, 0x16]), content[footer:])
    path.write_bytes(content[:footer] + replaced)
    return Bad(f"codec {codec} in the footer of Snappy pages", (str(path),))


def not_utf8(rng: Random, table: pa.Table, path: Path) -> Bad:
    """Bytes that are no text in a column of strings."""
    words = [b"\xff\xfe", b"\xc3(", b"\xed\xa0\x80", b"tag1"]
    if "tags" in table.column_names:
        raw = pa.array([[rng.choice(words)] for _ in range(table.num_rows)], pa.list_(pa.binary()))
        offsets, bytes_ = raw.offsets, raw.values
        strings = pa.StringArray.from_buffers(len(bytes_), bytes_.buffers()[1], bytes_.buffers()[2])
        table = put(table, "tags", pa.ListArray.from_arrays(offsets, strings))
    else:
        raw = pa.array([rng.choice(words) for _ in range(table.num_rows)], pa.binary())
        strings = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
        table = put(table, table.column_names[0], strings)
    pq.write_table(table, path)
    return Bad("strings that are no UTF-8", ("tags", table.column_names[0]))


def no_parquet(rng: Random, table: pa.Table, path: Path) -> Bad:
    """Something else by the name of a Parquet file."""
    contents = [b"user_id,item_id\n1,2\n", b"{}", b"PK\x03\x04", b"PAR1" * 3, b"PAR1" + b"\xff" * 60 + b"PAR1"]
    if rng.random() < 0.2:
        path.mkdir()
        return Bad("an empty folder", (str(path),), fails=True)
    content = rng.choice([*contents, rng.randbytes(rng.randrange(1, 400))])
    path.write_bytes(content)
    return Bad(f"{content[:12]!r} ... is no Parquet", (str(path),), fails=True)


def crafted(rng: Random, table: pa.Table, path: Path) -> Bad:
    """Metadata that made older readers unpickle; that nothing is run is proved by ``path.proof``, which stays away."""
    payload = pickle.dumps(Proof(path.with_suffix(".proof")))
    names = ["arrow.py_extension_type", "pandas.period", "arrow.json", "arrow.uuid", "arrow.fixed_shape_tensor"]
    extension = {b"ARROW:extension:name": rng.choice(names).encode(), b"ARROW:extension:metadata": payload}
    column = rng.choice(table.column_names)
    fields = [field.with_metadata(extension) if field.name == column else field for field in table.schema]
    about = {b"pandas": rng.choice([payload, b'{"columns": 3}', b"\xff"]), b"more": payload}
    if rng.random() < 0.3:
        about[b"ARROW:schema"] = payload
    schema = pa.schema(fields, metadata=about)
    arrays = [table.column(name).combine_chunks() for name in table.column_names]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, store_schema=rng.random() < 0.7)
    return Bad(f"crafted metadata, {extension[b'ARROW:extension:name'].decode()} on {column}", (column, str(path)))


FILES: Mapping[str, Callable[[Random, pa.Table, Path], Bad]] = {
    "zero rows": zero_rows,
    "truncated": truncated,
    "flipped bits": flipped,
    "wrong codec": wrong_codec,
    "not UTF-8": not_utf8,
    "no Parquet": no_parquet,
    "crafted metadata": crafted,
}
KINDS = (*VALUES, *FILES)


def _bytes(table: pa.Table, path: Path) -> bytes:
    pq.write_table(table, path, row_group_size=70, compression="snappy")
    return path.read_bytes()


def spoil(kind: str, rng: Random, table: pa.Table, columns: Sequence[str], path: Path) -> Bad:
    """Write a spoilt table.

    Args:
        kind: of `KINDS`.
        rng: draws what is spoilt.
        table: a good one.
        columns: those that are read.
        path: to write.
    """
    if kind in FILES:
        return FILES[kind](rng, table, path)
    spoilt, bad = VALUES[kind](rng, table, columns)
    pq.write_table(spoilt, path, row_group_size=70)
    return bad
