"""Every YAML of the examples: loaded, built, and stepped twice on rows of its own columns."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from torchrec_mtl.config.load import load_config
from torchrec_mtl.embeddings import features_spec
from torchrec_mtl.registry import resolve
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run import train

ROWS = 256
EXAMPLES = [
    "ali_ccp/mmoe.yaml",
    "cdnow/htlnet.yaml",
    "cdnow/ncs4cvr.yaml",
    "cdnow/shared_bottom.yaml",
    "kuairand/dmmp.yaml",
    "kuairand/dtrn.yaml",
    "kuairand/htlnet.yaml",
    "kuairand/ncs4cvr.yaml",
    "movielens/dmmp.yaml",
    "movielens/dtrn.yaml",
    "online_retail/htlnet.yaml",
]


def made_up(config):
    """A table with every column that the config reads."""
    rng = np.random.default_rng(0)
    rows = {t.name: t.rows for t in config.features.tables}
    columns = {}
    for f in config.features.sparse:
        columns[f.source] = rng.integers(0, rows[f.table], ROWS)
        if f.max_length:
            columns[f.source] = [rng.integers(0, rows[f.table], n).tolist() for n in rng.integers(0, 5, ROWS)]
    for s in config.features.sequences:
        columns[s.source] = [rng.integers(0, rows[s.table], n).tolist() for n in rng.integers(0, 5, ROWS)]
        if s.times is not None:
            columns[s.times] = [rng.integers(0, 1000, len(ids)).tolist() for ids in columns[s.source]]
            columns[s.now] = rng.integers(1000, 2000, ROWS)
    columns |= {d.source: rng.normal(size=ROWS) for d in config.features.dense if d.source not in columns}
    for t in config.tasks:
        columns[t.label] = rng.integers(0, 2, ROWS) if t.kind == "binary" else rng.exponential(size=ROWS)
    columns |= {t.space: rng.integers(0, 2, ROWS) for t in config.tasks if t.space is not None}
    columns |= {k: np.arange(ROWS) for k in (*config.data.keys, *filter(None, [config.data.group])) if k not in columns}
    if config.retrieval is not None:
        columns[config.retrieval.item] = np.arange(ROWS)
        columns[config.retrieval.seen] = [[0, 1]] * ROWS
    return pa.table(columns)


def phases(config):
    """The phases of its head."""
    spec = features_spec(config.features, "shared", config.task_names)
    head = resolve("head", config.head.type).create(
        1, dict.fromkeys(config.task_names, 1), config.head, features=spec, binary=config.task_names
    )
    return head.phases(1)


def examples(repository):
    return sorted(repository.glob("examples/**/*.yaml"))


def test_there_are_examples(repository):
    names = {str(p.relative_to(repository / "examples")) for p in examples(repository)}
    assert set(EXAMPLES) <= names


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_trains_two_steps(repository, tmp_path, example):
    path = repository / "examples" / example
    files = [f"data.{split}={tmp_path / 'rows.parquet'}" for split in ("train", "eval", "test")]
    words = [*files, "data.batch_size=128", "train.epochs=1", f"run_dir={tmp_path / 'run'}", "train.references=false"]
    if load_config(path).retrieval is not None:
        words.append(f"retrieval.items={tmp_path / 'rows.parquet'}")
    config = load_config(path, words)
    pq.write_table(made_up(config), tmp_path / "rows.parquet")
    with process_group("cpu") as device, (tmp_path / "log").open("w") as log:
        result = train(config, device, console=Console(file=log))
    assert result.step == 2 * len(phases(config))
    assert set(result.evaluation.tasks) == set(config.task_names)
