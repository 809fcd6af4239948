"""The command with real trainings in real processes."""

import fcntl
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.unit.bench.suites import read_rows, write_suite
from torchrec_mtl.bench.command import Options, bench
from torchrec_mtl.cli import app
from torchrec_mtl.config.load import ConfigError

ONE = {"seeds": [0], "search": {}}
FILES = {"runs.parquet", "table.md", "table.html", "planted-click-long_view.svg"}


def run(folder, **options):
    """Run the command; return what it printed."""
    console = Console(file=io.StringIO(), width=200)
    bench(Options(folder / "suite.yaml", folder / "out", **options), console)
    return console.file.getvalue()


def heads(**paths):
    """Models with heads of the plug-in."""
    return {name: {"set": {"head": {"type": f"bench_plugin:{path}"}}} for name, path in paths.items()}


@pytest.mark.slow
def test_a_suite_runs_to_its_tables_and_then_has_nothing_left_to_do(folder):
    printed = run(folder, models=["single_task", "shared_bottom"])
    assert "[8/8]" in printed
    assert "not finished: htlnet on planted" in printed
    out = folder / "out"
    rows = read_rows(out)
    assert [row["status"] for row in rows] == ["ok"] * 8
    assert {p.name for p in out.iterdir()} >= FILES
    assert not (out / "work").exists()
    for row in rows:
        assert row["epochs"] == 1.0
        assert row["steps"] == 10
        assert 0 < row["train_seconds"] <= row["seconds"]
        assert row["samples_per_s"] > 0
        assert row["peak_memory_mib"] > 50
        assert set(row["metrics"]) == {"click", "long_view", "watch_time"}
    parameters = {row["model"]: row["table_parameters"] for row in rows}
    assert parameters == {"shared_bottom": (100 + 60 + 64) * 8, "single_task": 3 * (100 + 60 + 64) * 8}
    assert pq.read_table(out / "runs.parquet").num_rows == 8
    texts = {name: (out / name).read_bytes() for name in ("runs.jsonl", "table.md", "table.html")}
    for again in ({"models": ["single_task", "shared_bottom"]}, {"report_only": True}):
        assert "[" not in run(folder, **again).replace("[8/8]", "[")
        assert texts == {name: (out / name).read_bytes() for name in texts}
    assert "8 in" in run(folder, dry_run=True)


@pytest.mark.slow
def test_test_rows_are_never_read_while_tuning(folder):
    table = pq.read_table(folder / "test.parquet")
    bad = pa.array([None] * table.num_rows, pa.int8())
    pq.write_table(table.set_column(table.column_names.index("click"), "click", bad), folder / "test.parquet")
    write_suite(folder, models={"shared_bottom": {}}, **ONE)
    run(folder)
    trial, seed = read_rows(folder / "out")
    assert (trial["phase"], trial["split"], trial["status"]) == ("trial", "validation", "ok")
    assert (seed["phase"], seed["split"], seed["status"]) == ("seed", "test", "failed")
    assert "data.test" in seed["error"]


@pytest.mark.slow
def test_runs_that_fail_are_rows_that_say_so_and_stop_nothing(folder):
    diverging = {"set": {"optim.dense": {"type": "sgd", "lr": 1e30}}}
    write_suite(folder, models={**heads(raises="Raises", dies="Dies"), "diverges": diverging, "good": {}}, **ONE)
    run(folder)
    out = folder / "out"
    rows = {(row["model"], row["phase"]): row for row in read_rows(out)}
    assert {key: row["status"] for key, row in rows.items()} == {
        ("raises", "trial"): "failed",
        ("dies", "trial"): "failed",
        ("diverges", "trial"): "failed",
        ("good", "trial"): "ok",
        ("good", "seed"): "ok",
    }
    assert rows["raises", "trial"]["error"] == "RuntimeError: out of ideas"
    assert rows["dies", "trial"]["error"].startswith("the process died: SIGKILL")
    assert rows["diverges", "trial"]["error"].startswith("NonFiniteLossError")
    log = out / "failed" / f"{rows['raises', 'trial']['config']}-validation-1000.txt"
    assert "bench_plugin.py" in log.read_text()
    assert "RuntimeError: out of ideas" in (out / "table.md").read_text()
    lines = len(read_rows(out))
    run(folder)
    assert len(read_rows(out)) == lines
    run(folder, retry_failed=True, models=["raises"])
    assert [row["model"] for row in read_rows(out)[lines:]] == ["raises"]


