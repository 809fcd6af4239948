"""A trained run applied to other data: metrics, or predictions in the order of the input."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import torch

from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.files import DataFile, open_files
from torchrec_mtl.data.prefetch import prefetch
from torchrec_mtl.data.preflight import check_keys, check_retrieval, check_schema
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.data.writing import parquet_file
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.evaluation import Evaluation
from torchrec_mtl.training.run_dir import best_or_latest, load_run
from torchrec_mtl.training.session import Session, open_session


def evaluate_run(run: str | Path, data: Sequence[str]) -> tuple[int, Evaluation, RunConfig]:
    """Return (step of the checkpoint, metrics, config) of a trained run on other data; works on any number of ranks."""
    config, statistics, checkpoints = load_run(run)
    files = _open(data, config, labels=True)
    with process_group(config.train.device, config.train.timeout_s) as device:
        session = open_session(config, statistics, device)
        which = best_or_latest(checkpoints)
        session.restore(checkpoints, which, weights_only=True)
        notes = checkpoints.notes(which)
        return int(notes["step"]) if notes else 0, session.evaluate(files), config


def predict_run(run: str | Path, data: Sequence[str], out: Path) -> int:
    """Write predictions to a Parquet file, row group by row group; return the number of rows.

    Raises:
        ValueError: several ranks, a name is used twice, or the data do not fit.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("predict runs in one process; split the files and start it once a part")
    config, statistics, checkpoints = load_run(run)
    files = _open(data, config, labels=False)
    if twice := set(config.data.keys) & set(config.task_names):
        raise ValueError(
            f"data.keys and tasks share the names {sorted(twice)}, which would be one column; rename the tasks"
        )
    with process_group(config.train.device, config.train.timeout_s) as device:
        session = open_session(config, statistics, device, labels=False)
        session.restore(checkpoints, best_or_latest(checkpoints), weights_only=True)
        return _write(session, files, out)


def _open(data: Sequence[str], config: RunConfig, *, labels: bool) -> tuple[DataFile, ...]:
    files = open_files(data)
    problems = check_schema(files, config, labels=labels)
    if not labels:
        problems += check_keys(files, config)
    elif config.retrieval is not None:
        problems += check_retrieval(files, open_files(config.retrieval.items), config)
    if problems:
        raise ConfigError(problems, source="data")
    return files


def _write(session: Session, files: Sequence[DataFile], out: Path) -> int:
    keys = list(session.config.data.keys)
    predictions, rows = _predictions(session, files), 0
    ready = next(predictions)
    if twice := set(keys) & set(ready.column_names):
        raise ValueError(f"data.keys and the predictions share the names {sorted(twice)}; rename these keys")
    with parquet_file(out) as write:
        for file in files:
            for group, count in enumerate(file.row_groups):
                while len(ready) < count:
                    ready = pa.concat_tables([ready, next(predictions)])
                columns = file.read_row_group(group, keys) if keys else pa.table({})
                scores = ready.slice(0, count)
                named = {**{key: columns[key] for key in keys}, **{name: scores[name] for name in scores.column_names}}
                write(pa.table(named))
                ready, rows = ready.slice(count), rows + count
    return rows


def _predictions(session: Session, files: Sequence[DataFile]) -> Iterator[pa.Table]:
    """Yield a column a task, then the head's further predictions, in the order of the input; padding comes last."""
    data = session.config.data
    reader = ParquetReader(
        files,
        session.encoder,
        batch_size=data.eval_batch_size or 4 * data.batch_size,
        streams=1,
        window=data.window,
        shuffle=False,
    )
    session.model.eval()
    batches = prefetch(reader.epoch(0), data.prefetch, session.config.train.timeout_s)
    try:
        with torch.no_grad():
            for output in session.run(batches):
                tasks = zip(session.config.task_names, output.predictions.unbind(1), strict=True)
                yield pa.table({name: p.float().cpu().numpy() for name, p in (*tasks, *output.further.items())})
    finally:
        batches.close()
