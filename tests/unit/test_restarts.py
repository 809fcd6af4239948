"""Ranks that torchrun started again: which of them have nothing new to say."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchrec_mtl.restarts import hopeless

ROOT = Path(__file__).parents[2]


def leave(folder: Path, attempt: int, rank: int, message: str) -> Path:
    path = folder / f"attempt_{attempt}" / str(rank) / "error.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"message": {"message": message, "errorCode": 1, "extraInfo": {}}}))
    return path


def environment(folder: Path, attempt: int) -> dict[str, str]:
    own = folder / f"attempt_{attempt}" / "0" / "error.json"
    own.parent.mkdir(parents=True, exist_ok=True)
    return {"TORCHELASTIC_ERROR_FILE": str(own), "TORCHELASTIC_RESTART_COUNT": str(attempt), "LOCAL_RANK": "0"}


@pytest.mark.parametrize("error", ["ConfigError: data: 1 problem", "NonFiniteLossError: the loss of click"])
def test_what_a_restart_does_not_mend_is_known(tmp_path, error):
    path = leave(tmp_path, 0, 1, error)
    assert hopeless(environment(tmp_path, 1)) == path
    assert hopeless(environment(tmp_path, 2)) is None


@pytest.mark.parametrize("error", ["RuntimeError: Connection reset by peer", "OSError: ConfigError: ", ""])
def test_all_else_is_tried_again(tmp_path, error):
    leave(tmp_path, 0, 0, error)
    assert hopeless(environment(tmp_path, 1)) is None


@pytest.mark.parametrize("content", ["", "[]", '{"message": "ConfigError: of another form"}'])
def test_files_of_others_are_no_reason(tmp_path, content):
    leave(tmp_path, 0, 0, "").write_text(content)
    assert hopeless(environment(tmp_path, 1)) is None


def test_without_torchrun_nothing_is_looked_for():
    assert hopeless({}) is None
    assert hopeless({"TORCHELASTIC_ERROR_FILE": "/nowhere/error.json"}) is None
    assert hopeless({"TORCHELASTIC_ERROR_FILE": "error.json", "TORCHELASTIC_RESTART_COUNT": "1"}) is None


def test_a_rank_ends_before_anything_is_imported(tmp_path):
    before = leave(tmp_path, 0, 0, "ConfigError: mine.yaml: 1 problem")
    env = environment(tmp_path, 1)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "torchrec_mtl", "train", "mine.yaml"],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(f"ended after {time.perf_counter() - start:.2f} s")
    assert done.returncode == 1
    assert done.stderr == "not tried again: a restart does not mend the error above\n"
    assert Path(env["TORCHELASTIC_ERROR_FILE"]).read_bytes() == before.read_bytes()
