"""Resumed equals never stopped, bit for bit; on another number of ranks or with another plan, to rounding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import (
    ADAPTIVE,
    BATCH,
    RULE,
    assert_equal,
    differences,
    raw_config,
    saved,
    train_ranks,
    train_until,
    with_plan,
    write,
)
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.run import RunResult
from torchrec_mtl.training.session import open_session

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

EPOCH_STEPS = 7


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    train, test = make_table(EPOCH_STEPS * BATCH - 20, seed=1, nulls=True), make_table(300, seed=2)
    return {"train": write(folder / "train.parquet", train), "eval": write(folder / "eval.parquet", test)}


def config(files: dict[str, str], run_dir: Path, **sections: Any) -> dict[str, Any]:
    """Two epochs, each evaluated at its end, with everything that has a state."""
    optim = {**ADAPTIVE, "schedule": {"type": "cosine", "warmup": 0.2}}
    train = {"epochs": 2, "log_every": 1, "monitor": {"metric": "watch_time/nrmse"}}
    merged = {"data": files, "optim": optim, "train": train} | sections
    return raw_config(files["train"], run_dir, **merged)


def events(run_dir: Path) -> list[dict[str, float]]:
    """What was logged, without times."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    # Times differ, and TorchRec's windows start empty in a new process.
    new = ("time", "train/samples_per_s", "train/window/")
    return [{k: v for k, v in line.items() if not k.startswith(new)} for line in lines]


@pytest.mark.parametrize("world_size", [1, 2])
def test_resume_continues_bit_identically(files: dict[str, str], tmp_path: Path, world_size: int) -> None:
    whole, parts = config(files, tmp_path / "whole"), config(files, tmp_path / "parts")
    never_stopped = train_ranks(whole, world_size)
    last = world_size - 1
    # In mid-epoch, and where an epoch ends and its evaluation has not yet been.
    for step in (3, EPOCH_STEPS):
        assert run_ranks(train_until, world_size, parts, step, last) == [f"stopped after step {step}"] * world_size
        assert Checkpoints(tmp_path / "parts").notes("latest")["step"] == step
    resumed = train_ranks(parts, world_size)

    assert resumed == never_stopped
    for which in ("latest", "best"):
        a, b = saved(tmp_path / "whole", which), saved(tmp_path / "parts", which)
        assert any(key.endswith("tau") for key in a)
        assert any("exp_avg_sq" in key for key in a)
        assert any("running_mean" in key for key in a)
        assert_equal(a, b)
        assert Checkpoints(tmp_path / "whole").notes(which) == Checkpoints(tmp_path / "parts").notes(which)
    # Learning rates, losses, and every evaluation, each once.
    assert events(tmp_path / "whole") == events(tmp_path / "parts")
    print(f"{world_size} ranks: {len(a)} tensors equal bit for bit after 3 + 4 + 7 steps, and after 14")

    again = train_ranks(parts, world_size)
    assert not again.trained
    assert again.evaluation == resumed.evaluation


# Moving averages of norms, draws and targets, a parameter trained by the dense optimizer; with the penalty of an order.
RULES: dict[str, dict[str, Any]] = {
    "rule.norms": {"gradient": {**RULE, "ema": 0.9, "exact": "rows"}},
    "rule.target": {"gradient": {"type": "gradvac"}},
    "rule.log_variance": {"gradient": {"type": "uncertainty"}},
}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("state", RULES)
def test_a_rule_resumes_with_what_it_remembers(
    files: dict[str, str], tmp_path: Path, state: str, world_size: int
) -> None:
    whole, parts = (few_steps(files, tmp_path / name, **RULES[state]) for name in ("whole", "parts"))
    train_ranks(whole, world_size)
    assert run_ranks(train_until, world_size, parts, 3, 0) == ["stopped after step 3"] * world_size
    in_middle = rule_state(tmp_path / "parts", state)
    train_ranks(parts, world_size)
    assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    lines = events(tmp_path / "whole")
    assert lines == events(tmp_path / "parts")
    assert len(lines) == EPOCH_STEPS
    assert all("train/loss/long_view<=click" in line for line in lines)
    assert not torch.equal(in_middle, rule_state(tmp_path / "parts", state))


def few_steps(files: dict[str, str], run_dir: Path, **sections: Any) -> dict[str, Any]:
    """One epoch without evaluation; long views are held below clicks."""
    raw = raw_config(files["train"], run_dir, optim=ADAPTIVE, train={"log_every": 1}, **sections)
    raw["tasks"][1]["order"] = {"below": "click"}
    return raw


def rule_state(run_dir: Path, name: str) -> torch.Tensor:
    (found,) = (value for key, value in saved(run_dir).items() if key.startswith("model.") and key.endswith(name))
    return found


def test_two_ranks_continue_on_one_and_back(files: dict[str, str], tmp_path: Path) -> None:
    optim = {"sparse": {"type": "rowwise_adagrad", "lr": 0.02}, "dense": {"type": "sgd", "lr": 0.05}}
    whole, parts = (config(files, tmp_path / name, optim=optim) for name in ("whole", "parts"))
    never_stopped = train_ranks(whole, 2)
    run_ranks(train_until, 2, parts, 3, 0)
    run_ranks(train_until, 1, parts, 9, 0)
    resumed: RunResult = train_ranks(parts, 2)
    found = differences(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    print(f"2 -> 1 -> 2 ranks: {found}")
    assert max(found.values()) < 1e-5
    assert never_stopped.evaluation is not None
    assert resumed.evaluation is not None
    assert resumed.evaluation.loss == pytest.approx(never_stopped.evaluation.loss, rel=1e-6)


def test_a_checkpoint_loads_into_another_plan(files: dict[str, str], tmp_path: Path) -> None:
    optim = {"sparse": {"type": "adagrad"}, "dense": ADAPTIVE["dense"]}
    raw = config(files, tmp_path / "run", train={"epochs": 1}, optim=optim)
    plans = {sharding: with_plan(raw, sharding) for sharding in ("table_wise", "column_wise")}
    train_ranks(plans["table_wise"], 2)
    run_ranks(load_and_save, 2, plans["column_wise"], str(tmp_path / "columns"))
    run_ranks(load_and_save, 1, plans["column_wise"], str(tmp_path / "one"))
    assert_equal(saved(tmp_path / "run"), saved(tmp_path / "one"))
    assert_equal(saved(tmp_path / "run"), saved(tmp_path / "columns"))


def load_and_save(raw: dict[str, Any], run_dir: str) -> None:
    """Runs in a rank: load the run's checkpoint into another plan, and save it from there."""
    statistics = Statistics.load(Path(raw["run_dir"]) / "statistics.json")
    session = open_session(parse(raw), statistics, torch.device("cpu"))
    session.restore(Checkpoints(raw["run_dir"]), "latest")
    Checkpoints(run_dir).save(session.tensors(), {}, step=1, best=False)
