"""Tables of a bundle: streamed from a checkpoint into files, and mapped from there into memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchrec_mtl.serving.layout import Layout, TableFile
from torchrec_mtl.training.stored import StoredTensors

_ROWS = 1 << 16  # at once: memory holds no more of a table
_TYPES = {32: np.float32, 16: np.float16, 8: np.uint8, 4: np.uint8}


def write_tables(layout: Layout, stored: StoredTensors, names: Mapping[str, str], folder: Path) -> None:
    """Write the files of a layout, row block by row block.

    Args:
        layout: what goes where.
        stored: the checkpoint, of any number of ranks and any sharding plan.
        names: table -> its name in the checkpoint.
        folder: to write to.

    Raises:
        CheckpointError: the checkpoint is damaged.
        OSError: the disk is full.
    """
    for number, file in enumerate(layout.files):
        shape = (file.rows, file.width)
        out = np.lib.format.open_memmap(folder / file.name, mode="w+", dtype=_TYPES[file.bits], shape=shape)
        with (folder / file.name).open("rb+") as room:
            # Now: a full disk would kill a process that writes to mapped memory.
            os.posix_fallocate(room.fileno(), 0, os.fstat(room.fileno()).st_size)
        for table in (t for t in layout.tables if t.file == number):
            # One buffer for all: what a loop allocates and frees block by block, malloc may keep.
            buffer = torch.empty(min(_ROWS, table.rows), file.dim, dtype=stored.dtypes[names[table.table]])
            for start in range(0, table.rows, _ROWS):
                block = buffer[: min(_ROWS, table.rows - start)]
                stored.copy_into(names[table.table], block, (start, 0))
                out[table.first + start : table.first + start + len(block)] = _encoded(block, file).numpy()
        out.flush()


def _encoded(block: Tensor, file: TableFile) -> Tensor:
    if file.bits >= 16:
        return block
    quantised: Tensor = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(block.float(), file.bits)
    return quantised


def map_tables(layout: Layout, folder: Path) -> list[Tensor]:
    """Return the files of a layout, mapped: processes of one machine share them, and read what they use.

    Raises:
        ValueError: a file is missing, or not what the layout says.
    """
    return [_map(file, folder / file.name) for file in layout.files]


def _map(file: TableFile, path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}; export the bundle again") from error
    if array.shape != (file.rows, file.width) or array.dtype != _TYPES[file.bits]:
        raise ValueError(
            f"{path} holds {array.shape} {array.dtype}, and the bundle says {(file.rows, file.width)} of "
            f"{np.dtype(_TYPES[file.bits])}; export the bundle again"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody writes to it
        return torch.from_numpy(array)
