"""The order of runs, with workers that end at once with made-up results."""

import pytest

from tests.unit.bench.suites import metrics, open_suite, write_suite
from torchrec_mtl.bench.rows import Log
from torchrec_mtl.bench.schedule import run_missing


class Instant:
    """Workers that need no processes; the last started ends first."""

    def __init__(self, count, stop_after=None):
        self.count, self.running, self.started, self.stop_after = count, [], [], stop_after
        self.closed = False

    @property
    def num_free(self):
        return self.count - len(self.running)

    @property
    def is_idle(self):
        return not self.running

    def start(self, job):
        assert self.num_free > 0
        self.running.append(job)
        self.started.append(job)

    def wait(self):
        if self.stop_after is not None and len(self.started) > self.stop_after:
            raise KeyboardInterrupt
        job = self.running.pop()
        return [(job, {"metrics": metrics(job.run.optim.dense.lr), "seconds": 2.0})]

    def close(self):
        self.closed = True


def run(folder, out, count=2, **options):
    suite, pairs = open_suite(folder)
    workers, lines = Instant(count, **options), []
    log = Log(out / "runs.jsonl")
    try:
        run_missing(suite, list(pairs.values()), log, workers, lines.append)
    finally:
        assert workers.closed
    return workers, lines, log


def test_everything_is_run_once_and_the_last_line_says_so(folder, tmp_path):
    workers, lines, log = run(folder, tmp_path)
    assert len(workers.started) == len(log.rows) == 3 * (2 + 2)
    assert len({job.key for job in workers.started}) == 12
    assert lines[-1].startswith("[12/12] ")
    assert lines[-1].endswith("ETA 0:00:00")
    assert "ETA 0:00:11" in lines[0]  # eleven runs of two seconds on two processes


def test_trials_of_a_pair_come_one_after_the_other_and_before_its_seeds(folder, tmp_path):
    workers, _, _ = run(folder, tmp_path, count=8)
    for name in ("single_task", "shared_bottom", "htlnet"):
        course = [(job.phase, job.number) for job in workers.started if job.pair.model.name == name]
        assert course == [("trial", 1), ("trial", 2), ("seed", 1), ("seed", 2)]


def test_models_that_are_one_config_are_trained_once(folder, tmp_path):
    models = {"one": {}, "other": {"set": {"head.tower": [8]}}}  # as the file has it
    write_suite(folder, models=models, search={})
    workers, lines, _ = run(folder, tmp_path)
    assert len(workers.started) == 1 + 2
    assert lines[-1].startswith("[6/6] ")


def test_a_stop_leaves_what_is_finished_and_the_next_start_makes_the_rest(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path, stop_after=4)
    before = (tmp_path / "runs.jsonl").read_text()
    workers, _, _ = run(folder, tmp_path)
    after = (tmp_path / "runs.jsonl").read_text()
    assert after.startswith(before)
    assert len(workers.started) == 12 - before.count("\n")
    whole = run(folder, tmp_path / "whole", count=1)[2]
    rows = {row.key: row for row in Log(tmp_path / "runs.jsonl").rows}
    assert rows == {row.key: row for row in whole.rows}
