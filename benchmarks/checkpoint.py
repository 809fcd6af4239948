"""What a checkpoint costs: how long training stands still for it, and its size on the disk.

    python benchmarks/checkpoint.py --rows 10000000

MMoE on 20 tables, of that many rows together (dimension 16, row-wise Adagrad, Adam), one process and thread. Stretches
of as many steps are timed in turn: without a checkpoint, with one that training waits for, and with one in the
background (copied in memory, then written by a thread). A stretch is longer than the writing, so what it takes longer
than one without is the whole price: waiting, copying, and steps that are slower while the thread writes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.measured import Figure, Spread, as_markdown, interleave
from benchmarks.scaling_workload import FIELDS, Workload
from torchrec_mtl.bench.machine import machine, versions
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.saving import state_bytes
from torchrec_mtl.training.session import Session

_EVERY = (100, 1000)
_NOTES = {"step": 1}


def stretch(session: Session, batches: Sequence[Batch], save: Callable[[], None], wait: Callable[[], None]) -> float:
    """Return the seconds of a checkpoint and the steps after it, until both are done."""
    start = time.perf_counter()
    save()
    for _ in session.run(iter(batches)):
        pass
    wait()
    return time.perf_counter() - start


def measure(session: Session, batches: Sequence[Batch], folder: Path, repeats: int) -> list[Figure]:
    """Return the figures of both ways to save, and of the size."""
    ways = {
        name: Checkpoints(folder / name, keep=1, background=name == "background") for name in ("wait", "background")
    }
    calls: dict[str, list[float]] = {name: [] for name in ways}

    def save(name: str) -> None:
        start = time.perf_counter()
        ways[name].save(session.tensors(), _NOTES, step=1, best=False)
        calls[name].append(time.perf_counter() - start)

    sides = {"none": lambda: stretch(session, batches, lambda: None, lambda: None)}
    for name, checkpoints in ways.items():
        sides[name] = lambda name=name, checkpoints=checkpoints: stretch(  # type: ignore[misc]
            session, batches, lambda: save(name), checkpoints.wait
        )
    times = interleave(sides, repeats)
    step_ms = Spread.of([t / len(batches) * 1000 for t in times["none"]])
    figures = [Figure("a step", step_ms, "ms")]
    for name in ways:
        price = Spread.of([t - base for t, base in zip(times[name], times["none"], strict=True)])
        shares = [price.median / (price.median + every * step_ms.median / 1000) for every in _EVERY]
        called = Spread.of(calls[name][1:])  # the first is of the warm-up
        words = ", ".join(f"{share:.2%} of the time at one in {every} steps" for share, every in zip(shares, _EVERY))
        figures.append(Figure(f"checkpoint, {name}: training stands still", called, "s"))
        figures.append(Figure(f"checkpoint, {name}: price", price, "s", note=words))
    size = sum(path.stat().st_size for path in (folder / "wait").rglob("*") if path.is_file())
    state = state_bytes(session)
    note = f"{size / 2**20:.1f} MiB for {state / 2**20:.1f} MiB of state"
    figures.append(Figure("size on the disk / state", Spread.of([size / state]), "", note=note))
    return figures


def disk_speed(folder: Path, size: int = 1 << 28) -> float:
    """Return GB/s of writing plain bytes and having the disk hold them."""
    content = os.urandom(size)
    start = time.perf_counter()
    with (folder / "bytes").open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return size / 1e9 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="of all tables together")
    parser.add_argument("--steps", type=int, default=600, help="of a stretch; longer than the writing of a checkpoint")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder on the disk to write to; by default a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    workload = Workload(rows=args.rows // FIELDS, batch=args.batch)
    with tempfile.TemporaryDirectory(dir=args.out) as folder, process_group("cpu") as device:
        session = workload.open(device)
        few = workload.batches(session, min(args.steps, 50))
        batches = [few[i % len(few)] for i in range(args.steps)]
        print(f"machine: {machine()}; versions: {versions()}; {args.rows:,} rows, batch {args.batch}, "
              f"{args.repeats} repeats; the disk takes {disk_speed(Path(folder)):.2f} GB/s of plain bytes")  # fmt: skip
        print(as_markdown("checkpoint", measure(session, batches, Path(folder), args.repeats)))


if __name__ == "__main__":
    main()
