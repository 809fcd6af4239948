"""The benchmark of kills sees a batch that is lost, repeated, or another, and a state that differs by a bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.faults import Outcome, show
from benchmarks.faults_heads import RUNS, config, write_data
from benchmarks.faults_outcome import compare, effective_batches, progress, seconds_of_attempts
from tests.runs import BATCH, open_run, raw_config, train_one, write
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.registry import BUILT_IN
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import process_group

START = ("0.0 doing importing", "1.0 doing training")


def put(traces: Path, attempt: int, steps: list[tuple[int, int]], rank: int = 0, begin: float = 2.0) -> None:
    traces.mkdir(exist_ok=True)
    lines = [*START, *(f"{begin + step} batch {step} {mark}" for step, mark in steps)]
    (traces / f"{attempt:04d}-{rank}-{attempt}").write_text("\n".join(lines) + "\n")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    for rank in (0, 1):
        put(tmp_path / "whole", 0, [(step, 10 * step + rank) for step in range(1, 7)], rank)
    return tmp_path / "whole"


def disturbed(folder: Path, second: list[tuple[int, int]]) -> Path:
    for rank in (0, 1):
        put(folder, 0, [(step, 10 * step + rank) for step in range(1, 5)], rank)
        put(folder, 1, [], rank)  # killed before it trained
        put(folder, 2, [(step, mark + rank) for step, mark in second], rank)
    return folder


def test_batches_trained_again_after_a_checkpoint_are_no_difference(whole: Path, tmp_path: Path) -> None:
    killed = disturbed(tmp_path / "killed", [(step, 10 * step) for step in range(4, 7)])  # from a checkpoint of step 3
    found = effective_batches(killed, 2)
    assert found.sequence == [(10 * step, 10 * step + 1) for step in range(1, 7)]
    assert found.again == 2
    assert effective_batches(whole, 2).differences(found) == 0


@pytest.mark.parametrize(
    ("second", "differences"),
    [
        ([(5, 60)], 2),  # batch 5 was skipped, and one is missing at the end
        ([(5, 40), (6, 50), (7, 60)], 3),  # batch 4 was trained on twice
        ([(4, 40), (5, 51), (6, 60)], 1),  # another batch
    ],
)
def test_lost_repeated_and_other_batches_are_counted(
    whole: Path, tmp_path: Path, second: list[tuple[int, int]], differences: int
) -> None:
    found = effective_batches(disturbed(tmp_path / "killed", second), 2)
    assert effective_batches(whole, 2).differences(found) == differences


def test_times_are_read_off_the_traces(whole: Path) -> None:
    assert progress(whole) == (6, 3.0)
    assert seconds_of_attempts(whole, [2.5, 4.0, 99.0]) == pytest.approx(0.75)


def test_equal_runs_are_equal_and_a_bit_shows(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", make_table(4 * BATCH, seed=1))
    raw = raw_config(file, tmp_path / "a", data={"eval": file}, train={"log_every": 1})
    with process_group("cpu"):
        train_one(raw)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert compare(tmp_path / "a", tmp_path / "b") == []
        session, _ = open_run(raw)
        checkpoints = Checkpoints(tmp_path / "b")
        session.restore(checkpoints, "latest")
        bias = next(p for name, p in session.objective.named_parameters() if name.endswith("bias"))
        with torch.no_grad():
            bias.view(torch.int32)[0] ^= 1
        notes = checkpoints.notes("latest")
        assert notes is not None
        checkpoints.save(session.tensors(), notes, step=4, best=True)
    (tmp_path / "b" / "metrics.json").write_text("{}")
    log = tmp_path / "b" / "metrics.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[:-1]) + "\n")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [line.split(":")[0] for line in found] == ["latest", "best", "metrics.jsonl", "metrics.json"]
    assert all(line.endswith(".bias") for line in found[:2])


def test_every_head_is_killed(tmp_path: Path) -> None:
    assert {run["head"]["type"] for run in RUNS.values()} == set(BUILT_IN["head"])
    write_data(tmp_path)
    for name in RUNS:
        parsed = parse(config(name, tmp_path, tmp_path / "run", save="wait"))
        assert parsed.train.checkpoint_every == 5


def test_the_table_adds_up() -> None:
    good = Outcome("htlnet", "wait", 3, {"training": 2, "importing": 1}, True, [], 72, 0, 9, 40.0, 10.0, 8.0)
    bad = Outcome("mmoe", "background", 1, {"training": 1}, True, ["best: x"], 72, 2, 1, 20.0, 10.0, 6.0)
    text = show([good, good, bad])
    assert "| htlnet | wait | 6 | yes | yes | 72 | 0 | 18 |" in text
    assert "| mmoe | background | 1 | yes | NO: best: x | 72 | 2 | 1 |" in text
    assert "7 kills in 3 runs: 3 recovered, 2 with equal states, 2 batches lost or repeated." in text
    assert "Seconds lost a kill: 10.0" in text
    assert "Killed while: training 5, importing 2." in text
