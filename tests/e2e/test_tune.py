"""``torchrec-mtl tune`` with real trainings in real processes, as a user starts it."""

import fcntl
import json
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from tests.pages import well_formed
from tests.planted_run import write_planted_run
from torchrec_mtl.cli import app

SPACE = {
    "search": {"optim.dense.lr": {"low": 0.001, "high": 0.1, "log": True}},
    "objectives": {"click": "auc", "watch_time": "nrmse"},
    "seeds": [0, 1],
    "startup": 3,
    "round": 2,
    "front": 1,
}

# A head that fails by an exception, and one that dies, chosen by an option.
PLUGIN = """
import os, signal
from torchrec_mtl.heads.shared_bottom import SharedBottom

class Moody(SharedBottom):
    class Config(SharedBottom.Config):
        mood: str = "good"
    def __init__(self, in_features, outputs, config=None):
        super().__init__(in_features, outputs, config)
        self.mood = config.mood
    def forward(self, representation):
        if self.mood == "raises":
            raise RuntimeError("out of ideas")
        if self.mood == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(representation)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``run.yaml``, its data, ``space.yaml``, and a module ``tune_plugin``."""
    write_planted_run(tmp_path)
    (tmp_path / "tune_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_space(tmp_path)
    return tmp_path


def write_space(folder, **replaced):
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE | replaced, sort_keys=False))


def arguments(folder, *more):
    words = ["tune", folder / "run.yaml", "--space", folder / "space.yaml", "--out", folder / "out", *more]
    return [str(word) for word in words]


def tune(folder, *more, trials=4):
    """Run the command in this process, whose server of workers all tests share."""
    return CliRunner().invoke(app, arguments(folder, "--trials", trials, "--processes", 2, *more))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "out" / "runs.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_from_a_space_to_a_config_that_trains(folder):
    done = tune(folder, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    out = folder / "out"
    assert json.loads((out / "front.json").read_text()) == found
    rows = rows_of(folder)
    assert [row["status"] for row in rows] == ["ok"] * len(rows)
    trials = [row for row in rows if row["phase"] == "trial"]
    assert len(trials) == 4
    for row in rows:  # what training had found at the checkpoint is what a trial's own evaluation finds
        assert row["validation"]["click"]["auc"] > 0.4
        assert (row["validation"] == row["metrics"]) == (row["phase"] == "trial")
    assert found["points"][0]["untuned"]
    assert {len(p["test"]["click/auc"]["by_seed"]) for p in found["points"]} == {2}
    assert well_formed((out / "front.html").read_text()).tags.count("svg") >= 1
    assert not (out / "work").exists()

    chosen = next(p for p in found["points"] if p["trial"] == found["chosen"])
    trained = CliRunner().invoke(app, ["train", str(out / "best.yaml"), "train.seed=1", "--json"])
    assert trained.exit_code == 0, trained.stderr
    by_seed = chosen["test"]["click/auc"]["by_seed"]
    assert json.loads(trained.stdout)["tasks"]["click"]["auc"] == pytest.approx(by_seed["1"], abs=1e-6)

    before = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in {".md", ".html", ".svg", ".jsonl"}}
    again = tune(folder)
    assert again.exit_code == 0, again.stderr
    assert "[" not in again.stdout.split("Test rows")[0]  # nothing was trained
    assert before == {name: (out / name).read_bytes() for name in before}

    more = tune(folder, "--choose", 2, trials=5)
    assert more.exit_code == 0, more.stderr
    assert len([row for row in rows_of(folder) if row["phase"] == "trial"]) == 5
    assert "with the settings of trial 2" in (out / "best.yaml").read_text()
    fewer = tune(folder, trials=2)
    assert "5 trials are there, more than --trials 2" in fewer.stdout


@pytest.mark.slow
def test_test_rows_are_never_read_by_a_trial(folder):
    table = pq.read_table(folder / "test.parquet")
    bad = pa.array([None] * table.num_rows, pa.int8())
    pq.write_table(table.set_column(table.column_names.index("click"), "click", bad), folder / "test.parquet")
    done = tune(folder, trials=1)
    assert done.exit_code == 0, done.stderr
    trial, *seeds = rows_of(folder)
    assert (trial["phase"], trial["status"]) == ("trial", "ok")
    assert [row["status"] for row in seeds] == ["failed", "failed"]
    assert "nothing to choose: no point was trained with all its seeds" in done.stdout


