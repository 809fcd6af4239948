"""Small runs of every built-in head, with everything that has a state, for `benchmarks/faults.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from torchrec_mtl.data.synthetic import make_config, make_table

EPOCH_STEPS = 24
_BATCH = 64
_TOWER = {"tower": [16, 8], "norm": "batch"}
_RULE = {"type": "htlnet", "core": "watch_time", "gamma": 0.3}

# As in the config; "binary": the tasks of clicks alone.
RUNS: dict[str, dict[str, Any]] = {
    "htlnet": {"head": {"type": "htlnet", **_TOWER}, "gradient": {**_RULE, "ema": 0.9, "exact": "rows"}},
    "ncs4cvr": {"head": {"type": "ncs4cvr", "shared": [16, 8], "rounds": 2, "density": 0.3}, "epochs": 1},
    "dmmp": {
        "head": {"type": "dmmp", "expert": [8], "tower": [8], "student": [8], "dim": 4, "training": "two_stage"},
        "binary": True,
    },
    "shared_bottom on dtrn": {
        "head": {"type": "shared_bottom", "shared": [16], **_TOWER},
        "bottom": {"type": "dtrn", "layers": 1},
        "gradient": {"type": "gradnorm"},
    },
    "single_task": {"head": {"type": "single_task", **_TOWER}},
    "mmoe": {"head": {"type": "mmoe", "experts": 3, "expert": [16, 8], **_TOWER}, "gradient": {"type": "pcgrad"}},
    "ple": {"head": {"type": "ple", "levels": [[16], [8]], **_TOWER}, "gradient": {"type": "uncertainty"}},
    "stem": {"head": {"type": "stem", "expert": [16, 8], **_TOWER}},
    "pepnet": {"head": {"type": "pepnet", **_TOWER}, "bottom": {"type": "epnet", "domain": ["tags"]}},
    "home": {"head": {"type": "home", "meta": [16], "expert": [8], "tower": [8], "rank": 4}},
    "adatt": {"head": {"type": "adatt", "levels": [[16], [8]], **_TOWER}},
    "esmm": {"head": {"type": "esmm", **_TOWER}},
    "escm2": {"head": {"type": "escm2", "estimator": "dr", **_TOWER}},
    "aitm": {"head": {"type": "aitm", **_TOWER}},
    "dbmtl": {"head": {"type": "dbmtl", "shared": [16], "task": [8], "relation": [8], "norm": "batch"}},
}


def write_data(folder: Path) -> None:
    """Write the rows that all runs read."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"train": EPOCH_STEPS * _BATCH - 20, "eval": 600}
    for seed, (name, count) in enumerate(rows.items()):
        pq.write_table(make_table(count, seed=seed, nulls=True), folder / f"{name}.parquet", row_group_size=150)


def config(name: str, data: Path, run_dir: Path, *, save: str) -> dict[str, Any]:
    """Return the run of a head: Adam and row-wise Adagrad, evaluations and checkpoints in and between epochs.

    Args:
        name: of `RUNS`.
        data: from `write_data`.
        run_dir: where it writes.
        save: ``wait`` or ``background``.
    """
    given = RUNS[name]
    raw = make_config(str(data / "train.parquet"), run_dir=str(run_dir))
    raw["data"]["eval"] = str(data / "eval.parquet")
    raw |= {key: given[key] for key in ("head", "bottom", "gradient") if key in given}
    if given.get("binary"):
        raw["tasks"] = raw["tasks"][:2]
    raw["optim"] = {"dense": {"type": "adam", "lr": 0.01}, "schedule": {"type": "cosine", "warmup": 0.2}}
    raw["train"] = {
        "epochs": given.get("epochs", 3),
        "checkpoint_every": 5,
        "eval_every": 9,
        "log_every": 1,
        "save": save,
        "monitor": {"metric": "click/auc"},
        "timeout_s": 120,
    }
    return raw
