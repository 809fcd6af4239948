"""A run takes only a folder that is its own or nobody's, and deletes only what a run wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.runs import raw_config
from torchrec_mtl.config.load import ConfigError, parse
from torchrec_mtl.training.checkpoint import CheckpointError, Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run_dir import enter, leave_nothing, lock, locked

FOREIGN_CONFIGS = {
    "another program's": "name: llama\nhead: 3\n",
    "a list": "- data\n- head\n- run_dir\n",
    "a template": "{{ replicas }}: {% if x %}\n",
    "empty": "",
    "no text": b"\xff\xfe\x00config",
}


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with process_group("cpu"):
        yield


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def go_in(run_dir: Path, *, fresh: bool = False, **sections: Any) -> None:
    enter(run_dir, parse(raw_config("train.parquet", run_dir, **sections)), fresh=fresh)


def put(path: Path, content: str | bytes = "precious") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def save(run_dir: Path, step: int = 5) -> None:
    Checkpoints(run_dir).save({"model": {"w": torch.ones(2)}}, {"step": step}, step=step, best=False)


def fill(run_dir: Path) -> set[str]:
    """Leave what a run leaves, and what a user might lay beside it; return the user's."""
    go_in(run_dir)
    save(run_dir)
    for name in ("statistics.json", "metrics.json", "metrics.jsonl", "tb/events", "checkpoints/.partial-step-6/x"):
        put(run_dir / name)
    mine = {"notes.md", "checkpoints/llama/w.bin", "checkpoints/README", "plots/auc.png"}
    for name in mine:
        put(run_dir / name)
    return mine


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("foreign", FOREIGN_CONFIGS.values(), ids=FOREIGN_CONFIGS)
def test_a_foreign_config_is_refused_and_nothing_deleted(run_dir: Path, foreign: str | bytes, fresh: bool) -> None:
    put(run_dir / "config.yaml", foreign)
    for name in ("metrics.json", "tb/events", "checkpoints/step-000000001/w.bin"):
        put(run_dir / name)
    before = contents(run_dir)
    with pytest.raises(ValueError, match=r"config\.yaml is there, but is not the config of a run"):
        go_in(run_dir, fresh=fresh)
    assert contents(run_dir) == before


@pytest.mark.parametrize("fresh", [False, True])
def test_foreign_checkpoints_without_a_config_are_kept(run_dir: Path, fresh: bool) -> None:
    weights = put(run_dir / "checkpoints" / "llama" / "w.bin")
    go_in(run_dir, fresh=fresh)
    assert weights.read_text() == "precious"
    assert set(contents(run_dir)) == {"checkpoints/llama/w.bin", "config.yaml"}


@pytest.mark.parametrize("with_config", [False, True])
def test_checkpoints_of_which_none_can_be_read_stop_the_run(run_dir: Path, with_config: bool) -> None:
    if with_config:
        go_in(run_dir)
    put(run_dir / "statistics.json")
    for step in (1, 2):
        put(run_dir / "checkpoints" / f"step-{step:09d}" / "__0_0.distcp")
    before = contents(run_dir)
    with pytest.raises(CheckpointError, match="none can be read here"):
        go_in(run_dir)
    assert contents(run_dir) == before


def test_a_run_without_a_checkpoint_may_change_its_config(run_dir: Path) -> None:
    go_in(run_dir)
    for name in ("statistics.json", "metrics.jsonl", "tb/events", "checkpoints/.partial-step-6/x", "notes.md"):
        put(run_dir / name)
    go_in(run_dir, train={"seed": 7, "epochs": 9})
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["train"]["seed"] == 7
    assert set(contents(run_dir)) == {"config.yaml", "notes.md"}  # its statistics were of other settings


def test_another_config_is_refused_where_there_is_a_checkpoint(run_dir: Path) -> None:
    fill(run_dir)
    before = contents(run_dir)
    with pytest.raises(ConfigError) as refused:
        go_in(run_dir, train={"seed": 7, "epochs": 9})
    assert "holds another run" in str(refused.value)
    assert "train.seed: was 0, is 7" in str(refused.value)
    assert "train.epochs: was 1, is 9" in str(refused.value)
    assert contents(run_dir) == before