@pytest.mark.slow
def test_trials_that_fail_are_told_of_and_end_nothing(folder):
    moods = ["good", "raises", "dies"]
    head = {"type": "tune_plugin:Moody", "shared": [16], "tower": [8]}
    write_space(folder, search={"head.mood": {"choices": moods}}, startup=8)
    done = tune(folder, f"head={json.dumps(head)}", trials=8)
    assert done.exit_code == 0, done.stderr
    errors = {row["error"] for row in rows_of(folder) if row["status"] == "failed"}
    assert "RuntimeError: out of ideas" in errors
    assert any(error.startswith("the process died: SIGKILL") for error in errors)
    assert "runs failed, the first: trial" in done.stdout
    assert "out of ideas" in (folder / "out" / "front.html").read_text()
    assert list((folder / "out" / "failed").iterdir())


@pytest.mark.slow
def test_stopped_and_killed_studies_go_on_as_if_they_had_not_been(folder):
    stopped = start_and_signal(folder, signal.SIGINT, rows=1)
    assert stopped.returncode == 130
    assert "the same command goes on from there" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    kept = (folder / "out" / "runs.jsonl").read_text()
    killed = start_and_signal(folder, signal.SIGKILL, rows=kept.count("\n") + 1)
    assert killed.returncode == -signal.SIGKILL
    done = tune(folder, "--json", trials=5)
    assert done.exit_code == 0, done.stderr
    rows = rows_of(folder)
    assert len(rows) == len({(row["config"], row["seed"], row["split"]) for row in rows})
    assert (folder / "out" / "runs.jsonl").read_text().startswith(kept)

    (folder / "out").rename(folder / "stopped")
    whole = tune(folder, "--json", trials=5)
    assert whole.exit_code == 0, whole.stderr
    ours, theirs = json.loads(done.stdout), json.loads(whole.stdout)
    assert [t["settings"] for t in ours["trials"]] == [t["settings"] for t in theirs["trials"]]
    assert [t["validation"] for t in ours["trials"]] == [t["validation"] for t in theirs["trials"]]
    assert ours["chosen"] == theirs["chosen"]


def start_and_signal(folder, number, *, rows):
    """Start the command, and signal it when the log has so many rows."""
    log = folder / "out" / "runs.jsonl"
    # A shell's background job ignores Ctrl-C, and would hand that on.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "torchrec_mtl", *arguments(folder, "--trials", 5, "--processes", 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, heard)
        while process.poll() is None and (not log.exists() or log.read_text().count("\n") < rows):
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, stderr=errors)


def test_mistakes_are_told_before_anything_is_trained(folder):
    write_space(folder, searchh={}, search={"optim.dense.lrr": {"low": 0.1, "high": 0.2}})
    done = tune(folder)
    assert done.exit_code == 1
    assert "searchh: unknown key. Did you mean 'search'?" in done.stderr
    write_space(folder)
    done = tune(folder, "--prefer", "clck=2", "--prefer", "click", "--choose", "best", "train.epoch=3")
    assert done.exit_code == 1
    assert "train.epoch: unknown key. Did you mean 'epochs'?" in done.stderr
    done = tune(folder, "--prefer", "clck=2", "--prefer", "click", "--choose", "best")
    assert "--prefer clck: no objective is called 'clck'. Did you mean 'click'?" in done.stderr
    assert "--prefer click: expected an objective and a number above 0, such as click=2" in done.stderr
    assert "--choose best: expected ideal, rank, or the number of a trial." in done.stderr
    done = tune(folder, "--choose", 9)
    assert "--choose 9: there are trials 1 to 4" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_counts_and_writes_nothing(folder):
    done = tune(folder, "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"trials": 4, "known_trials": 0, "most_points": 2, "seeds": 2, "most_runs": 8}
    assert "config and space are fine; objectives: click/auc, watch_time/nrmse; 4 trials" in done.stderr
    assert not (folder / "out").exists()


def test_two_at_once_do_not_share_a_folder(folder):
    (folder / "out").mkdir()
    with (folder / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = tune(folder)
    assert done.exit_code == 1
    assert "another tune is running in this folder; wait for it, or take another --out" in done.stderr
