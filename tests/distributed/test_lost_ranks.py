"""A rank that fails, stalls, or is killed ends the job soon, with the first error shown; torchrun restarts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import torchrec_mtl
from tests.runs import ADAPTIVE, BATCH, assert_equal, raw_config, saved, train_ranks, write
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.training.distributed import NEW_STORE

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BAD_STEP = 3

PLUG_IN = f"""
import os, signal, time
from torchrec_mtl.heads.shared_bottom import SharedBottom

class Fails(SharedBottom):
    def set_progress(self, fraction, step):
        super().set_progress(fraction, step)
        if step == {BAD_STEP} and os.environ["RANK"] == "1":
            self.fail()

    def fail(self):
        raise KeyError("the cause of it all")

class Stalls(Fails):
    def fail(self):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun would wait half a minute before it kills
        time.sleep(100)
"""


def torchrun(raw: dict[str, Any], folder: Path, *more: str, restarts: int = 0) -> subprocess.Popen[str]:
    """Start two ranks as a user would, in a process group of their own."""
    (folder / "plug_in.py").write_text(PLUG_IN)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    options = ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *options,
        "-m",
        "torchrec_mtl",
        "train",
        str(config),
        *more,
    ]
    path = os.pathsep.join([str(folder), str(Path(torchrec_mtl.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", NEW_STORE: "1"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str], timeout_s: float = 90.0) -> str:
    """Return the output of a job that ends by itself."""
    try:
        return process.communicate(timeout=timeout_s)[0]
    finally:
        if process.poll() is None:
            for pid in (*ranks_of(process), process.pid):  # ranks are in sessions of their own
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "train.parquet", make_table(20 * BATCH, seed=4))


def test_the_first_error_is_shown_and_named_the_cause(tmp_path: Path, data: str) -> None:
    process = torchrun(raw_config(data, tmp_path / "run", head={"type": "plug_in:Fails"}), tmp_path)
    output = ended(process)
    assert process.returncode == 1
    here = (
        rf"another rank ended; what it says is the cause. Here: rank 0, training, after step {BAD_STEP}, phase 'train'"
    )
    assert output.index("KeyError: 'the cause of it all'") < output.index("another rank ended")
    assert re.search(here + r", last read .*train\.parquet, row group \d+\.", output), output
    assert "Traceback" not in output[output.index("another rank ended") : output.index("Sending process")]
    summary = output[output.index("Root Cause") :]
    assert re.search(r"rank +: 1 ", summary), summary


def test_a_rank_that_does_not_come_is_waited_for_so_long_and_no_longer(tmp_path: Path, data: str) -> None:
    raw = raw_config(data, tmp_path / "run", head={"type": "plug_in:Stalls"}, train={"timeout_s": 16})
    output = ended(torchrun(raw, tmp_path))
    assert "another rank did not come in time (train.timeout_s)" in output, output
    assert f"Here: rank 0, training, after step {BAD_STEP}, phase 'train'" in output
    # The one that stalls says where, too.
    assert re.search(rf"no progress for \d+ s: rank 1, training, after step {BAD_STEP}", output)
    assert "Traceback" not in output[: output.index("Sending process")]


def test_a_killed_rank_is_restarted_and_nothing_is_lost(tmp_path: Path, data: str) -> None:
    whole, parts = (
        raw_config(data, tmp_path / name, optim=ADAPTIVE, train={"epochs": 3, "log_every": 1, "checkpoint_every": 4})
        for name in ("whole", "parts")
    )
    train_ranks({**parts, "train": {**parts["train"], "seed": 7}}, 2)  # which --fresh forgets, once
    process = torchrun(parts, tmp_path, "--fresh", restarts=1)
    kill_a_rank(process, tmp_path / "parts" / "metrics.jsonl", after_lines=9)
    output = ended(process)
    assert process.returncode == 0, output
    assert re.search(r"going on after step (4|8|12|16|20)\n", output), output
    train_ranks(whole, 2)
    assert_equal(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 61))


def kill_a_rank(torchrun: subprocess.Popen[str], log: Path, after_lines: int) -> None:
    deadline = time.monotonic() + 90
    while not (log.is_file() and after_lines <= len(log.read_text().splitlines()) < 60):
        assert torchrun.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(ranks_of(torchrun)[-1], signal.SIGKILL)


def ranks_of(torchrun: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    return [int(pid) for pid in children]
