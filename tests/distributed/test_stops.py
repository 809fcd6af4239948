"""What ends a run early ends it on all ranks together: a loss that is not finite, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

import torchrec_mtl
from tests.runs import ADAPTIVE, BATCH, assert_equal, raw_config, rows_of, saved, train_ranks, with_values, write
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.objective import NonFiniteLossError
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.session import Session, open_session

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

MSE_OF_RAW_LABELS = {"type": "mse", "standardize": False}


def test_an_overflow_on_one_rank_stops_all_before_the_update(tmp_path: Path) -> None:
    num_rows, bad_step = 10 * BATCH, 6
    table = make_table(num_rows, seed=3)
    rows = rows_of(num_rows, bad_step, rank=1)[:1]
    table = with_values(with_values(table, "click", rows, 1), "watch_time", rows, 1e30)
    raw = raw_config(
        write(tmp_path / "train.parquet", table), tmp_path / "run", data={"shuffle": False}, optim=ADAPTIVE
    )
    raw["tasks"][2]["loss"] = MSE_OF_RAW_LABELS
    for message, trained, unchanged in run_ranks(train_to_the_overflow, 2, raw, timeout_s=60.0):
        assert message.startswith(f"the loss of watch_time is not finite at step {bad_step};")
        assert trained == bad_step
        assert unchanged


def train_to_the_overflow(raw: dict[str, Any]) -> tuple[str, int, bool]:
    """Runs in a rank."""
    config = parse(raw)
    files = open_data(config).train
    statistics = collect(files, config.data, config.features, config.tasks)
    session = open_session(config, statistics, torch.device("cpu"))
    trained, before = 0, dict[str, list[Tensor]]()
    try:
        for _ in session.run(session.reader(files, train=True).epoch(0)):
            trained += 1
            before = dict(local_copies(session))
    except NonFiniteLossError as error:
        after = dict(local_copies(session))
        assert before.keys() == after.keys()
        same = all(torch.equal(a, b) for key in after for a, b in zip(before[key], after[key], strict=True))
        return str(error), trained, same
    return "", trained, False


def local_copies(session: Session) -> Iterator[tuple[str, list[Tensor]]]:
    """This rank's parts of all weights and optimizer states; running norms see every forward."""
    for key, value in flatten_state_dict(session.tensors())[0].items():
        if "running_" not in key and not isinstance(value, dict):
            shards = [s.tensor for s in value.local_shards()] if hasattr(value, "local_shards") else [value]
            yield key, [shard.detach().clone() for shard in shards]


@pytest.mark.parametrize("world_size", [1, 2])
def test_ctrl_c_saves_and_the_next_run_goes_on(tmp_path: Path, world_size: int) -> None:
    file = write(tmp_path / "train.parquet", make_table(25 * BATCH, seed=4))
    whole, parts = (
        raw_config(file, tmp_path / name, optim=ADAPTIVE, train={"epochs": 2, "log_every": 1})
        for name in ("whole", "parts")
    )
    process = start(parts, tmp_path, world_size)
    try:
        wait_for_line(tmp_path / "parts" / "metrics.jsonl", process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    step = Checkpoints(tmp_path / "parts").notes("latest")["step"]
    assert 0 < step < 50
    assert output.count(f"stopped after step {step}; the same command goes on from there\n") == 1, output
    # No success: a scheduler that restarts jobs must see that. torchrun has an exit status of its own.
    assert process.returncode == 130 if world_size == 1 else process.returncode != 0
    for raw in (parts, whole):
        assert train_ranks(raw, world_size).step == 50
    assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    print(f"{world_size} ranks: stopped by SIGINT after step {step} of 50, then equal bit for bit")


def start(raw: dict[str, Any], folder: Path, world_size: int) -> subprocess.Popen[str]:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    command = [sys.executable, *(torchrun if world_size > 1 else []), "-m", "torchrec_mtl", "train", str(config)]
    root = str(Path(torchrec_mtl.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_line(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not (path.is_file() and path.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
