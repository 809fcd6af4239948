"""Rows to inputs, and tables to files: lists and single ids, ids that are missing, histories with times, both types."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from torchrec_mtl.config.load import parse
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.model import build_model
from torchrec_mtl.serving.export import example_inputs
from torchrec_mtl.serving.inputs import InputMaker
from torchrec_mtl.serving.layout import TableFile, lay_out
from torchrec_mtl.serving.parity import Trainer
from torchrec_mtl.serving.program import Program, export_program, rows_of
from torchrec_mtl.testing.export_contract import check_export, tables_of

FEATURES: dict[str, Any] = {
    "tables": [
        {"name": "user", "rows": 50, "dim": 8, "pooling": "sum"},
        {"name": "item", "rows": 40, "dim": 4},
        {"name": "tag", "rows": 30, "dim": 4, "dtype": "fp16"},
        {"name": "genre", "rows": 20, "dim": 8},
    ],
    "sparse": [
        {"name": "user_id", "table": "user", "side": "user"},
        {"name": "friends", "table": "user", "side": "user"},
        {"name": "item_id", "table": "item", "side": "item"},
        {"name": "tags", "table": "tag", "side": "item"},
        {"name": "genre", "table": "genre", "side": "item"},
    ],
    "sequences": [
        {"name": "seen", "table": "item", "max_length": 5, "times": "seen_at", "now": "at", "target": "item_id"},
        {"name": "near", "table": "item", "max_length": 3, "side": "context"},
    ],
    "dense": ["price", {"name": "age", "side": "user"}],
}


def config_of(bottom: str) -> RunConfig:
    raw: dict[str, Any] = {"data": {"train": "unused", "batch_size": 8}, "features": FEATURES, "run_dir": "unused"}
    raw["tasks"] = [{"name": "click", "kind": "binary", "label": "click"}]
    raw |= {"head": {"type": "shared_bottom"}, "bottom": {"type": bottom}}
    return parse(raw)


def table_of(num_rows: int, seed: int = 0, *, full: bool = False) -> pa.Table:
    """Rows with nulls and empty lists, unless ``full``."""
    rng = np.random.default_rng(seed)

    def ids(rows: int) -> pa.Array:
        mask = None if full else rng.random(num_rows) < 0.3
        return pa.array(rng.integers(0, rows, num_rows), mask=mask)

    def lists(rows: int, longest: int) -> list[list[int]]:
        return [rng.integers(0, rows, rng.integers(0, longest + 1)).tolist() for _ in range(num_rows)]

    seen = lists(40, 7)
    return pa.table(
        {
            "user_id": ids(50),
            "friends": pa.array(lists(50, 4), pa.list_(pa.int64())),
            "item_id": ids(40),
            "tags": pa.array(lists(30, 3), pa.list_(pa.int64())),
            "genre": ids(20),
            "seen": pa.array(seen, pa.list_(pa.int64())),
            "seen_at": pa.array([[100 * i for i in range(len(s))] for s in seen], pa.list_(pa.int64())),
            "at": pa.array([10_000] * num_rows),
            "near": pa.array(lists(40, 3), pa.list_(pa.int64())),
            "price": pa.array(rng.normal(size=num_rows), mask=None if full else rng.random(num_rows) < 0.3),
            "age": rng.normal(size=num_rows),
        }
    )


@pytest.mark.parametrize("order", [1, -1])
def test_histories_of_the_user_and_of_the_row_go_together(order: int):
    config = config_of("dtrn")
    features = config.features.model_copy(update={"sequences": config.features.sequences[::order]})
    check_export(config.model_copy(update={"features": features}))


@pytest.mark.parametrize("bottom", ["concat", "dtrn"])
@pytest.mark.parametrize("full", [True, False])
def test_any_rows_reach_the_tables_as_in_training(bottom: str, full: bool):
    config = config_of(bottom)
    model = build_model(config, {}, tables="cpu").eval()
    layout = lay_out(config.features, model.objective.reader.spec)
    tables = tables_of(model, layout)
    encoder = Encoder(config.data, config.features, config.tasks, labels=False)
    trainer = Trainer(model, encoder)
    program, make = Program(model.objective, layout, "rows"), InputMaker(layout, one_user=False)
    traced = (*example_inputs(layout, len(config.features.dense), one_user=False), tables)
    exported = export_program(program, traced).module()
    for size in (1, 3, 20):
        table = table_of(size, seed=size, full=full)
        found = exported(*make(encoder.encode(table, "t")), tables)
        np.testing.assert_allclose(found.numpy(), trainer.predict(table, program.outputs), rtol=1e-5, atol=1e-6)
    nothing = pa.table({n: pa.nulls(2) for n in table.column_names})
    found = exported(*make(encoder.encode(nothing, "t")), tables)
    np.testing.assert_allclose(found.numpy(), trainer.predict(nothing, program.outputs), rtol=1e-5, atol=1e-6)


def test_inputs_say_which_rows_of_which_file():
    """Against a dictionary of rows, for one table of two features and a list."""
    config = config_of("concat")
    layout = lay_out(config.features, build_model(config, {}, tables="cpu").objective.reader.spec)
    encoder = Encoder(config.data, config.features, config.tasks, labels=False)
    table = table_of(6)
    _, pooled, histories = InputMaker(layout, one_user=False)(encoder.encode(table, "t"))
    for group, (ids, starts, divisor) in zip(layout.groups(one_user=False), pooled, strict=True):
        ends = [*starts.flatten().tolist()[1:], len(ids)]
        found = [ids[a:b].tolist() for a, b in zip(starts.flatten().tolist(), ends, strict=True)]
        wanted = []
        for field in group:
            for value in table[field.feature].to_pylist():
                mine = value if isinstance(value, list) else [] if value is None else [value]
                wanted.append([field.first + i for i in mine])
        assert found == wanted
        mean = group[0].pooling == "mean"
        assert divisor.flatten().tolist() == [max(1, len(w)) if mean else 1 for w in wanted]
    for history, (ids, lengths, *_) in zip(layout.histories, histories, strict=True):
        longest = {s.name: s.max_length for s in config.features.sequences}[history.name]
        kept = [value[-longest:] for value in table[history.feature].to_pylist()]
        assert lengths.tolist() == [len(k) for k in kept]
        assert ids.tolist() == [history.first + i for k in kept for i in k]


def test_tables_of_one_width_and_type_share_a_file():
    config = config_of("concat")
    layout = lay_out(config.features, build_model(config, {}, tables="cpu").objective.reader.spec)
    assert [(f.name, f.rows, f.dim, f.bits) for f in layout.files] == [
        ("dim8-bits32.npy", 70, 8, 32),
        ("dim4-bits32.npy", 40, 4, 32),
        ("dim4-bits16.npy", 30, 4, 16),
    ]
    quantised = lay_out(config.features, build_model(config, {}, tables="cpu").objective.reader.spec, 4)
    assert [(f.rows, f.dim, f.width) for f in quantised.files] == [(70, 8, 8), (70, 4, 6)]
    assert {(t.table, t.file, t.first) for t in layout.tables} == {
        ("user", 0, 0),
        ("item", 1, 0),
        ("tag", 2, 0),
        ("genre", 0, 50),
    }


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_row_is_within_half_a_step(bits: Any):
    rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    file = TableFile(name="x.npy", rows=100, dim=8, bits=bits)
    stored = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(rows, bits)
    assert stored.shape[1] == file.width
    ids = torch.tensor([3, 99, 3, 0])
    step = (rows.amax(1) - rows.amin(1)) / (2**bits - 1)
    error = (rows_of(stored, file, ids) - rows[ids]).abs().amax(1)
    assert (error <= 0.5 * step[ids] + 0.01).all()  # scale and offset are fp16
    assert (error > 0).all()


def test_the_file_on_disk_is_numpys(bundle: Path):
    for path in (bundle / "tables").iterdir():
        assert np.load(path, allow_pickle=False).dtype == np.float32
