"""Folders of runs as a training leaves them, for tests of the page; without a training."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from torchrec_mtl.findings import MatrixFinding, TableFinding
from torchrec_mtl.training.calibration import Calibration, group_rows, save_calibration
from torchrec_mtl.training.findings import save_findings
from torchrec_mtl.training.ranks_file import RankMemory, TablePart, save_ranks

CONFIG: dict[str, Any] = {
    "data": {"train": ["a.parquet"], "eval": ["b.parquet"], "test": None},
    "tasks": [
        {"name": "<b>", "kind": "binary", "label": "is_<click>", "space": None},
        {"name": "watch", "kind": "regression", "label": "play & time", "space": "is_click"},
    ],
    "bottom": {"type": "concat"},
    "head": {"type": "theirs:<Head>"},
    "gradient": {"type": "sum"},
    "train": {"epochs": 2, "seed": 3},
    "run_dir": "runs/<i>",
}
METRICS: dict[str, Any] = {
    "step": 1200,
    "tasks": {
        "<b>": {"count": 6653.0, "auc": 0.76936, "gauc": None, "loss": 0.5},
        "watch": {"count": 12.0, "rmse": 118.25, "loss": math.nan},
    },
}
FINDINGS = (
    TableFinding("kept <t>", ("layer", "<b>"), (("1 & 2", 106496), ("all", math.nan)), "how to <read>"),
    MatrixFinding("Jaccard", ("<b>", "watch"), ("<b>", "watch"), ((1.0, 0.25), (math.nan, 1.0))),
    MatrixFinding("other", ("<b>",), ("watch",), ((0.5,),)),
)
LABELS, PREDICTIONS = [0, 0, 1, 0, 1, 1] * 10, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] * 10
RANKS = tuple(
    RankMemory(
        rank,
        "cpu",
        (TablePart("<video>", "column_wise", "fused", 1000, 8, 32_000),),
        4_000,
        2048,
        4096,
        5 * 1024**3,
        None,
    )
    for rank in (0, 1)
)


def line(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "time": 1.0, **values}


def lines() -> Iterator[dict[str, float]]:
    for step in range(10, 110, 10):
        yield line(
            step,
            **{
                "train/loss/<b>": 1 / step,
                "train/loss/watch": 0.5,
                "train/window/<b>/ne": 1.0 + 1 / step,
                "train/samples_per_s": 1e4,
                "train/gradient/cosine/<b>": -0.25,
                "train/gradient/norm/<b>": 0.5,
            },
        )
        if step % 50 == 0:
            yield line(step, **{"eval/<b>/loss": 0.7, "eval/<b>/ne": 0.9, "eval/watch/rmse": 2.0, "eval/loss": 1.0})


def write_lines(path: Path, written: Sequence[Mapping[str, float]] | Iterator[Mapping[str, float]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in written))


def make_run(
    folder: Path,
    *,
    seed: int = 3,
    head: str | Mapping[str, Any] = "theirs:<Head>",
    metrics: Mapping[str, Mapping[str, float | None]] | None = None,
) -> Path:
    """A finished run with every file that the page reads."""
    folder.mkdir(parents=True)
    config = copy.deepcopy(CONFIG)
    config["train"]["seed"], config["run_dir"] = seed, str(folder)
    config["head"] = {"type": head} if isinstance(head, str) else dict(head)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    found = METRICS if metrics is None else {"step": 1200, "tasks": metrics}
    (folder / "metrics.json").write_text(json.dumps(found))
    write_lines(folder / "metrics.jsonl", lines())
    save_findings(folder / "findings.json", FINDINGS)
    groups = group_rows(LABELS, PREDICTIONS, [1] * len(LABELS))
    save_calibration(folder / "calibration.json", Calibration(1200, "eval", {"<b>": groups, "watch": ()}))
    save_ranks(folder / "ranks.json", RANKS)
    return folder
