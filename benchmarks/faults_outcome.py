"""What two runs left, compared bit for bit; and which batches led to their final states."""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from torchrec_mtl.training.checkpoint import Checkpoints, TensorReader

_TIMED = ("time", "train/samples_per_s", "train/window/")


@dataclass(frozen=True)
class Batches:
    """The batches that led to a run's final state.

    Attributes:
        sequence: by step, the marks of what the ranks trained on.
        again: batches trained after a checkpoint that a kill came before the next of, and so trained again.
    """

    sequence: list[tuple[int, ...]]
    again: int

    def differences(self, other: Batches) -> int:
        """Return in how many places of the sequence the two differ."""
        return sum(a != b for a, b in zip_longest(self.sequence, other.sequence))


def effective_batches(traces: Path, ranks: int) -> Batches:
    """Read what the ranks traced: an attempt's batches count up to where the next attempt went on."""
    of_ranks: list[list[int]] = []
    again = 0
    for rank in range(ranks):
        sequence: list[int] = []
        for path in sorted(traces.glob(f"*-{rank}-*")):
            words = [line.split() for line in path.read_text().splitlines()]
            trained = [(int(w[2]), int(w[3])) for w in words if w[1] == "batch"]
            if trained:
                went_on_after = trained[0][0] - 1
                again += max(len(sequence) - went_on_after, 0)
                sequence = [*sequence[:went_on_after], *(mark for _, mark in trained)]
        of_ranks.append(sequence)
    return Batches(list(zip_longest(*of_ranks)), again)


def progress(traces: Path) -> tuple[int, float]:
    """Return the step that was trained last, and the seconds from the first line of a trace to the first batch."""
    lines = sorted(line.split() for path in traces.iterdir() for line in path.read_text().splitlines())
    batches = [words for words in lines if words[1] == "batch"]
    if not batches:
        return 0, 0.0
    return int(batches[-1][2]), float(batches[0][0]) - float(lines[0][0])


def seconds_of_attempts(traces: Path, kills: list[float]) -> float:
    """Return the median of the seconds from a kill to the first batch after it; kills before any batch left out."""
    batches = sorted(
        float(line.split()[0])
        for path in traces.iterdir()
        for line in path.read_text().splitlines()
        if " batch " in line
    )
    waits = [
        after - killed for killed in kills if (after := next((t for t in batches if t > killed), None)) is not None
    ]
    return statistics.median(waits) if waits else 0.0


def compare(whole: Path, killed: Path) -> list[str]:
    """Return what is not equal, bit for bit, in what two runs left; nothing where all is."""
    found: list[str] = []
    for which in ("latest", "best"):
        a, b = (Checkpoints(run_dir).notes(which) for run_dir in (whole, killed))
        found += [] if a == b else [f"notes of {which}: {a}, {b}"]
        found += [f"{which}: {name}" for name in _unequal(_tensors(whole, which), _tensors(killed, which))]
    found += [] if _log(whole) == _log(killed) else ["metrics.jsonl"]
    for name in ("metrics.json", "findings.json", "statistics.json"):
        texts = [path.read_text() if path.is_file() else None for path in (whole / name, killed / name)]
        found += [] if texts[0] == texts[1] else [name]
    return found


def _tensors(run_dir: Path, which: str) -> dict[str, torch.Tensor]:
    checkpoints = Checkpoints(run_dir)
    path = str(checkpoints.folder / checkpoints.index()[which])
    stored = TensorReader(path).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in stored.items()
        if isinstance(meta, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        dcp.load(tensors, storage_reader=TensorReader(path), no_dist=True)
    return tensors


def _unequal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> list[str]:
    differing = [name for name, value in a.items() if name in b and not _equal(value, b[name])]
    return sorted({*(a.keys() ^ b.keys()), *differing})


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """As bytes: nan equals itself, and -0.0 is not 0.0."""
    return a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def _log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of the log without times; a resumed run's windows start empty."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(_TIMED)} for line in lines]
