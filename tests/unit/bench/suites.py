"""A tiny suite on planted data, and outcomes made up without training."""

import json
import textwrap

import yaml

from torchrec_mtl.bench.pairs import check_pairs
from torchrec_mtl.bench.rows import Row
from torchrec_mtl.bench.suite import load_suite
from torchrec_mtl.bench.tuning import Outcome

SUITE = """
name: tiny
seeds: [0, 1]
trials: 2
processes: 2
data:
  planted: {config: CONFIG, set: {train.log_every: 5}}
search:
  optim.dense.lr: {low: 0.001, high: 0.1, log: true}
models:
  single_task: {set: {head: {type: single_task, tower: [8]}}, role: baseline}
  shared_bottom: {set: {head.shared: [8]}, role: baseline}
  htlnet: {set: {head: {type: htlnet, tower: [8, 8]}}}
"""

# Heads for runs that do not go well, found by their path.
PLUGIN = """
import os, signal, time
from torchrec_mtl.heads.shared_bottom import SharedBottom

class Raises(SharedBottom):
    class Config(SharedBottom.Config): pass
    def forward(self, representation): raise RuntimeError("out of ideas")

class Dies(SharedBottom):
    class Config(SharedBottom.Config): pass
    def forward(self, representation): os.kill(os.getpid(), signal.SIGKILL)

class Waits(SharedBottom):
    class Config(SharedBottom.Config): pass
    def forward(self, representation): time.sleep(60)
"""


def write_suite(folder, text=SUITE, **replaced):
    """Write ``suite.yaml``; ``replaced`` are whole sections."""
    raw = yaml.safe_load(textwrap.dedent(text).replace("CONFIG", str(folder / "run.yaml"))) | replaced
    (folder / "suite.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder / "suite.yaml"


def open_suite(folder):
    """Return the suite and its pairs by model."""
    suite = load_suite(folder / "suite.yaml")
    checked = check_pairs(suite, None, prepare=False)
    assert not checked.problems
    return suite, {pair.model.name: pair for pair in checked.pairs}


def a_row(job=None, pair=None, *, phase="seed", seed=0, config="c", metrics=None, **values):
    """A row of a job, or of a pair."""
    pair = pair or job.pair
    if job is not None:
        phase, (config, seed, _) = job.phase, job.key
    return Row(
        data=pair.data.name,
        model=pair.model.name,
        role=pair.model.role,
        phase=phase,
        seed=seed,
        overrides=pair.words(job.words if job is not None else ()),
        config=config,
        split="validation" if phase == "trial" else "test",
        status=values.pop("status", "ok"),
        metrics=metrics or {},
        **values,
    )


def an_outcome(pair, seeds, *, score, **costs):
    """A finished outcome; ``seeds`` are the values of click/auc, or None for a failed run."""
    best = a_row(pair=pair, phase="trial", seed=1000, score=score)
    rows = [
        a_row(pair=pair, seed=i, metrics=metrics(value), **costs)
        if value is not None
        else a_row(pair=pair, seed=i, status="failed", error="RuntimeError: out of ideas")
        for i, value in enumerate(seeds)
    ]
    return Outcome(pair, trials=[best, best], seeds=rows, best=best, finished=True)


def metrics(auc):
    binary = {"auc": auc, "logloss": 1 - auc}
    return {
        "click": binary,
        "long_view": binary,
        "watch_time": {"gini": auc / 2, "nrmse": 2 - auc, "nmae": 0.5, "spearman": None},
    }


def read_rows(out):
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
