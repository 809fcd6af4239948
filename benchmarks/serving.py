"""What a bundle is worth: its speed against the trainer's model, what HTTP adds, and what quantised tables cost.

    python -m benchmarks.serving runs/kuairand-htlnet [--compile]

The trained run is exported as it is, with tables of 8 and 4 bits, and with native code where that is asked for. All
sides get the same columns of the run's test data (Arrow) and give predictions back, in turn, one process and thread:
the trainer's model ("eager") unsharded, with its own encoder and batches, and without its losses; the bundle with its
predictor. One user with
500 candidates is 500 rows to the eager model. Ratios are within a repeat.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from benchmarks.measured import Aim, Figure, Spread, as_markdown, interleave, ratios
from benchmarks.serving_http import Question, measure_http
from torchrec_mtl.bench.machine import machine, versions
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import open_files, read_tables
from torchrec_mtl.model import MultiTaskModel
from torchrec_mtl.objective import predict, represent
from torchrec_mtl.serving.export import Options, export_run, trained_model
from torchrec_mtl.serving.parity import files_to_compare
from torchrec_mtl.serving.predictor import Predictor
from torchrec_mtl.training.run_dir import load_run
from torchrec_mtl.training.stored import StoredTensors
from torchrec_mtl.training.stored_run import StoredRun

_SIZES = (1, 100, 1000)
_CANDIDATES = 500
_BITS: dict[str, Literal[8, 4]] = {"int8": 8, "int4": 4}
_AIM = Aim("at least", 2.0)

Call = Callable[[pa.Table], Any]


def export_all(run: Path, folder: Path, *, native: bool, rows: int) -> list[Figure]:
    """Export a run in all forms; return what quantised tables cost."""
    whole = export_run(run, folder / "bundle", Options(rows=rows))
    assert whole.parity is not None
    figures = [
        Figure("largest difference from the trainer", Spread.of([max(whole.parity.largest.values())]), "", note="fp32")
    ]
    if native:
        about = export_run(run, folder / "native", Options(rows=rows, compile=True))
        assert about.parity is not None
        worst = Spread.of([max(about.parity.largest.values())])
        figures.append(Figure("largest difference from the trainer", worst, "", note="native code"))
    size = _bytes(folder / "bundle" / "tables")
    for name, bits in _BITS.items():
        about = export_run(run, folder / name, Options(quantise=bits, rows=rows, max_loss=1.0))
        assert about.parity is not None
        smaller = _bytes(folder / name / "tables")
        note = f"{smaller / 2**20:.2f} MiB for {size / 2**20:.2f} MiB"
        figures.append(Figure(f"{name}: size of the tables / fp32", Spread.of([smaller / size]), "", note=note))
        for task, found in about.parity.metrics.items():
            note = f"{found.before:.5f} to {found.after:.5f} over {about.parity.rows:,} rows"
            change = Spread.of([found.after - found.before])
            figures.append(Figure(f"{name}: {found.metric} of {task}, change", change, "", note=note))
    return figures


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def eager(run: Path, scratch: Path) -> Call:
    """Return the trainer's model as a function of columns."""
    config, statistics, _ = load_run(run)
    model = trained_model(config, statistics, StoredTensors(StoredRun.find(run).path), scratch)
    encoder = Encoder(config.data, config.features, config.tasks, statistics, labels=False)

    def call(table: pa.Table) -> Any:  # noqa: ANN401
        rows = encoder.encode(table, "benchmark")
        batch = encoder.batch(rows, slots=np.arange(len(rows)), step=0, global_size=len(rows))
        with torch.no_grad():
            return _scores(model, batch)

    return call


def _scores(model: MultiTaskModel, batch: Batch) -> torch.Tensor:
    """Return the predictions alone: a forward of training also computes losses."""
    part = model.objective
    embedded = part.reader.read(*model.embeddings(batch))
    features = part.reader.features(embedded, batch, part.seed)
    out = part.head(represent(features, part.bottoms, part.head, part.tasks))
    return predict(out, part.losses, part.consistency, part.tasks)