def test_an_option_of_a_table_is_named_by_its_place(run_dir: Path) -> None:
    fill(run_dir)
    raw = raw_config("train.parquet", run_dir)
    raw["features"]["tables"][1]["dim"] = 16
    with pytest.raises(ConfigError, match=r"features\.tables\.1\.dim: was 8, is 16"):
        enter(run_dir, parse(raw), fresh=False)


def test_what_changes_no_step_may_change(run_dir: Path) -> None:
    fill(run_dir)
    raw = raw_config("moved/*.parquet", run_dir, train={"log_every": 3, "checkpoint_every": 4, "keep": 9})
    raw["data"] |= {"test": "test.parquet", "prefetch": 9}
    for table in raw["features"]["tables"]:
        table["sharding"] = ["table_wise"]
    before = contents(run_dir)
    enter(run_dir, parse(raw), fresh=False)
    after = contents(run_dir)
    assert yaml.safe_load(after.pop("config.yaml"))["train"]["log_every"] == 3  # what is saved is what holds now
    del before["config.yaml"]
    assert after == before


def test_fresh_removes_the_runs_own_files_only(run_dir: Path) -> None:
    mine = fill(run_dir)
    go_in(run_dir, fresh=True, train={"seed": 7})
    assert set(contents(run_dir)) == {"config.yaml", *mine}
    assert Checkpoints(run_dir).index() == {}


def test_no_token_is_left(run_dir: Path) -> None:
    go_in(run_dir)
    assert set(contents(run_dir)) == {"config.yaml"}


def test_two_writers_are_kept_apart(run_dir: Path) -> None:
    with locked(run_dir):
        with pytest.raises(ValueError, match=rf"is being written by process {os.getpid()} on .*; wait for it, stop it"):
            lock(run_dir)
        go_in(run_dir)
    with locked(run_dir):  # given back
        go_in(run_dir)


def test_a_killed_process_holds_no_lock(run_dir: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run_dir)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match=f"is being written by process {holder.pid} on "):
            lock(run_dir)
    finally:
        holder.kill()
        holder.communicate()
    with locked(run_dir):
        go_in(run_dir)


HOLDER = """
import sys, time
from pathlib import Path
from torchrec_mtl.training.run_dir import lock
held = lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(100)
"""


def test_a_run_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    put(tmp_path / "file")
    with pytest.raises(ValueError, match=r"run_dir .*file/run cannot be written: Not a directory"):
        lock(tmp_path / "file" / "run")


def test_bad_data_leave_no_folder_behind(run_dir: Path) -> None:
    with locked(run_dir):
        go_in(run_dir)
        leave_nothing(run_dir)
    assert not run_dir.exists()
    put(run_dir / "mine.txt")
    with locked(run_dir):
        go_in(run_dir)
        leave_nothing(run_dir)
    assert set(contents(run_dir)) == {"mine.txt"}


def test_damaged_checkpoints_are_not_forgotten_unasked(run_dir: Path) -> None:
    fill(run_dir)
    (run_dir / "checkpoints" / "step-000000005").rename(run_dir / "checkpoints" / "damaged-step-000000005")
    with pytest.raises(CheckpointError, match=r"of which none can be read here; .*--fresh"):
        go_in(run_dir)
    assert (run_dir / "checkpoints" / "damaged-step-000000005").is_dir()


def test_a_lock_is_waited_for_as_long_as_it_may_be(run_dir: Path) -> None:
    held = lock(run_dir)
    threading.Timer(0.3, held.close).start()
    lock(run_dir, wait_s=20.0).close()


def test_what_is_refused_leaves_no_folder(run_dir: Path) -> None:
    with pytest.raises(ValueError, match="bad"), locked(run_dir):
        raise ValueError("bad")
    assert not run_dir.exists()
