"""What is seen to before the first step, what is left after the last, and what a resumed or loaded run is told."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console

from tests.runs import BATCH, raw_config, train_until, with_values, write
from torchrec_mtl.config.load import ConfigError, parse
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.inference import evaluate_run
from torchrec_mtl.training.optim import Optimizers
from torchrec_mtl.training.run import RunResult, train
from torchrec_mtl.training.run_dir import load_run

PLAIN = {"head": {"type": "shared_bottom", "shared": [8], "tower": [4]}, "gradient": {"type": "sum"}}


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with process_group("cpu"):
        yield


@pytest.fixture
def tables() -> dict[str, pa.Table]:
    rows = {"train": (4 * BATCH, 1), "eval": (90, 2), "test": (80, 3)}
    return {split: make_table(n, seed=seed) for split, (n, seed) in rows.items()}


def config(tables: dict[str, pa.Table], folder: Path, **sections: Any) -> dict[str, Any]:
    files = {split: write(folder / f"{split}.parquet", table) for split, table in tables.items()}
    return raw_config(files["train"], folder / "run", **{**PLAIN, **sections, "data": files | sections.get("data", {})})


def run(raw: dict[str, Any]) -> tuple[RunResult, str]:
    """Train in this process; return what was found and what was shown."""
    shown = io.StringIO()
    return train(parse(raw), torch.device("cpu"), console=Console(file=shown)), shown.getvalue()


def spoil(tables: dict[str, pa.Table]) -> dict[str, int]:
    """Put 2, 3, and 4 ids outside their table and as many null labels into the splits; return the counts."""
    counts = {"train": 2, "eval": 3, "test": 4}
    for split, count in counts.items():
        bad = with_values(tables[split], "user_id", np.arange(count), 10_000)
        tables[split] = with_values(bad, "click", np.arange(10, 10 + count), None)
    return counts


# Before the first step


def test_bad_values_of_all_splits_are_reported_together_before_training(
    tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    counts = spoil(tables)
    with pytest.raises(ConfigError) as refused:
        run(config(tables, tmp_path))
    lines = str(refused.value).splitlines()
    for split, count in counts.items():
        mine = [line for line in lines if f"data.{split}: " in line]
        assert len(mine) == 2
        assert all(f"{split}.parquet" in line for line in mine)
        assert any("feature 'user_id'" in line and f": {count} ids outside table 'user'" in line for line in mine)
        assert any("task 'click'" in line and f": {count} null labels" in line for line in mine)
    assert not (tmp_path / "run").exists()  # not one step


@pytest.mark.parametrize(("bad_ids", "done"), [("drop", "left out"), ("clamp", "put on row 0")])
def test_tolerated_values_are_counted_once_and_shown(
    tables: dict[str, pa.Table], tmp_path: Path, bad_ids: str, done: str
) -> None:
    counts = spoil(tables)
    raw = config(tables, tmp_path, data={"bad_ids": bad_ids, "null_labels": "mask"}, train={"epochs": 2})
    _, shown = run(raw)
    ids, labels = f"ids of feature 'user_id' outside its table ({done})", "null labels of task 'click' (masked)"
    saved = json.loads((tmp_path / "run" / "statistics.json").read_text())
    assert saved["tolerated"] == {ids: counts["train"], labels: counts["train"]}
    for split, count in counts.items():
        for what in (ids, labels):
            assert shown.count(f"data.{split}: {count} {what}\n") == 1
    _, again = run(raw)
    assert "outside its table" not in again


def test_statistics_of_a_run_before_tolerated_was_counted_can_be_read(
    tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    run(config(tables, tmp_path))
    path = tmp_path / "run" / "statistics.json"
    old = json.loads(path.read_text())
    assert old.pop("tolerated") == {}
    path.write_text(json.dumps(old))
    assert Statistics.load(path).tolerated == {}


def test_a_task_without_a_row_in_its_space_is_refused(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    raw = config(tables, tmp_path)
    task = raw["tasks"][2]
    at = tables["train"].column_names.index(task["space"])
    tables["train"] = tables["train"].set_column(at, task["space"], pa.array([0] * len(tables["train"])))
    write(tmp_path / "train.parquet", tables["train"])
    with pytest.raises(ConfigError, match=rf"task 'watch_time' has no row where its space '{task['space']}' is 1"):
        run(raw)
    assert not (tmp_path / "run" / "statistics.json").exists()


def test_a_typo_in_the_keys_is_told_from_the_footers(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    raw = config(tables, tmp_path, data={"keys": ["user_id", "itme_id"]})
    with pytest.raises(ConfigError) as refused:
        open_data(parse(raw))
    for split in ("train", "eval", "test"):
        assert f"data.{split}: " in str(refused.value)
    assert str(refused.value).count("no column 'itme_id' of data.keys. Did you mean 'item_id'?") == 3


# After the last


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


def test_metrics_json_is_json_where_a_metric_is_undefined(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    for label in ("click", "long_view"):  # so that no row is in the space of the others
        tables["test"] = with_values(tables["test"], label, np.arange(len(tables["test"])), 0)
    result, _ = run(config(tables, tmp_path))
    assert result.evaluation is not None
    assert math.isnan(result.evaluation.tasks["click"]["auc"])
    found = json.loads((tmp_path / "run" / "metrics.json").read_text(), parse_constant=refuse)
    assert found["tasks"]["click"]["auc"] is None
    assert found["tasks"]["click"]["logloss"] == result.evaluation.tasks["click"]["logloss"]
    assert set(found["tasks"]["watch_time"]) == set(result.evaluation.tasks["watch_time"])


# Resumed and loaded runs


def test_a_resumed_run_tells_the_fused_kernels_its_step(
    tables: dict[str, pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = config({"train": tables["train"]}, tmp_path, head={"type": "htlnet", "tower": [4]})
    told: list[int] = []
    real = Optimizers.set_step
    monkeypatch.setattr(Optimizers, "set_step", lambda self, step: (told.append(step), real(self, step))[1])
    assert train_until(raw, 3, 0) == "stopped after step 3"
    assert told == []
    result, shown = run(raw)
    assert (result.step, told) == (4, [3])
    assert "going on after step 3" in shown


@pytest.fixture
def trained(tables: dict[str, pa.Table], tmp_path: Path) -> Path:
    run(config(tables, tmp_path))
    return tmp_path / "run"


def edit(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run_dir / "config.yaml"
    raw = yaml.safe_load(path.read_text())
    change(raw)
    path.write_text(yaml.safe_dump(raw))


def test_a_run_of_another_machine_is_loaded_for_this_one(trained: Path) -> None:
    before = json.loads((trained / "metrics.json").read_text())

    def as_on_a_gpu(raw: dict[str, Any]) -> None:
        raw["train"]["device"] = "cuda"
        raw["optim"]["sparse"] = {"type": "adam", "lr": 0.1, "weight_decay": 0.01}

    edit(trained, as_on_a_gpu)
    loaded, statistics, checkpoints = load_run(trained)
    assert (loaded.train.device, loaded.optim.sparse.type, loaded.optim.sparse.weight_decay) == ("auto", "sgd", 0.0)
    assert statistics.rows == 4 * BATCH
    assert checkpoints.index()["latest"] == "step-000000004"
    step, evaluation, _ = evaluate_run(trained, [str(trained.parent / "test.parquet")])
    assert step == before["step"]
    assert evaluation.tasks == before["tasks"]


def test_evaluate_needs_no_key_columns(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    with_keys = {s: t.append_column("name", pa.array([f"row {i}" for i in range(len(t))])) for s, t in tables.items()}
    result, _ = run(config(with_keys, tmp_path, data={"keys": ["name"]}))
    bare = tmp_path / "bare.parquet"
    pq.write_table(tables["test"], bare)
    _, evaluation, _ = evaluate_run(tmp_path / "run", [str(bare)])
    assert evaluation == result.evaluation