def compare_batches(sides: dict[str, Call], table: pa.Table, calls: int, repeats: int) -> list[Figure]:
    """Return the milliseconds of a batch, by size and side."""
    figures = []
    for size in _SIZES:
        parts = [table.slice(size * i % (table.num_rows - size + 1), size) for i in range(8)]
        few = max(5, calls // max(1, size // 50))
        times = interleave({name: partial(_batch_ms, call, parts, few) for name, call in sides.items()}, repeats)
        for name, found in times.items():
            gain = ratios(times["eager"], found) if name != "eager" else None
            aim = _AIM if gain is not None and size <= 100 and not name.startswith("int") else None
            against = "eager / this" if gain is not None else ""
            figures.append(Figure(f"{name}, batch of {size:,}", Spread.of(found), "ms", gain, against, aim))
    return figures


def _batch_ms(call: Call, parts: Sequence[pa.Table], calls: int) -> float:
    start = time.perf_counter()
    for i in range(calls):
        call(parts[i % len(parts)])
    return (time.perf_counter() - start) / calls * 1000


def one_user(
    whole: Call, predictors: dict[str, Predictor], bundle: Path, table: pa.Table, *, calls: int, repeats: int
) -> str:
    """Return a table of milliseconds, one user with many candidates: over HTTP, and in this process."""
    first = next(iter(predictors.values()))
    mine = [column.name for column in first.columns if column.sides == ("user",)]
    others = [column.name for column in first.columns if column.sides != ("user",)]
    questions, rows = [], []
    for start in range(0, table.num_rows - _CANDIDATES + 1, _CANDIDATES):
        part = table.slice(start, _CANDIDATES)
        questions.append(
            Question({name: part[name][0].as_py() for name in mine}, {name: part[name].to_pylist() for name in others})
        )
        for name in mine:
            column = part[name].take(pa.array(np.zeros(_CANDIDATES, np.int64)))
            part = part.set_column(part.column_names.index(name), name, column)
        rows.append(part)
    beside: dict[str, Callable[[int], object]] = {"eager, rows in Arrow": lambda i: whole(rows[i % len(rows)])}
    for name, predictor in predictors.items():
        beside[f"{name}, rows in Arrow"] = lambda i, predictor=predictor: predictor(rows[i % len(rows)])  # type: ignore[misc]
        beside[f"{name}, one user in Arrow"] = lambda i, predictor=predictor: predictor.score(  # type: ignore[misc]
            questions[i % len(rows)].user, rows[i % len(rows)].select(others)
        )
    found = measure_http(
        bundle, candidates=_CANDIDATES, calls=calls, repeats=repeats, questions=questions, beside=beside
    )
    return found.table()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--compile", action="store_true", help="native code, too: minutes of compiling")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{machine()}; {versions()}\n{args.run}, {args.repeats} repeats of {args.calls} calls")
        print(
            as_markdown(
                "Parity and quantised tables", export_all(args.run, folder, native=args.compile, rows=args.rows)
            )
        )
        predictors = {kind: Predictor.load(folder / kind) for kind in ("bundle", "int8")}
        if args.compile:
            predictors["native"] = Predictor.load(folder / "native", compiled=True)
        sides: dict[str, Call] = {"eager": eager(args.run, folder / "scratch"), **predictors}
        table = _rows(args.run, predictors["bundle"])
        print(as_markdown("Columns in, predictions out", compare_batches(sides, table, args.calls, args.repeats)))
        told = one_user(
            sides["eager"], predictors, folder / "bundle", table, calls=args.calls, repeats=min(args.repeats, 3)
        )
        print(f"\n### One user, {_CANDIDATES} candidates\n\n{told}")


def _rows(run: Path, predictor: Predictor) -> pa.Table:
    config, _, _ = load_run(run)
    files = open_files(files_to_compare(config, ()))
    names = [column.name for column in predictor.columns]
    return pa.concat_tables(list(read_tables(files, names))).slice(0, 5000).combine_chunks()


if __name__ == "__main__":
    main()
