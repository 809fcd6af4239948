"""What each rank of a run held, kept in ``ranks.json``. Without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from torchrec_mtl.atomic import write_text
from torchrec_mtl.training.versioned import load_versioned

FILE: Final = "ranks.json"
_VERSION: Final = 1


@dataclass(frozen=True)
class TablePart:
    """What one rank holds of a table.

    Attributes:
        table: its name; the copy of a task is ``table@task``.
        sharding: TorchRec's name of how the table is cut.
        kernel: TorchRec's name of what looks its rows up.
        rows: of the part.
        columns: of the part.
        bytes: of its weights.
    """

    table: str
    sharding: str
    kernel: str
    rows: int
    columns: int
    bytes: int


@dataclass(frozen=True)
class RankMemory:
    """What one rank holds, in bytes.

    Attributes:
        rank: its number.
        device: where it computes.
        parts: of tables.
        table_state: the optimizer's state of its parts of tables.
        dense: parameters and buffers of everything but tables.
        dense_state: the optimizer's state of the dense part.
        peak_host: most memory that the process had of the host, libraries included.
        peak_device: most memory that tensors had of the GPU; None on the CPU.
    """

    rank: int
    device: str
    parts: tuple[TablePart, ...]
    table_state: int
    dense: int
    dense_state: int
    peak_host: int
    peak_device: int | None

    @property
    def tables(self) -> int:
        """Bytes of the weights of its parts of tables."""
        return sum(part.bytes for part in self.parts)


def save_ranks(path: Path, ranks: tuple[RankMemory, ...]) -> None:
    """Write ``{"version": 1, "ranks": [{"rank": 0, ...}, ...]}``."""
    write_text(path, json.dumps({"version": _VERSION, "ranks": [asdict(rank) for rank in ranks]}, indent=1) + "\n")


def load_ranks(path: Path) -> tuple[RankMemory, ...]:
    """Return what `save_ranks` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    return load_versioned(path, _VERSION, _read_ranks, what="the ranks of a run")


def _read_ranks(plain: Mapping[str, Any]) -> tuple[RankMemory, ...]:
    return tuple(map(_read_rank, plain["ranks"]))


def _read_rank(plain: Mapping[str, Any]) -> RankMemory:
    peak = plain["peak_device"]
    return RankMemory(
        rank=int(plain["rank"]),
        device=str(plain["device"]),
        parts=tuple(map(_read_part, plain["parts"])),
        table_state=int(plain["table_state"]),
        dense=int(plain["dense"]),
        dense_state=int(plain["dense_state"]),
        peak_host=int(plain["peak_host"]),
        peak_device=None if peak is None else int(peak),
    )


def _read_part(plain: Mapping[str, Any]) -> TablePart:
    return TablePart(
        table=str(plain["table"]),
        sharding=str(plain["sharding"]),
        kernel=str(plain["kernel"]),
        rows=int(plain["rows"]),
        columns=int(plain["columns"]),
        bytes=int(plain["bytes"]),
    )
