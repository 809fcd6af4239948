"""A tiny study on planted data, and results made up without training."""

import textwrap

import yaml

from torchrec_mtl.tuning.course import Course, trials_plan
from torchrec_mtl.tuning.results import Point
from torchrec_mtl.tuning.rows import TuneRow
from torchrec_mtl.tuning.study import open_study

SPACE = """
search:
  optim.dense.lr: {low: 0.001, high: 0.1, log: true}
  optim.sparse.lr: {low: 0.001, high: 0.1, log: true}
objectives: {click: auc, watch_time: nrmse}
seeds: [0, 1]
startup: 3
round: 2
"""


def write_space(folder, text=SPACE, **replaced):
    """Write ``space.yaml``; ``replaced`` are whole sections, None takes one away."""
    raw = yaml.safe_load(textwrap.dedent(text)) | replaced
    raw = {key: value for key, value in raw.items() if value is not None}
    (folder / "space.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder / "space.yaml"


def study_in(folder, *words):
    return open_study(folder / "run.yaml", words, folder / "space.yaml", None, prepare=False)


def metrics(click, watch_time):
    binary = {"auc": click, "logloss": 1.0, "loss": 1.0}
    return {
        "click": binary,
        "long_view": binary,
        "watch_time": {"nrmse": watch_time, "gini": 0.5, "nmae": 0.5, "spearman": None},
    }


def trade_off(job):
    """Made-up metrics: a high rate of the dense part is good for one task and bad for the other."""
    dense, sparse = job.run.optim.dense.lr, job.run.optim.sparse.lr
    return metrics(0.5 + dense, 1.0 + dense + sparse)


def answer(job, measure=trade_off):
    """The row of a job; ``measure`` gives metrics, or the text of an error."""
    found = measure(job)
    if isinstance(found, str):
        return job.row({"error": found, "seconds": 1.0})
    return job.row({"metrics": found, "validation": found, "seconds": 1.0})


def drive(study, count, measure=trade_off, log=None):
    """Answer a plan with made-up rows; return its course and jobs."""
    course, asked = Course(), []
    plan = trials_plan(study, count, course)
    jobs = next(plan, None)
    while jobs is not None:
        asked += jobs
        rows = []
        for job in jobs:
            row = None if log is None else log.find(job.key)
            if row is None:
                row = answer(job, measure)
                if log is not None:
                    log.append(row)
            rows.append(row)
        try:
            jobs = plan.send(rows)
        except StopIteration:
            break
    return course, asked


def a_point(trial, *pairs, test=None):
    """A point whose seeds came to (click, watch_time) on the validation rows; None: the seed failed."""
    rows = []
    for seed, pair in enumerate(pairs):
        values = {} if pair is None else metrics(*pair)
        tested = values if test is None or pair is None else metrics(*test[seed])
        status = "failed" if pair is None else "ok"
        rows.append(
            TuneRow(
                data="run.yaml",
                model="shared_bottom",
                role="",
                phase="seed",
                seed=seed,
                overrides=(),
                config=trial.row.config,
                split="test",
                status=status,
                error="RuntimeError: <b>out of ideas</b> | x" if pair is None else None,
                metrics=tested,
                validation=values,
            )
        )
    return Point(trial, tuple(rows))