def test_a_run_that_takes_too_long_is_stopped(folder):
    write_suite(folder, models=heads(waits="Waits"), timeout_s=3, **ONE)
    run(folder)
    [row] = read_rows(folder / "out")
    assert (row["status"], row["error"]) == ("failed", "stopped after 3 s (timeout_s)")


@pytest.mark.slow
def test_stopped_and_killed_it_goes_on_where_it_was(folder):
    write_suite(folder, models={"shared_bottom": {}}, search={}, seeds=[0, 1, 2, 3], processes=1)
    log = folder / "out" / "runs.jsonl"
    stopped = _start_and_signal(folder, signal.SIGINT, rows=1)
    assert stopped.returncode == 130
    assert "the same command goes on from there" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    kept = log.read_text()
    assert kept
    assert not (folder / "out" / "work").exists()
    killed = _start_and_signal(folder, signal.SIGKILL, rows=kept.count("\n") + 1)
    assert killed.returncode == -signal.SIGKILL
    more = log.read_text()
    assert more.startswith(kept)
    printed = run(folder)
    assert "not finished" not in printed
    rows = read_rows(folder / "out")
    assert len(rows) == len({(row["config"], row["seed"], row["split"]) for row in rows}) == 5
    assert log.read_text().startswith(more[: more.rindex("\n") + 1])


def _start_and_signal(folder, number, *, rows):
    """Start the command, and signal it when the log has so many rows; workers must go too."""
    log = folder / "out" / "runs.jsonl"
    command = [sys.executable, "-m", "torchrec_mtl", "bench", folder / "suite.yaml", "--out", folder / "out"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    # A shell's background job ignores Ctrl-C, and would hand that on.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        signal.signal(signal.SIGINT, heard)
        while process.poll() is None and (not log.exists() or log.read_text().count("\n") < rows):
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, stderr=errors)


def test_a_dry_run_counts_and_writes_nothing(folder):
    printed = run(folder, dry_run=True)
    assert "configs are fine; 3 pairs of model and data set, 12 runs (2 trials, 2 seeds)" in printed
    assert "12 to do" in printed
    assert not (folder / "out").exists()


def test_a_typo_is_an_error_for_people_before_anything_runs(folder):
    write_suite(folder, models={"a": {"set": {"head.towr": [8]}}, "b": {"sett": {}}})
    done = CliRunner().invoke(app, ["bench", str(folder / "suite.yaml"), "--out", str(folder / "out")])
    assert done.exit_code == 1
    assert "models.b.sett: unknown key. Did you mean 'set'?" in done.output
    write_suite(folder, models={"a": {"set": {"head.towr": [8]}}})
    done = CliRunner().invoke(app, ["bench", str(folder / "suite.yaml"), "--out", str(folder / "out")])
    assert done.exit_code == 1
    assert "head.towr: unknown key. Did you mean 'tower'?" in done.output
    assert not (folder / "out").exists()


def test_a_report_of_nothing_is_an_error(folder):
    with pytest.raises(ConfigError, match="no finished runs there"):
        run(folder, report_only=True)


def test_two_benches_do_not_share_a_folder(folder):
    (folder / "out").mkdir()
    with (folder / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another bench is running"):
            run(folder)


def test_without_the_extra_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'optuna and matplotlib missing; run: pip install "torchrec_mtl\[bench\]"'):
        run(folder)


def test_a_metric_that_is_not_defined_is_null_in_the_log(folder):
    for name in ("validation", "test"):
        table = pq.read_table(folder / f"{name}.parquet")
        ones = pa.array(np.ones(table.num_rows, np.int8))
        table = table.set_column(table.column_names.index("click"), "click", ones)
        pq.write_table(table, folder / f"{name}.parquet")
    write_suite(folder, models={"shared_bottom": {}}, score="long_view/auc", **ONE)
    run(folder)
    rows = read_rows(folder / "out")
    assert [row["metrics"]["click"]["auc"] for row in rows] == [None, None]
    assert all(row["score"] == row["metrics"]["long_view"]["auc"] for row in rows)
