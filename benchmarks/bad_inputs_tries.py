"""Good data, runs, and an index to spoil, and what came of a command that was given something spoilt."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from typer.testing import CliRunner

from benchmarks.bad_inputs_tables import Bad
from torchrec_mtl.cli import app
from torchrec_mtl.data.synthetic import make_config, make_table

NUM_ITEMS = 60
FEATURES = ("user_id", "item_id", "tags", "watched", "seen_at", "shown_at", "age", "hour", "duration")
LABELS = ("click", "long_view", "watch_time", "in_sample", "importance")
VERDICTS = ("error", "accepted", "traceback", "unclear", "wrong", "left over", "hang", "crash")
"""What a try may come to: a clear error; success where that is right; a traceback; an error that names no place;
success where it should fail, or the reverse; files left half-written; no end in time; the process died."""


class HangError(BaseException):
    """A command did not end in time."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        status: exit status.
        said: standard error, and standard output below it.
        error: what it raised, where that was no exit.
    """

    status: int
    said: str
    error: BaseException | None


def call(words: Sequence[str | Path], limit_s: float = 120.0) -> Outcome:
    """Run a command in this process."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    error = done.exception if not isinstance(done.exception, SystemExit) else None
    return Outcome(done.exit_code, f"{done.stderr}\n{done.stdout}", error)


def judge(outcome: Outcome, bad: Bad, left_over: Sequence[str] = ()) -> str:
    """Return one of `VERDICTS`.

    Args:
        outcome: of the command.
        bad: what it was given.
        left_over: files that it wrote though it failed.
    """
    if isinstance(outcome.error, HangError):
        return "hang"
    if outcome.error is not None or "Traceback (most recent call last)" in outcome.said:
        return "traceback"
    if outcome.status == 0:
        return "wrong" if bad.fails is True else "accepted"
    if left_over:
        return "left over"
    if outcome.status == 2 and "Usage:" in outcome.said:
        return "error"
    if bad.fails is False:
        return "wrong"
    named = not bad.places or any(
        place in outcome.said.replace("\n", " ") or place in outcome.said for place in bad.places
    )
    # `check` tells errors in lines of its report.
    told = any(line.startswith(("error: ", "error (", "error    ")) for line in outcome.said.splitlines())
    return "error" if named and told else "unclear"


@dataclasses.dataclass(frozen=True)
class Workbench:
    """A folder with good things: tables, a run, a run that retrieves, an index, and a suite.

    Attributes:
        folder: of all.
        rows: of training.
        items: one row an item.
    """

    folder: Path
    rows: pa.Table = dataclasses.field(repr=False)
    items: pa.Table = dataclasses.field(repr=False)

    @property
    def run(self) -> Path:
        """Trained."""
        return self.folder / "run"

    @property
    def retrieval(self) -> Path:
        """Trained, of a head that retrieves."""
        return self.folder / "retrieval"

    @property
    def index(self) -> Path:
        """Of the items, by that."""
        return self.folder / "index"

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Open what `prepare` made, in this process or another."""
        return cls(folder, pq.read_table(folder / "train.parquet"), pq.read_table(folder / "items.parquet"))

    def write(self, raw: Mapping[str, Any], path: Path) -> Path:
        """Write a config."""
        path.write_text(yaml.safe_dump(dict(raw), sort_keys=False), encoding="utf-8")
        return path


def make_rows(count: int, seed: int) -> pa.Table:
    """Draw rows with every kind of column that a config can name."""
    table, rng = make_table(count, seed=seed, num_items=NUM_ITEMS), np.random.default_rng(seed)
    now = rng.integers(1_000_000, 2_000_000, count)
    lengths = [len(ids) for ids in table["watched"].to_pylist()]
    times = [sorted((n - rng.integers(1, 900_000, k)).tolist()) for n, k in zip(now.tolist(), lengths)]
    seen = [rng.integers(0, NUM_ITEMS, n).tolist() for n in rng.integers(0, 4, count)]
    columns = {"seen_at": (times, pa.list_(pa.int64())), "shown_at": (now, pa.int64())}
    columns["seen"] = (seen, pa.list_(pa.int64()))
    for name, (values, kind) in columns.items():
        table = table.append_column(name, pa.array(values, kind))
    return table


def plain_config(data: Path, run_dir: str) -> dict[str, Any]:
    """Return a config that reads every kind of column."""
    raw = make_config(str(data / "train.parquet"), run_dir=run_dir, num_items=NUM_ITEMS, space=True)
    raw["data"] |= {"eval": str(data / "eval.parquet"), "keys": ["user_id"], "group": "user_id"}
    raw["features"]["sequences"][0] |= {"times": "seen_at", "now": "shown_at", "time_unit": "s"}
    raw["tasks"][0]["sample_weight"] = "importance"
    raw["tasks"][1]["space"] = "in_sample"
    raw["head"] = {"type": "shared_bottom", "shared": [8], "tower": [4]}
    raw["train"] = {"epochs": 1, "device": "cpu", "save": "wait", "max_steps": 3}
    return raw


def retrieval_config(data: Path, run_dir: str) -> dict[str, Any]:
    """Return a config of a head that retrieves."""
    raw = plain_config(data, run_dir)
    raw["tasks"] = [{"name": name, "kind": "binary", "label": name} for name in ("click", "long_view")]
    raw["head"] = {"type": "dmmp", "shared_experts": 1, "task_experts": 1, "expert": [8], "tower": [8], "student": [8]}
    raw["head"] |= {"dim": 4, "gate_tower": [4]}
    items = str(data / "items.parquet")
    raw["retrieval"] = {"items": items, "item": "item_id", "query": "user_id", "seen": "seen", "ks": [3]}
    return raw


def suite(data: Path) -> dict[str, Any]:
    """Return a suite of two models."""
    models = {"shared": {"set": {"head": "shared_bottom"}}, "mmoe": {"set": {"head": "mmoe", "train.epochs": 1}}}
    search = {"optim.dense.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    return {
        "name": "small",
        "data": {"planted": {"config": str(data / "config.yaml")}},
        "models": models,
        "seeds": [0, 1],
        "trials": 1,
        "search": search,
        "score": "auto",
    }


def prepare(folder: Path) -> Workbench:
    """Make everything good."""
    rows, evaluated = make_rows(200, 1), make_rows(90, 2)
    order = np.random.default_rng(0).permutation(NUM_ITEMS)
    items = pa.table({"item_id": order, "tags": [[f"tag{i % 20}"] for i in order.tolist()]})
    for name, table in (("train", rows), ("eval", evaluated), ("items", items)):
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=70)
    bench = Workbench(folder, rows, items)
    plain = plain_config(folder, str(folder / "run"))
    plain["data"]["test"] = plain["data"]["eval"]
    bench.write(plain, folder / "config.yaml")
    bench.write(retrieval_config(folder, str(folder / "retrieval")), folder / "retrieval.yaml")
    bench.write(suite(folder), folder / "suite.yaml")
    index = ["index", bench.retrieval, "--items", folder / "items.parquet", "--out", bench.index]
    for words in (["train", folder / "config.yaml"], ["train", folder / "retrieval.yaml"], index):
        done = call(words)
        assert done.status == 0, (done.said, done.error)
    return bench


def seeded(seed: int, *names: object) -> Random:
    """Return a generator for one try, the same whatever else is tried."""
    return Random("/".join(map(str, (seed, *names))))
