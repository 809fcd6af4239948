"""The tensors of one checkpoint by name, read slice by slice: no process group, no model, no whole tables in memory."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast
from zipfile import BadZipFile

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from torchrec_mtl.training.checkpoint import CheckpointError, TensorReader

# What torch, pickle, and our own arithmetic raise at metadata and files that are damaged, or crafted.
_OF_DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError, ArithmeticError),
    *(EOFError, BadZipFile, MemoryError, pickle.PickleError),
)
_RNG = "rng."  # of a rank, not of the model


class StoredTensors:
    """What a checkpoint holds, whatever ranks and plan wrote it.

    Files are mapped into memory, so that of a table stored whole only the rows and columns asked for are read. The
    checkpoint must stay where it is while this, or a tensor from it, is in use.

    Args:
        path: folder of a checkpoint.

    Attributes:
        path: the same.
        shapes: name -> shape; the names are those of the run's state: ``model.<name in the model's state dict>`` and
            ``optim.state.<parameter>.<state>``.
        dtypes: name -> type.

    Raises:
        CheckpointError: it cannot be read, or holds more than tensors.
    """

    def __init__(self, path: Path) -> None:
        """See the class."""
        self.path = path
        with _explained(path):
            metadata = TensorReader(str(path)).read_metadata()
        self._metadata: dict[str, TensorStorageMetadata] = {
            name: stored
            for name, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata) and not name.startswith(_RNG)
        }
        self._places = metadata.storage_data
        self._files: dict[str, UntypedStorage] = {}
        self.shapes: Mapping[str, torch.Size] = {name: stored.size for name, stored in self._metadata.items()}
        self.dtypes: Mapping[str, torch.dtype] = {n: stored.properties.dtype for n, stored in self._metadata.items()}

    def copy_into(self, name: str, part: Tensor, offsets: Sequence[int] = ()) -> None:
        """Overwrite in place, with what is stored of a tensor, the part of it that this rank holds.

        Args:
            name: of the tensor.
            part: the part, on any device; what lies beyond the stored tensor stays as it is.
            offsets: where the part begins, one an axis; empty: at the beginning.

        Raises:
            CheckpointError: the files are damaged.
        """
        starts = tuple(offsets) or (0,) * part.dim()
        with _explained(self.path), torch.no_grad():
            for chunk in self._metadata[name].chunks:
                # Along each axis: where both begin, and where the first of them ends.
                low = [max(a, b) for a, b in zip(starts, chunk.offsets, strict=True)]
                ends = zip(starts, part.shape, chunk.offsets, chunk.sizes, strict=True)
                high = [min(a + n, b + m) for a, n, b, m in ends]
                if any(a >= b for a, b in zip(low, high, strict=True)):
                    continue
                stored = self._chunk(MetadataIndex(name, chunk.offsets), chunk.sizes)
                _cut(part, low, high, starts).copy_(_cut(stored, low, high, chunk.offsets))

    def whole(self, name: str, scratch: Path) -> Tensor:
        """Return a whole tensor.

        Args:
            name: of the tensor.
            scratch: a file to put the parts together in, where it is stored in several, so that memory need not hold
                them; it is to be removed when the tensor is no longer used.

        Returns:
            A tensor of the stored shape in mapped memory, not to be written to.

        Raises:
            CheckpointError: the files are damaged.
            OSError: there is no room for ``scratch``.
        """
        shape, dtype = self.shapes[name], self.dtypes[name]
        chunks = self._metadata[name].chunks
        if len(chunks) == 1 and chunks[0].sizes == shape:
            with _explained(self.path):
                return self._chunk(MetadataIndex(name, chunks[0].offsets), shape)
        count = shape.numel()
        if not count:
            return torch.empty(shape, dtype=dtype)
        # Room for all of it now: a full disk would kill a process that writes to mapped memory.
        with scratch.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
        whole = torch.from_file(str(scratch), shared=True, size=count, dtype=dtype).view(shape)
        self.copy_into(name, whole)
        return whole

    def _chunk(self, index: MetadataIndex, sizes: torch.Size) -> Tensor:
        """Return a part as it was written, in mapped memory."""
        place = self._places[index]
        file = self.path / place.relative_path
        # Under fake tensors torch reads shape, strides, and the place of the numbers, but not the numbers.
        with file.open("rb") as stream, FakeTensorMode():
            item = cast(IO[bytes], _create_file_view(stream, place.offset, place.length))
            found: Tensor = torch.load(item, weights_only=True)
        storage = found.untyped_storage()
        if found.shape != sizes:
            raise ValueError(f"{index.fqn}: {tuple(found.shape)} where its metadata say {tuple(sizes)}")
        if not found.numel():
            return torch.empty(found.shape, dtype=found.dtype)
        if place.relative_path not in self._files:
            opened = UntypedStorage.from_file(str(file), False, file.stat().st_size)
            self._files[place.relative_path] = cast(UntypedStorage, opened)
        first = place.offset + storage._checkpoint_offset
        mapped = self._files[place.relative_path]
        if first + storage.nbytes() > mapped.nbytes():
            raise ValueError(f"{file.name} is cut off")
        numbers = mapped[first : first + storage.nbytes()]
        return torch.empty(0, dtype=found.dtype).set_(numbers, found.storage_offset(), found.shape, found.stride())


def _cut(tensor: Tensor, low: Sequence[int], high: Sequence[int], starts: Sequence[int]) -> Tensor:
    """Return a view of what lies between two corners; ``starts`` is where the tensor itself begins."""
    for axis, (a, b, start) in enumerate(zip(low, high, starts, strict=True)):
        tensor = tensor.narrow(axis, a - start, b - a)
    return tensor


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except _OF_DAMAGE as error:
        if isinstance(error, CheckpointError):
            raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"cannot read {path}: {reason}; take another checkpoint of the run") from error
