"""`exact: rows` on sharded, fused tables gives the Gramian of dense tables, with duplicates within and across ranks."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runs import BATCH, HTLNET, RULE, raw_config, with_plan, write
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.initial import initialise_tables
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.model import build_model
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.session import open_session

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 5


def config(train_file: str, run_dir: Path, exact: str, **sections: Any) -> dict[str, Any]:
    sections = {"gradient": {**RULE, "exact": exact}, "head": {**HTLNET, "leu_mode": "tempered"}, **sections}
    return raw_config(train_file, run_dir, data={"shuffle": False}, **sections)


def statistics(raw: dict[str, Any]) -> Statistics:
    run = parse(raw)
    return collect(open_data(run).train, run.data, run.features, run.tasks)


def sharded(raw: dict[str, Any]) -> list[Tensor]:
    """Runs in a rank: the Gramians of some steps through pipeline, sharded tables, and fused optimizers."""
    run = parse(raw)
    session = open_session(run, statistics(raw), torch.device("cpu"))
    reader = session.reader(open_data(run).train, train=True)
    for _ in session.run(islice(reader.epoch(0), STEPS)):
        pass
    return [gramian for gramian, _ in session.objective.boundary.history]


def unsharded(raw: dict[str, Any]) -> list[Tensor]:
    """The same steps with ordinary tables and torch's SGD."""
    run, found = parse(raw), statistics(raw)
    scales = {name: LabelScale.of(s) for name, s in found.labels.items()}
    model = build_model(run, scales, tables="cpu").train()
    initialise_tables(model.state_dict(), run.features, run.train.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=run.optim.dense.lr)
    files, encoder = open_data(run).train, Encoder(run.data, run.features, run.tasks, found)
    data = run.data
    reader = ParquetReader(
        files, encoder, batch_size=data.batch_size, streams=data.streams, window=data.window, shuffle=False
    )
    for batch in islice(reader.epoch(0), STEPS):
        losses, _ = model(batch)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return [gramian for gramian, _ in model.objective.boundary.history]


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    assert len(a) == len(b) == STEPS
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(a, b))


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Few users and items, so that ids repeat in a batch and across ranks; nulls and empty lists too."""
    return write(tmp_path_factory.mktemp("data") / "train.parquet", make_table(STEPS * BATCH, seed=2, nulls=True))


CASES: dict[str, dict[str, Any]] = {
    "fan_out": {},
    "by_table": {"gradient": {"type": "metabalance", "core": "watch_time"}},
    "per_task_passes": {"head": {"type": "shared_bottom", "shared": [16], "tower": [8]}},
}


@pytest.mark.parametrize("case", CASES)
def test_rows_on_shards_equal_dense_tables(train_file: str, tmp_path: Path, case: str) -> None:
    def raw(exact: str) -> dict[str, Any]:
        sections = dict(CASES[case])
        sections["gradient"] = {**sections.get("gradient", RULE), "exact": exact}
        return config(train_file, tmp_path, exact, **sections)

    dense = unsharded(raw("dense"))
    boundary = largest_difference(unsharded(raw("boundary")), dense)
    found = {}
    for world_size in (1, 2):
        ranks = run_ranks(sharded, world_size, raw("rows"))
        assert all(torch.equal(a, b) for a, b in zip(ranks[0], ranks[-1]))  # ranks decide alike
        found[world_size] = largest_difference(ranks[0], dense)
    print(f"{case}: rows against dense {found}, boundary against dense {boundary:.3f}")
    assert max(found.values()) < 1e-5
    assert boundary > 1e-3  # there are duplicates to tell apart


def test_rows_do_not_depend_on_the_plan(train_file: str, tmp_path: Path) -> None:
    raw = config(train_file, tmp_path, "rows")
    plans = {s: run_ranks(sharded, 2, with_plan(raw, s))[0] for s in ("table_wise", "column_wise")}
    assert largest_difference(plans["column_wise"], plans["table_wise"]) < 1e-5


def test_dense_is_refused_where_tables_are_fused(train_file: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="use exact: rows"):
        run_ranks(sharded, 1, config(train_file, tmp_path, "dense"))
