"""Files, folders, globs, and URIs to a sorted list of Parquet files, read row group by row group."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import fnmatch
import functools
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from torchrec_mtl.data.arrow import is_string
from torchrec_mtl.whereabouts import whereabouts

_WILD = "*?["
_FOOTER_THREADS = 8
_SUFFIX = ".parquet"


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One Parquet file.

    Attributes:
        path: its path in the filesystem.
        filesystem: where it lies.
        size: bytes.
        metadata: its footer.
    """

    path: str
    filesystem: pafs.FileSystem
    size: int
    metadata: pq.FileMetaData = dataclasses.field(repr=False)

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """Names and types of its columns."""
        return self.metadata.schema.to_arrow_schema()

    @functools.cached_property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of each row group."""
        return tuple(self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups))

    def read_row_group(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Read some columns of one row group; strings come dictionary-encoded.

        Raises:
            ValueError: The data is damaged, or the file was changed since its footer was read.
        """
        whereabouts.reads(f"{self.path}, row group {index}")
        strings = [name for name in columns if is_string(self.schema.field(name).type)]
        try:
            with self.filesystem.open_input_file(self.path) as source:
                file = pq.ParquetFile(source, metadata=self.metadata, read_dictionary=strings, pre_buffer=True)
                return file.read_row_group(index, columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{self.path}: row group {index} cannot be read ({error}). "
                "The file is damaged or was changed during the run; write it again."
            ) from error


def open_files(patterns: str | Sequence[str]) -> tuple[DataFile, ...]:
    """Find the files and read their footers.

    Args:
        patterns: files, folders (every ``*.parquet`` below, but for names that begin with ``_`` or ``.``), or globs of
            either (``**`` for any depth), local or as URIs: ``s3://bucket/folder/*.parquet``.

    Returns:
        The files, each once, sorted by path.

    Raises:
        ValueError: A pattern finds nothing, a file is empty or no Parquet file, or there is no row in all.
    """
    files, problems = find_files(patterns)
    if problems:
        raise ValueError("\n".join(problems))
    return files


def find_files(patterns: str | Sequence[str]) -> tuple[tuple[DataFile, ...], list[str]]:
    """As ``open_files``, but return the files that can be opened, and what is wrong with the others."""
    found: dict[str, tuple[pafs.FileSystem, pafs.FileInfo]] = {}
    problems: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        filesystem, infos = _expand(pattern)
        found |= {info.path: (filesystem, info) for info in infos}
        if not infos:
            problems.append(f"{pattern}: no Parquet file found. Give a file, a folder of *{_SUFFIX}, or a glob.")
    files: list[DataFile] = []
    with concurrent.futures.ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        for result in pool.map(_open, *zip(*(found[path] for path in sorted(found)))) if found else ():
            if isinstance(result, str):
                problems.append(result)
            else:
                files.append(result)
    if files and not problems and not any(file.metadata.num_rows for file in files):
        problems.append(f"{', '.join(file.path for file in files)}: no rows. Write at least one row.")
    return tuple(files), problems


def read_tables(files: Sequence[DataFile], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield some columns of all rows, a row group at a time."""
    for file in files:
        for group in range(len(file.row_groups)):
            yield file.read_row_group(group, columns)


def _open(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> DataFile | str:
    """Read one footer, or say what is wrong with the file."""
    if not info.size:
        return f"{info.path}: empty file (0 bytes). Write it again, or take it out."
    try:
        with filesystem.open_input_file(info.path) as source:
            return DataFile(info.path, filesystem, info.size, pq.read_metadata(source))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split(". ", maxsplit=1)[0]
        return (
            f"{info.path}: not a whole Parquet file of {info.size:,} bytes ({reason}). Write it again, or take it out."
        )


def _expand(pattern: str) -> tuple[pafs.FileSystem, list[pafs.FileInfo]]:
    """Return the filesystem of one pattern and the files that match it."""
    filesystem, path = _resolve(pattern)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        return filesystem, [info]
    if info.type == pafs.FileType.Directory:
        return filesystem, _list_folder(filesystem, path)
    folder, tail = _split_glob(path)
    if not tail:
        return filesystem, []
    selector = pafs.FileSelector(folder, recursive=len(tail) > 1, allow_not_found=True)
    prefix = len(_parts(folder))
    matches = [i for i in filesystem.get_file_info(selector) if _matches(_parts(i.path)[prefix:], tail)]
    folders = [info.path for info in matches if info.type == pafs.FileType.Directory]
    below = [info for folder in folders for info in _list_folder(filesystem, folder)]
    return filesystem, [info for info in matches if info.is_file] + below


def _list_folder(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    skip = len(_parts(folder))
    return [i for i in infos if i.is_file and _is_data(_parts(i.path)[skip:])]


def _resolve(pattern: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem and the path in it, wildcards kept."""
    if "://" not in pattern:
        return pafs.LocalFileSystem(), os.path.abspath(Path(pattern).expanduser())
    address, _, query = pattern.partition("?")  # in a URI `?` begins the options, for example ?region=eu-central-1
    folder, tail = _split_glob(address)
    try:
        filesystem, path = pafs.FileSystem.from_uri(f"{folder}?{query}" if query else folder)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{pattern}: no filesystem opens this URI ({error}). Use a path, or s3://.") from error
    return filesystem, posixpath.join(path, *tail)


def _split_glob(path: str) -> tuple[str, list[str]]:
    """Split into the folder before the first wildcard and the parts from there on."""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if any(c in part for c in _WILD)), len(parts))
    return "/".join(parts[:first]), parts[first:]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Match part by part; ``**`` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _is_data(parts: Sequence[str]) -> bool:
    return parts[-1].endswith(_SUFFIX) and not any(part[0] in "_." for part in parts)
