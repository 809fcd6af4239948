"""From a trained run to an index of items, and from an index to what each user should see."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from torchrec_mtl.config.features import Side
from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.columns import config_columns, schema_problems
from torchrec_mtl.data.files import DataFile, open_files
from torchrec_mtl.data.one_side import OneSidedFile, one_sided
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.data.writing import parquet_file
from torchrec_mtl.retrieval.index import IndexOptions, ItemIndex
from torchrec_mtl.retrieval.unseen import search_unseen
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.retrieval import vectors_of
from torchrec_mtl.training.run_dir import best_or_latest, load_run
from torchrec_mtl.training.session import Session, open_session
from torchrec_mtl.training.stored_run import StoredRun

Floats = npt.NDArray[np.float32]
Loaded = tuple[RunConfig, Statistics, Checkpoints]

_PROBES = 1000  # queries that the recall of an index is measured with


@dataclass(frozen=True)
class Indexed:
    """What became of an index.

    Attributes:
        index: it.
        recall: share of the 100 best items that it finds; None for an exact one, and without ``data.eval``.
    """

    index: ItemIndex
    recall: float | None


def index_run(run: str | Path, items: Sequence[str], out: Path, options: IndexOptions, *, add: bool = False) -> Indexed:
    """Put the vectors of items into an index, with the run's best checkpoint.

    Args:
        run: of a head that retrieves, such as dmmp.
        items: Parquet files with the columns of the item features, and ``retrieval.item``.
        out: folder of the index.
        options: kind and settings.
        add: the items join the index that is there.

    Raises:
        ValueError: several ranks, a head that does not retrieve, or items that do not fit.
    """
    loaded, retrieval = _load(run)
    config = loaded[0]
    files = _open(items, config, "item", retrieval.item)
    with process_group(config.train.device, config.train.timeout_s) as device:
        session = _session(loaded, device)
        vectors = np.concatenate([*vectors_of(session, files, "item")])
        ids = _column(files, retrieval.item)
        index = ItemIndex.load(out) if add else None
        source = StoredRun.find(run)
        try:
            if index is not None:
                _check_same_checkpoint(index, source, out)
                index.add(ids, vectors)
            else:
                notes = {"run": str(Path(run).resolve()), "item": retrieval.item, "step": str(source.step)}
                notes["checkpoint"] = source.digest()  # a server compares it with that of its bundle
                index = ItemIndex.build(ids, vectors, config.task_names, options, notes)
        except ValueError as error:
            raise ValueError(f"items of {files[0].path}, column '{retrieval.item}': {error}") from error
        index.save(out)
        return Indexed(index, _recall(session, index))


def search_index(
    folder: Path,
    queries: Sequence[str],
    out: Path,
    *,
    k: int,
    weights: Mapping[str, float],
    run: str | Path | None = None,
) -> int:
    """Write the best items of each query, a row a query in the order of the files: the query's name, ids, and scores.

    Items in the column ``retrieval.seen`` of a query, where its file has that, are left out.

    Args:
        folder: of the index.
        queries: Parquet files with the columns of the user features, and ``retrieval.query``.
        out: Parquet file to write.
        k: items a query.
        weights: task -> how much it counts; 1 for others.
        run: that makes the vectors of the queries; by default the one that the index was made of.

    Returns:
        The number of queries.

    Raises:
        ValueError: several ranks, or queries, a run, or weights that do not fit the index.
    """
    index = ItemIndex.load(folder)
    run = run or index.notes.get("run", "")
    if not run:
        raise ValueError(f"the index in {folder} does not say which run it was made of; name it with --run")
    loaded, retrieval = _load(run)
    config = loaded[0]
    if config.task_names != index.tasks:
        raise ValueError(
            f"{folder} is an index of the tasks {', '.join(index.tasks)}, and {run} has "
            f"{', '.join(config.task_names)}; name the run that it was made of with --run, or make it again"
        )
    files = _open(queries, config, "user", retrieval.query)
    names, done = _column(files, retrieval.query), 0
    seen = _column(files, retrieval.seen) if retrieval.seen and _have(files, retrieval.seen) else None
    with process_group(config.train.device, config.train.timeout_s) as device, parquet_file(out) as write:
        for vectors in vectors_of(_session(loaded, device), files, "user"):
            hidden = None if seen is None else seen.slice(done, len(vectors)).combine_chunks()
            ids, scores = search_unseen(index, vectors, k, weights, hidden)
            found = {
                retrieval.query: names.slice(done, len(vectors)),
                "ids": pa.FixedSizeListArray.from_arrays(ids, k),
                "scores": pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), k),
            }
            write(pa.table(found))
            done += len(vectors)
    return done


def _have(files: Sequence[DataFile], column: str) -> bool:
    return all(column in file.metadata.schema.to_arrow_schema().names for file in files)


def _load(run: str | Path) -> tuple[Loaded, RetrievalConfig]:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("index and search run in one process; start them without torchrun")
    config, statistics, checkpoints = load_run(run)
    if config.retrieval is None:
        raise ValueError(
            f"{run} was trained without a section retrieval, which names the columns of items and queries; add it to "
            f"{Path(run) / 'config.yaml'}, with a head that retrieves, such as dmmp"
        )
    return (config, statistics, checkpoints), config.retrieval


def _session(loaded: Loaded, device: torch.device) -> Session:
    config, statistics, checkpoints = loaded
    session = open_session(config, statistics, device, labels=False)
    session.restore(checkpoints, best_or_latest(checkpoints), weights_only=True)
    return session


def _check_same_checkpoint(index: ItemIndex, source: StoredRun, folder: Path) -> None:
    """Refuse to put vectors of two trainings into one index: it would find one by scores of the other."""
    noted = index.notes.get("checkpoint")  # earlier versions noted none
    if noted and noted != source.digest():
        raise ValueError(
            f"the index in {folder} was made of another checkpoint, step {index.notes.get('step')}, than step "
            f"{source.step} of this run; make it again of all items, without --add"
        )


def _open(patterns: Sequence[str], config: RunConfig, side: Side, key: str) -> tuple[OneSidedFile, ...]:
    files = one_sided(open_files(patterns), config.features, side)
    wanted = config_columns(config.data, config.features, config.tasks, labels=False)
    problems = schema_problems([(f.path, f.schema) for f in files], wanted)
    problems += [
        f"{f.path}: no column {key}, which names the {'items' if side == 'item' else 'queries'}; add it"
        for f in files
        if not _have([f], key)
    ]
    if problems:
        raise ConfigError(problems, source="data")
    return files


def _column(files: Sequence[DataFile], name: str) -> pa.ChunkedArray:
    tables = [f.read_row_group(group, [name]) for f in files for group in range(len(f.row_groups))]
    column = pa.concat_tables(tables).column(name)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _recall(session: Session, index: ItemIndex) -> float | None:
    """Measure an approximate index with the first queries of the evaluation data."""
    if index.options.kind == "flat" or session.config.data.eval is None:
        return None
    files = one_sided(open_files(session.config.data.eval), session.config.features, "user")
    blocks, found = vectors_of(session, files, "user"), list[Floats]()
    for block in islice(blocks, 64):
        found.append(block)
        if sum(map(len, found)) >= _PROBES:
            break
    blocks.close()
    return index.recall(np.concatenate(found)[:_PROBES], min(100, len(index)))
