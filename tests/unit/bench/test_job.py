import multiprocessing

import pytest

from tests.unit.bench.suites import open_suite, write_suite
from torchrec_mtl.bench.job import speed, work
from torchrec_mtl.bench.tuning import Outcome, plan
from torchrec_mtl.bench.workers import as_run


def test_a_run_of_a_bench_tells_no_tracker(folder, tmp_path):
    own = {"train.sinks": ["tests.sinks:Keeping"]}
    write_suite(folder, data={"planted": {"config": str(folder / "run.yaml"), "set": own}})
    suite, pairs = open_suite(folder)
    (job,) = next(plan(suite, Outcome(pairs["htlnet"])))
    assert job.run.train.sinks == ("tests.sinks:Keeping",)
    assert as_run(job, tmp_path).train.sinks == ()


def test_speed_weighs_the_windows_by_their_time():
    lines = [
        {"step": 10, "train/samples_per_s": 100.0},
        {"step": 10, "eval/click/auc": 0.5},
        {"step": 30, "train/samples_per_s": 50.0},
    ]
    steps, seconds = speed(lines, batch_size=5)
    assert steps == 30
    assert seconds == pytest.approx(10 * 5 / 100 + 20 * 5 / 50)


def test_a_worker_whose_folder_has_gone_says_nothing(tmp_path, capfd):
    process = multiprocessing.get_context("fork").Process(target=work, args=(str(tmp_path / "gone"),))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    assert capfd.readouterr().err == ""
