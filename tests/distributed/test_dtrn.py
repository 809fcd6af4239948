"""DTRN on sharded tables of sequences: 2 ranks equal 1 process, whoever has histories, under every kind of rule."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from tests.runs import (
    BATCH,
    open_run,
    raw_config,
    rows_of,
    saved,
    train_ranks,
    with_plan,
    with_values,
    write,
)
from torchrec_mtl.bottoms.din import DIN
from torchrec_mtl.bottoms.dtrn import DTRN
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.initial import initialise_tables
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.model import MultiTaskModel, build_model
from torchrec_mtl.objective import Objective
from torchrec_mtl.testing.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 6
ROWS = STEPS * BATCH - 30  # the last batch is padded
SEQUENCES = ("watched", "liked")
BOTTOM = {"type": f"{__name__}:Stirred", "task_dim": 4, "behavior_dim": 4, "hyper": [8]}
SHARED = {"type": "shared_bottom", "shared": [16], "tower": [8]}


class Stirred(DTRN):
    """DTRN without a weight at zero, so that all of it moves within a few steps."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        stir(self)


class StirredDIN(DIN):
    """The same of DIN."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        stir(self)


def stir(module: nn.Module) -> None:
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)


def table_with_histories() -> pa.Table:
    """Two sequences, one of them with times; steps in which rank 1, or everyone, or a whole sequence has none."""
    table = make_table(ROWS, seed=1, nulls=True)
    g = np.random.default_rng(0)
    liked = [g.integers(0, 60, n).tolist() for n in g.integers(0, 5, ROWS)]
    ago = [np.sort(g.integers(0, 10**6, len(ids)))[::-1] for ids in liked]
    times = pa.array([(10**7 - x).tolist() for x in ago], pa.list_(pa.int64()))
    table = table.append_column("liked", pa.array(liked, pa.list_(pa.int64())))
    table = table.append_column("now", pa.array([10**7] * ROWS)).append_column("liked_at", times)
    for step, rank, sequences in ((1, 1, SEQUENCES), (2, None, SEQUENCES), (3, None, ("liked",))):
        for name in sequences:
            table = with_values(table, name, rows_of(ROWS, step, rank=rank), None)
            if name == "liked":
                table = with_values(table, "liked_at", rows_of(ROWS, step, rank=rank), None)
    return table


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "train.parquet", table_with_histories())


def config(train_file: str, run_dir: Path, **sections: Any) -> dict[str, Any]:
    sgd = {"type": "sgd", "lr": 0.5}
    defaults = {"bottom": BOTTOM, "head": SHARED, "gradient": {"type": "sum"}, "optim": {"sparse": sgd, "dense": sgd}}
    sections = defaults | sections
    raw = raw_config(train_file, run_dir, data={"shuffle": False}, train={"log_every": 1}, **sections)
    times = {"times": "liked_at", "now": "now"}
    liked = {"name": "liked", "table": "item", "max_length": 4, "target": "item_id", **times}
    raw["features"]["sequences"].append(liked)
    for table in raw["features"]["tables"]:
        table["init"] = 1.0
    return raw


CASES: dict[str, dict[str, Any]] = {
    "sum": {"head": {"type": "mmoe", "experts": 2, "expert": [16], "tower": [8]}},
    "sum, column_wise": {},
    "pcgrad": {"gradient": {"type": "pcgrad"}, "bottom": {**BOTTOM, "layers": 2, "refinement": "shared"}},
    "tables of each task": {"head": {"type": "stem", "expert": [8], "tower": [8]}},
    "din": {"bottom": {"type": f"{__name__}:StirredDIN", "unit": [8]}},
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(train_file: str, tmp_path: Path, case: str) -> None:
    for world_size in (1, 2):
        raw = config(train_file, tmp_path / str(world_size), **CASES[case])
        raw = with_plan(raw, "column_wise") if "column_wise" in case else raw
        train_ranks(raw, world_size)
    one, two = (saved(tmp_path / str(n)) for n in (1, 2))
    assert one.keys() == two.keys()
    model, _ = unsharded(raw)
    shares = {}
    for name, start in model.named_parameters():
        a, b = one[f"model.{name}"], two[f"model.{name}"]
        shares[name] = float((a - b).abs().max() / (a - start.detach()).abs().max())
    print(f"{case}: apart by at most {max(shares.values()):.1e} of the way that a weight has gone")
    assert len(shares) > 10
    assert max(shares.values()) < 5e-3  # also where one has not moved: it would be NaN or infinity


def unsharded(raw: dict[str, Any]) -> tuple[MultiTaskModel, ParquetReader]:
    """The model as it starts, and a reader of whole batches."""
    parsed = parse(raw)
    data, files = parsed.data, open_data(parsed).train
    statistics = collect(files, data, parsed.features, parsed.tasks)
    encoder = Encoder(data, parsed.features, parsed.tasks, statistics)
    sizes = {"batch_size": data.batch_size, "streams": data.streams, "window": data.window}
    scales = {name: LabelScale.of(s) for name, s in statistics.labels.items()}
    model = build_model(parsed, scales, tables="cpu")
    initialise_tables(model.state_dict(), parsed.features, parsed.train.seed)
    return model, ParquetReader(files, encoder, **sizes, shuffle=False)


def test_interests_of_sharded_tables_equal_those_of_whole_ones(train_file: str, tmp_path: Path) -> None:
    raw = config(train_file, tmp_path, bottom={**BOTTOM, "layers": 2})
    model, reader = unsharded(raw)
    model.eval()
    ranks = run_ranks(interests_of_a_rank, 2, raw)
    empty = 0
    for step, batch in enumerate(islice(reader.epoch(0), STEPS)):
        expected = interests(model, model.objective, [batch])[0][:, batch.rows.argsort()]
        for rows, found in (steps[step] for steps, _ in ranks):
            torch.testing.assert_close(found, expected[:, rows], rtol=1e-5, atol=1e-6)
            empty += int((found == 0).all())
    assert empty >= 3  # rank 1 at one step, both at another
    assert [checks for _, checks in ranks] == [dict.fromkeys(ranks[0][1], True)] * 2


def interests(model: nn.Module, objective: Objective, batches: Iterable[Batch]) -> list[Tensor]:
    """s [K, B, J d] of each batch."""
    found: list[Tensor] = []
    handle = objective.bottoms[0].interest.register_forward_hook(lambda module, args, out: found.append(out.detach()))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return found


def interests_of_a_rank(raw: dict[str, Any]) -> tuple[list[tuple[Tensor, Tensor]], dict[str, bool]]:
    """Runs in a rank: places in the global batch and interests by step, and what a changed weight leaves as it was."""
    session, opened = open_run(raw)
    session.model.eval()
    objective = session.objective
    batches = list(session.read(session.reader(opened.train, train=True)))
    before = interests(session.model, objective, batches)
    norms = objective.bottoms[0].interest.norms
    width = norms.width
    with torch.no_grad():
        norms.tasks[1] += 1
    task = interests(session.model, objective, batches)
    with torch.no_grad():
        norms.behaviors[1] += 1
    behavior = interests(session.model, objective, batches)
    with torch.no_grad():
        norms.mlp[-1].weight.zero_()
        norms.mlp[-1].bias.zero_()
    plain = interests(session.model, objective, batches)
    checks = {
        "other tasks stay": all(torch.equal(a[[0, 2]], b[[0, 2]]) for a, b in zip(before, task)),
        "the task moves": not torch.equal(before[0][1], task[0][1]),
        "other behaviours stay": all(torch.equal(a[..., :width], b[..., :width]) for a, b in zip(task, behavior)),
        "the behaviour moves": not torch.equal(task[0][..., width:], behavior[0][..., width:]),
        "plain norms are the same for all": all(torch.equal(s, s[:1].expand_as(s)) for s in plain),
        "finite": all(bool(torch.isfinite(s).all()) for s in (*before, *task, *behavior, *plain)),
    }
    return [(batch.rows, s) for batch, s in zip(batches, before, strict=True)], checks
