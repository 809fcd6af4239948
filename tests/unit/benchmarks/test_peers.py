"""The comparison's pure parts: order and identity of runs, what runners print, ratios, aims, tables."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.peer_runners import environments, figures, plan, processes, tables
from benchmarks.peer_runners.figures import Aim, compare, fastest_peer, job_rate, mean_auc, memory
from benchmarks.peer_runners.measure import Clock, auc, num_rows, peak_mib, read_columns
from benchmarks.peer_runners.run_ours import config
from benchmarks.peer_runners.spec import MARK, MODELS, Spec
from benchmarks.peer_runners.write_data import write_generated
from torchrec_mtl.config.load import parse
from torchrec_mtl.training import metrics

CONTENDERS = ["ours", "rechub", "deepctr"]
COLUMNS = {"sparse": {"f0": 10, "f1": 20}, "dense": ["d0"], "tasks": ["click", "buy"]}


def make_spec(tmp_path, model="mmoe", **changes):
    run = plan.Run("small", model, repeat=3, contender="ours")
    return plan.make_spec(run, tmp_path, COLUMNS, changes, str(tmp_path))


def record(contender, repeat, *, seconds=1.0, peak=100.0, score=0.7, **changes):
    found = {
        "contender": contender,
        "model": "mmoe",
        "data": "large",
        "repeat": repeat,
        "versions": {"torch": "2"},
        "spec": "x",
        "cores": 1,
        "machine": "a machine",
        "settings": {
            "train_rows": 1000,
            "test_rows": 10,
            "columns": 2,
            "table_rows": 30,
            "dense": 1,
            "dim": 16,
            "epochs": 1,
            "batch_size": 8,
            "table_lr": 0.1,
        },
    }
    if "error" not in changes:
        found |= {
            "train_rows": 1000,
            "read_seconds": 0.25 * seconds,
            "train_seconds": 0.5 * seconds,
            "evaluate_seconds": 0.25 * seconds,
            "import_seconds": 2.0,
            "first_step_seconds": 3.0,
            "process_seconds": 4.0 + seconds,
            "peak_mib": peak,
            "auc": {"click": score, "buy": score},
            "notes": [f"{contender} is {contender}"],
        }
    return found | changes


def test_contenders_take_turns_within_a_repeat_and_each_starts_once():
    runs = list(plan.plan(CONTENDERS, ["small", "large"], ["mmoe", "ple"], repeats=3))
    jobs = [runs[i : i + 3] for i in range(0, len(runs), 3)]
    assert all(len({(r.data, r.model, r.repeat) for r in job}) == 1 for job in jobs)
    assert all({r.contender for r in job} == set(CONTENDERS) for job in jobs)
    first = [job[0].contender for job in jobs if (job[0].data, job[0].model) == ("small", "mmoe")]
    assert sorted(first) == sorted(CONTENDERS)


def test_a_slow_peer_may_run_less_often():
    runs = list(plan.plan(CONTENDERS, ["small"], ["mmoe"], repeats=4, fewer={"rechub": 2}))
    assert [r.repeat for r in runs if r.contender == "rechub"] == [0, 1]
    assert [r.repeat for r in runs if r.contender == "ours"] == [0, 1, 2, 3]


def test_a_spec_survives_json_and_its_digest_changes_with_all_but_the_folder(tmp_path):
    spec = make_spec(tmp_path)
    assert Spec.from_json(spec.to_json()) == spec
    assert spec.seed == 3
    other = plan.make_spec(plan.Run("small", "mmoe", 3, "rechub"), tmp_path, COLUMNS, {}, "elsewhere")
    assert other.digest() == spec.digest()
    changed = [make_spec(tmp_path, epochs=2), make_spec(tmp_path, table_lr=0.02), make_spec(tmp_path, model="ple")]
    assert len({s.digest() for s in [spec, *changed]}) == 4


@pytest.mark.parametrize("model", MODELS)
def test_our_side_of_the_job_is_a_config_that_loads(tmp_path, model):
    run = parse(config(make_spec(tmp_path, model), str(tmp_path / "run")))
    assert run.head.type == model
    assert run.head.norm == "batch"
    assert {t.name: t.rows for t in run.features.tables} == COLUMNS["sparse"]
    # Uniform in +-a has the standard deviation a / sqrt(3).
    assert run.features.tables[0].init / 3**0.5 == pytest.approx(1e-4)
    assert (run.optim.sparse.type, run.optim.dense.type) == ("rowwise_adagrad", "adam")


def test_a_result_is_found_among_what_a_library_prints():
    line = MARK + json.dumps({"peak_mib": 5})
    assert processes.parse(f"epoch 1\n{line}\nbye\n", "", 0) == {"peak_mib": 5}


@pytest.mark.parametrize(
    ("stdout", "status", "said"),
    [(MARK + "{}", 1, "exit status 1: OutOfIdeas"), ("epoch 1", 0, "no result printed: OutOfIdeas")],
)
def test_a_failed_process_is_an_error_with_its_last_words(stdout, status, said):
    assert processes.parse(stdout, "Traceback\n  OutOfIdeas\n\n", status) == {"error": said}


def test_results_are_read_once_and_the_last_of_a_measurement_counts(tmp_path):
    path = tmp_path / "peers.jsonl"
    lines = [record("ours", 0, error="broke"), record("ours", 1), record("ours", 0, seconds=2.0)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = plan.load(path)
    assert [(r["repeat"], "error" in r) for r in found] == [(1, False), (0, False)]
    assert plan.load(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("name", ["contender", "model", "data", "repeat", "versions", "spec", "cores"])
def test_a_measurement_is_repeated_where_anything_asked_for_changed(name):
    one = record("ours", 0)
    assert plan.key(one) == plan.key(record("ours", 0, seconds=9.0))
    assert plan.key(one) != plan.key(one | {name: "other"})


def test_ratios_are_taken_within_a_repeat():
    # A machine that becomes slower: the ratio of medians would say 2, each repeat says 4 or 1.
    records = [record("ours", r, seconds=s) for r, s in enumerate([1.0, 2.0, 8.0])]
    records += [record("rechub", r, seconds=s) for r, s in enumerate([4.0, 8.0, 8.0])]
    found = compare(records, "rechub", job_rate)
    assert (found.median, found.low, found.high) == (4.0, 1.0, 4.0)


def test_only_repeats_that_both_finished_are_compared():
    records = [record("ours", 0), record("ours", 1), record("rechub", 1, seconds=3.0)]
    assert compare(records, "rechub", job_rate).median == pytest.approx(3.0)
    assert compare(records, "deepctr", job_rate) is None
    assert compare([record("ours", 0), record("rechub", 0, error="broke")], "rechub", job_rate) is None


def test_the_fastest_peer_is_neither_ours_nor_one_that_failed():
    records = [record("ours", 0, seconds=0.1), record("rechub", 0, seconds=3.0), record("deepctr", 0, seconds=2.0)]
    assert fastest_peer([*records, record("fuxictr", 0, error="broke")]) == "deepctr"
    assert fastest_peer([record("ours", 0), record("fuxictr", 0, error="broke")]) is None


@pytest.mark.parametrize(
    ("ours", "missed"),
    [
        ({"seconds": 1.0, "peak": 50.0, "score": 0.7}, []),
        ({"seconds": 1.1, "peak": 50.0, "score": 0.7}, ["speed"]),
        ({"seconds": 1.0, "peak": 51.0, "score": 0.7}, ["memory"]),
        ({"seconds": 1.0, "peak": 50.0, "score": 0.69}, ["AUC"]),
    ],
)
def test_an_aim_names_what_is_missed(ours, missed):
    records = [record("ours", 0, **ours), record("rechub", 0, seconds=10.0, peak=100.0, score=0.7)]
    assert Aim(10.0, memory=0.5, auc=True).misses(records, "rechub") == missed


def test_every_model_and_size_has_an_aim():
    assert set(figures.AIMS) == {(size, model) for size in ("small", "large") for model in MODELS}


def test_the_report_shows_failures_notes_and_whether_aims_are_met():
    records = [record("ours", 0), record("rechub", 0, seconds=20.0, peak=300.0), record("nextrec", 0, error="no | way")]
    text = tables.report(records)
    assert "| nextrec | 0 | no / way |" in text
    assert "* rechub: rechub is rechub" in text
    assert "* rechub: tables: Adam over all rows" in text
    assert "| large | mmoe | rechub | 20.00 (20.00..20.00) |" in text
    assert text.rstrip().endswith(">= 10 x, <= 0.5 x memory, AUC not lower | met |")
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| ")}
    assert widths == {len(tables._COLUMNS) + 1, len(tables._SUMMARY) + 1}


def test_the_report_says_what_the_machine_reached_meanwhile():
    limits = {"gemm_gflops": 50.0, "bandwidth_gbs": 10.0}
    ours = record("ours", 0, flops_per_row=5e6, **limits)  # 2,000 rows/s: 10 GFLOP/s
    text = tables.report([ours, record("rechub", 0, flops_per_row=None, **limits)])
    assert "matrix products 50 (50..50) GFLOP/s, bandwidth 10.0 (10.0..10.0) GB/s." in text
    assert "Ours: 5.00 MFLOP a row; training reaches 20% (20%..20%) of the matrix products' peak." in text


def test_only_runs_with_the_same_settings_are_compared():
    other = record("ours", 0)["settings"] | {"train_rows": 7}
    records = [record("ours", 0), record("rechub", 0), record("ours", 0, settings=other), record("ours", 1, cores=2)]
    assert [[r["contender"] for r in job] for job in tables.split(records)] == [["ours", "rechub"], ["ours"], ["ours"]]


def test_no_results_say_what_to_do():
    assert "peers.py run" in tables.report([])


def test_phases_exclude_each_other(monkeypatch):
    ticks = iter([(t, t / 2) for t in (0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0)])
    monkeypatch.setattr(Clock, "_now", lambda self: next(ticks))
    clock = Clock(started=0.0)
    with clock.phase("build"):  # from 1 to 63, less what is inside
        clock.timed("evaluate", lambda: None)()  # from 3 to 7
        with clock.phase("read"):  # from 15 to 31
            pass
    assert clock.seconds == {"read": 16.0, "build": 42.0, "train": 0.0, "evaluate": 4.0}
    assert clock.cpu_seconds == {name: seconds / 2 for name, seconds in clock.seconds.items()}


def test_the_auc_for_all_is_that_of_our_metrics(tmp_path):
    write_generated(tmp_path, seed=0, rows=500, test_rows=300, table_rows=20)
    assert num_rows(str(tmp_path / "train.parquet")) == 500
    columns = read_columns(str(tmp_path / "test.parquet"), ["d0", "click", "buy"])
    scores = columns["d0"].round(1)  # with ties
    for task in ("click", "buy"):
        assert auc(columns[task], scores) == pytest.approx(metrics.auc(columns[task], scores), abs=1e-12)
    assert not (columns["buy"] > columns["click"]).any()
    described = json.loads((tmp_path / "columns.json").read_text())
    assert described["tasks"] == ["click", "buy"]
    assert set(described["sparse"].values()) == {20}


def test_the_peak_of_memory_stays_after_the_memory_is_given_back():
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    block = b"x" * (256 * 2**20)
    del block
    assert peak_mib() >= resident + 250


def test_measures_of_a_result():
    found = record("ours", 0, seconds=2.0, peak=5.0, score=0.6)
    assert figures.training_rate(found) == pytest.approx(1000 / 1.0)
    assert job_rate(found) == pytest.approx(1000 / 2.0)
    assert figures.rate_after_imports(found) == pytest.approx(1000 / 4.0)
    assert figures.process_rate(found) == pytest.approx(1000 / 6.0)
    assert (memory(found), mean_auc(found)) == (5.0, pytest.approx(0.6))


def test_contenders_run_with_one_thread_and_no_network():
    env = environments.environment()
    assert (env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"], env["OMP_WAIT_POLICY"]) == ("1", "1", "PASSIVE")
    assert env["HTTPS_PROXY"].startswith("http://127.0.0.1")
    assert all("==" in r for p in environments.PEERS.values() for r in (p.distribution, *p.requirements))
