"""Do the files fit together? Types, columns, codecs, and row groups, from their footers."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa

from torchrec_mtl.checking.findings import FILES_NAMED, Finding
from torchrec_mtl.data.columns import Column, schema_problems
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.splits import SPLITS

_TINY, _MANY = 1000, 8
_HUGE_BYTES = 1 << 30
_COLUMNS_NAMED = 5


def layout_findings(
    files: Mapping[str, Sequence[DataFile]],
    columns: Sequence[Column],
    known: Sequence[str],
    damaged: Collection[str] = (),
) -> Iterator[Finding]:
    """Compare the files of all splits.

    Args:
        files: by split.
        columns: that the run reads.
        known: problems of single splits, which were told before.
        damaged: paths of files that could not be read.
    """
    yield from _between_splits(files, columns, known)
    read = {column.name for column in columns}
    for split, opened in files.items():
        yield from _types(split, opened, read)
        yield from _extra(split, opened, read)
        yield from _codecs(split, opened, read, damaged)
        yield from _row_groups(split, opened)


def _between_splits(
    files: Mapping[str, Sequence[DataFile]], columns: Sequence[Column], known: Sequence[str]
) -> Iterator[Finding]:
    """Yield where one split is read in another way than train, such as strings here and integers there."""
    told = set(known)
    alone = {problem for opened in files.values() for problem in _problems(opened, columns)}
    everything = [file for split in SPLITS for file in files.get(split, ())]
    for problem in _problems(everything, columns):
        if problem not in alone and problem not in told:
            yield Finding("error", "schema", "", "", problem, "")


def _problems(files: Sequence[DataFile], columns: Sequence[Column]) -> list[str]:
    return schema_problems([(file.path, file.schema) for file in files], columns)


def _types(split: str, files: Sequence[DataFile], read: set[str]) -> Iterator[Finding]:
    """Yield columns of several types that are read alike, such as int32 and int64."""
    for name in sorted(read):
        types: dict[str, str] = {}
        for file in files:
            if len(file.schema.get_all_field_indices(name)) == 1:
                types.setdefault(_plain(file.schema.field(name).type), file.path)
        if len(types) > 1:
            what = f"column '{name}' is {' and '.join(types)}"
            advice = "It is read, but a writer changed: see that the values are still the same."
            yield Finding("note", "types", split, name, what, advice, None, tuple(types.values())[:FILES_NAMED])


def _plain(kind: pa.DataType) -> str:
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _extra(split: str, files: Sequence[DataFile], read: set[str]) -> Iterator[Finding]:
    """Yield columns that some files have and others lack; those that are read are errors and told elsewhere."""
    counts: dict[str, int] = {}
    for file in files:
        for name in set(file.schema.names) - read:
            counts[name] = counts.get(name, 0) + 1
    some = sorted(name for name, count in counts.items() if count < len(files))
    if some:
        having = tuple(file.path for file in files if set(some) & set(file.schema.names))[:FILES_NAMED]
        named = ", ".join(some[:_COLUMNS_NAMED]) + (f" and {len(some) - _COLUMNS_NAMED} more" if some[5:] else "")
        what = f"{len(some)} columns that the run does not read are in some of the {len(files)} files only: {named}"
        advice = "Files of several versions? See whether the columns that are read changed their meaning, too."
        yield Finding("note", "columns", split, "", what, advice, len(some), having)


def _codecs(
    split: str, files: Sequence[DataFile], read: Collection[str], damaged: Collection[str]
) -> Iterator[Finding]:
    codecs: dict[str, str] = {}
    for file in files:
        if file.path not in damaged and file.row_groups and (column := _first(file, read)) is not None:
            codecs.setdefault(file.metadata.row_group(0).column(column).compression, file.path)
    if len(codecs) > 1:
        what = f"files are compressed by {' and '.join(sorted(codecs))}"
        yield Finding("note", "codecs", split, "", what, "It is read; a writer changed.", None, tuple(codecs.values()))


def _first(file: DataFile, read: Collection[str]) -> int | None:
    """Return the place of a column that was read; of others pyarrow may not know the codec, and end the process."""
    places = range(file.metadata.num_columns)
    paths = ((i, file.metadata.schema.column(i).path) for i in places)
    return next((i for i, path in paths if path.partition(".")[0] in read), None)


def _row_groups(split: str, files: Sequence[DataFile]) -> Iterator[Finding]:
    sizes = [rows for file in files for rows in file.row_groups if rows]
    if len(sizes) > _MANY and statistics.median(sizes) < _TINY:
        what = f"{len(sizes):,} row groups of {statistics.median(sizes):,.0f} rows (the median)"
        advice = "So small ones are slow to read: write 10,000 to 1,000,000 rows a group."
        yield Finding("note", "row_groups_tiny", split, "", what, advice, len(sizes))
    largest = max(((_largest_group(file), file.path) for file in files), default=(0, ""))
    if largest[0] > _HUGE_BYTES:
        what = f"a row group of {largest[0] / 2**30:.1f} GiB, uncompressed"
        advice = "Every rank holds several row groups in memory: write smaller ones."
        yield Finding("note", "row_groups_huge", split, "", what, advice, None, (largest[1],))


def _largest_group(file: DataFile) -> int:
    groups = range(file.metadata.num_row_groups)
    return max((int(file.metadata.row_group(group).total_byte_size) for group in groups), default=0)
