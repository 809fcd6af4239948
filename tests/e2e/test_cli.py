import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import rankdata

from tests.pages import well_formed


def test_training_ends_with_a_table_beside_two_references_and_leaves_the_documented_files(small):
    shown = (small / "train.log").read_text()
    assert "binary tasks, test data" in shown
    assert "regression tasks, test data" in shown
    for model in ("htlnet", "constant", "linear"):
        assert shown.count(f" {model} ") == 3  # one row a task
    run = small / "run"
    assert {p.name for p in run.iterdir()} == {
        ".lock",
        "calibration.json",
        "checkpoints",
        "config.yaml",
        "metrics.json",
        "metrics.jsonl",
        "ranks.json",
        "statistics.json",
        "tb",
    }
    assert list((run / "tb").iterdir())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss/click" in line and "train/gradient/weight/click" in line for line in lines)
    assert any("eval/watch_time/gini" in line for line in lines)


def test_training_learns_the_planted_structure(small):
    tasks = json.loads((small / "run" / "metrics.json").read_text())["tasks"]
    assert tasks["click"]["auc"] > 0.55
    assert tasks["watch_time"]["nrmse"] < 1


def test_a_finished_run_says_so_and_prints_its_metrics_again(small, cli):
    done = cli("train", small / "config.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert "was finished before; --fresh starts over" in done.stderr
    assert json.loads(done.stdout)["tasks"] == json.loads((small / "run" / "metrics.json").read_text())["tasks"]


def test_another_config_in_the_same_run_dir_is_refused_and_nothing_is_lost(small, cli):
    before = (small / "run" / "config.yaml").read_text()
    done = cli("train", small / "config.yaml", "optim.dense.lr=0.5")
    assert done.returncode == 1
    assert "optim.dense.lr: was 0.003, is 0.5" in done.stderr
    assert "--fresh" in done.stderr
    assert (small / "run" / "config.yaml").read_text() == before


def test_evaluate_gives_the_metrics_of_the_training_s_end(small, cli):
    done = cli("evaluate", small / "run", "--data", small / "test.parquet", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((small / "run" / "metrics.json").read_text())


def test_report_makes_a_page_of_the_run(small, cli, tmp_path):
    done = cli("report", small / "run", "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report written to {tmp_path / 'page.html'}\n"
    page = well_formed((tmp_path / "page.html").read_text())
    step = json.loads((small / "run" / "metrics.json").read_text())["step"]
    assert {"head htlnet, bottom concat, gradient htlnet", f"binary tasks, test data, step {step:,}"} <= set(page.texts)
    assert page.tags.count("svg") > 10


def test_report_refuses_a_folder_that_is_no_run(cli, tmp_path):
    done = cli("report", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path} is not a run: config.yaml is missing. Give the run_dir of a training\n"
    assert not list(tmp_path.iterdir())


def test_predict_keeps_order_and_keys_and_needs_no_labels(small, cli, tmp_path):
    test = pq.read_table(small / "test.parquet")
    bare = test.drop_columns(["click", "long_view", "watch_time"])
    pq.write_table(bare, tmp_path / "bare.parquet", row_group_size=77)
    done = cli("predict", small / "run", "--data", tmp_path / "bare.parquet", "--out", tmp_path / "scores.parquet")
    assert done.returncode == 0, done.stderr
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores.column_names == ["user_id", "item_id", "click", "long_view", "watch_time"]
    for key in ("user_id", "item_id"):
        assert scores[key].to_pylist() == test[key].to_pylist()
    ranks = rankdata(scores["click"].to_numpy())
    positive = test["click"].to_numpy() == 1
    n1, n0 = positive.sum(), (~positive).sum()
    auc = (ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)
    expected = json.loads((small / "run" / "metrics.json").read_text())["tasks"]["click"]["auc"]
    assert auc == pytest.approx(expected, abs=1e-9)
    assert np.isfinite(scores["watch_time"].to_numpy()).all()


def test_a_typo_is_answered_with_every_problem_and_no_traceback(small, cli, tmp_path):
    raw = yaml.safe_load((small / "config.yaml").read_text())
    raw["head"]["type"] = "htlnt"
    raw["train"]["epocs"] = 3
    raw["features"]["dense"].append("watch_time")
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(raw))
    done = cli("config", "check", tmp_path / "typo.yaml")
    assert done.returncode == 1
    assert "unknown head 'htlnt'. Did you mean 'htlnet'?" in done.stderr
    assert "Did you mean 'epochs'?" in done.stderr
    assert "label of task 'watch_time'" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_check_reads_the_columns_of_the_data(small, cli):
    done = cli("config", "check", small / "config.yaml", "features.dense.0=agee", "data.keys=[user_id, itme_id]")
    assert done.returncode == 1
    assert "agee" in done.stderr
    assert "Did you mean 'age'?" in done.stderr
    assert "no column 'itme_id' of data.keys. Did you mean 'item_id'?" in done.stderr
    assert all(line.startswith(("error: data: ", "  ")) for line in done.stderr.splitlines())  # no traceback


PLUG_IN = """
from torchrec_mtl.heads.shared_bottom import SharedBottom


class Mine(SharedBottom):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        raise ValueError("deep inside the plug-in")
"""


def test_an_error_in_a_plug_in_keeps_its_traceback(small, cli, tmp_path, monkeypatch):
    (tmp_path / "their_head.py").write_text(PLUG_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    raw = yaml.safe_load((small / "config.yaml").read_text())
    raw |= {"head": {"type": "their_head:Mine", "shared": [8], "tower": [4]}, "gradient": {"type": "sum"}}
    raw["run_dir"] = str(tmp_path / "run")
    (tmp_path / "plugged.yaml").write_text(yaml.safe_dump(raw))
    done = cli("train", tmp_path / "plugged.yaml")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "their_head.py" in done.stderr
    assert "deep inside the plug-in" in done.stderr.splitlines()[-1]


def test_config_show_prints_what_train_would_use(small, cli, tmp_path):
    done = cli("config", "show", small / "config.yaml", "train.epochs=7")
    shown = yaml.safe_load(done.stdout)
    assert shown["train"]["epochs"] == 7
    assert shown["optim"]["sparse"]["type"] == "rowwise_adagrad"
    (tmp_path / "shown.yaml").write_text(done.stdout)
    again = cli("config", "show", tmp_path / "shown.yaml")
    assert again.stdout == done.stdout


def test_config_schema_is_json(cli):
    assert json.loads(cli("config", "schema").stdout)["properties"]["head"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("heads", {"single_task", "shared_bottom", "htlnet"}),
        ("bottoms", {"concat"}),
        ("losses", {"bce", "focal", "mse", "huber"}),
        ("rules", {"sum", "htlnet"}),
    ],
)
def test_list_names_the_built_ins(cli, kind, names):
    done = cli("list", kind)
    assert names <= {line.split()[0] for line in done.stdout.splitlines()}


def test_sinks_are_all_of_others(cli, tmp_path, monkeypatch):
    done = cli("list", "sinks")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no sinks are installed; a class of yours is named by its path" in done.stderr
    point = tmp_path / "mine-1.dist-info" / "entry_points.txt"
    point.parent.mkdir()
    point.write_text("[torchrec_mtl.sinks]\nmlflow = mine.sinks:MLflowSink\n")
    (point.parent / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = cli("list", "sinks")
    assert done.stdout == "mlflow  mine.sinks:MLflowSink\n"


def test_a_bad_id_is_reported_before_training_with_file_column_and_count(small, cli, tmp_path):
    table = pq.read_table(small / "train.parquet")
    ids = table["user_id"].to_numpy().copy()
    ids[:5] = 10_000
    at = table.column_names.index("user_id")
    pq.write_table(table.set_column(at, "user_id", [ids]), tmp_path / "bad.parquet")
    done = cli("train", small / "config.yaml", f"data.train={tmp_path / 'bad.parquet'}", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert all(word in done.stderr for word in ("user_id", "bad.parquet", "5", "10000"))
    assert "Traceback" not in done.stderr


def test_a_run_that_lost_its_checkpoint_is_named(small, cli, tmp_path):
    shutil.copytree(small / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    done = cli("evaluate", tmp_path / "run", "--data", small / "test.parquet")
    assert done.returncode == 1
    assert "checkpoints is missing" in done.stderr


def test_doctor_finds_this_environment_healthy(cli):
    done = cli("doctor")
    assert done.returncode == 0, done.stdout
    assert "torchrec" in done.stdout


def test_dense_gradients_are_refused_before_any_data_is_read(small, cli):
    for command in (["config", "check"], ["train"]):
        done = cli(*command, small / "config.yaml", "gradient={type: pcgrad, exact: dense}", "run_dir=elsewhere")
        assert done.returncode == 1
        assert "gradient.exact: dense is for tables that are ordinary parameters" in done.stderr
        assert "use exact: rows" in done.stderr
