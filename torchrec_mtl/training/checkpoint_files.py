"""Checkpoint files: written with checksums and without copies of tables, read without unpickling anything foreign."""

from __future__ import annotations

import enum
import hashlib
import io
import os
import pickle
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import WriteItem

from torchrec_mtl.checksums import damage
from torchrec_mtl.initial import local_shards

_ALLOWED_MODULES = frozenset({"torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"})
_ALLOWED_NAMES = frozenset(
    {
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),  # Python 3.13
        ("torch.serialization", "_get_layout"),
        ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    }
)
_OF_NUMPY = frozenset({torch.float32, torch.float64, torch.float16})  # bfloat16 is not


class MetadataUnpickler(pickle.Unpickler):
    """DCP pickles its metadata; a crafted file could run anything, so only its own handful of classes is let in."""

    def find_class(self, module: str, name: str) -> object:
        """Return a class of the list, or raise ``UnpicklingError``."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        if module in _ALLOWED_MODULES or (module, name) in _ALLOWED_NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused {module}.{name}")


def _enum_member(owner: object, name: str) -> enum.Enum:
    """Stand in for ``getattr``, by which early releases of Python 3.11 pickle members of enumerations, and no more."""
    if isinstance(owner, enum.EnumMeta) and name in owner.__members__:
        return cast(enum.Enum, owner[name])
    raise pickle.UnpicklingError(f"refused getattr of {name}")


class TensorReader(FileSystemReader):
    """Reads checkpoints that hold tensors only; refuses foreign classes and pickled entries."""

    def read_metadata(self, *_args: object, **kwargs: object) -> Metadata:
        """Read the metadata through the allow-list."""
        path = Path(str(self._get_metadata_path(cast("int | None", kwargs.get("rank")))))
        with path.open("rb") as file:
            metadata: Metadata = MetadataUnpickler(file).load()
        pickled = [k for k, v in metadata.state_dict_metadata.items() if isinstance(v, BytesStorageMetadata)]
        if pickled:
            raise pickle.UnpicklingError(f"refused pickled entries {pickled[:3]}")
        for place in metadata.storage_data.values():  # DCP would open whatever path is written there
            if Path(place.relative_path).name != place.relative_path:
                raise pickle.UnpicklingError(f"refused tensors outside the checkpoint: {place.relative_path}")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class WithoutCopies(DefaultSavePlanner):
    """Has tables on the CPU written from where they are.

    FBGEMM holds all tables in one tensor. DCP clones a part of a tensor before it writes it, and keeps the clones till
    the file is whole: without this, saving took the tables' memory a second time.
    """

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Return what is to be written; for a part of a tensor, a tensor of the same memory and no more than it."""
        data = super().resolve_data(write_item)
        if not isinstance(data, torch.Tensor) or data.device.type != "cpu" or data.dtype not in _OF_NUMPY:
            return data
        return torch.from_numpy(data.detach().numpy()) if data.is_contiguous() and data.numel() else data


class Copied(WithoutCopies):
    """Has copies written that were made when it was, so that training may go on meanwhile.

    Args:
        tensors: nested dict of what will be saved.
        held: copies of the last time, whose memory is used again; changed in place.
    """

    def __init__(self, tensors: Mapping[str, Any], held: dict[MetadataIndex, torch.Tensor]) -> None:
        super().__init__()
        parts = dict(_local_parts(tensors))
        for index in held.keys() - parts.keys():
            del held[index]
        for index, part in parts.items():
            if index not in held or held[index].shape != part.shape or held[index].dtype != part.dtype:
                held[index] = torch.empty(part.shape, dtype=part.dtype)
            held[index].copy_(part.detach())
        self._held = held

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        """Return the copy of a tensor, or of this rank's part of it."""
        return self._held[index]


def _local_parts(tensors: Mapping[str, Any]) -> Iterator[tuple[MetadataIndex, torch.Tensor]]:
    for name, value in flatten_state_dict(dict(tensors))[0].items():
        if isinstance(value, torch.Tensor) and not hasattr(value, "local_shards"):
            yield MetadataIndex(name, [0] * value.dim()), value
        else:
            yield from ((MetadataIndex(name, place), part) for part, *place in local_shards(value))


class ChecksumWriter(FileSystemWriter):
    """Writes a checkpoint and takes the SHA-256 of each file of this rank on the way.

    Attributes:
        checksums: by name of file, hexadecimal; whole when saving has ended.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, overwrite=False)
        self.fs = _Hashing()
        self.checksums: dict[str, str] = self.fs.checksums


class _Hashing(FileSystem):
    def __init__(self) -> None:
        self.checksums: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        with Path(path).open(mode) as file:
            hashing = _HashingFile(cast(io.BufferedWriter, file))
            yield cast(io.IOBase, hashing)
        # The metadata is renamed when it is whole.
        self.checksums[Path(path).name.removesuffix(".tmp")] = hashing.digest.hexdigest()


class _HashingFile:
    """A file that is written from its beginning to its end."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.tell, self.flush, self.close = file.tell, file.flush, file.close

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def fileno(self) -> int:
        """Return the file's number, after all is written: DCP asks for it to have the disk hold the file."""
        self._file.flush()
        return self._file.fileno()


def damaged_files(folder: Path, checksums: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the files of a checkpoint; on all ranks together, each reads its share of them.

    Args:
        folder: the checkpoint.
        checksums: as noted when it was written.
    """
    mine = sorted(checksums)[dist.get_rank() :: dist.get_world_size()]
    found = [problem for name in mine if (problem := damage(folder / name, checksums[name]))]
    of_ranks: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(of_ranks, found)
    return [problem for of_rank in of_ranks for problem in of_rank]
