"""One training in a process of its own: a config in, ``outcome.json`` out. Imported once, before the processes fork."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from torchrec_mtl.atomic import write_text
from torchrec_mtl.config.load import load_config
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.order import Order
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.model import build_model
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.evaluation import Metrics
from torchrec_mtl.training.run import train

CONFIG, OUTCOME, LOG = "config.yaml", "outcome.json", "log.txt"


def work(folder: str) -> None:
    """Train ``folder/config.yaml``; leave what came of it, or the error, in ``folder/outcome.json``."""
    place = Path(folder)
    _detach(place)
    torch.set_num_threads(1)
    try:
        outcome = _train(load_config(place / CONFIG))
    except Exception as error:  # whatever it is, it becomes a row
        traceback.print_exc()
        outcome = {"error": f"{type(error).__name__}: {error}"}
    outcome["peak_memory_mib"] = _peak_memory_mib()
    write_text(place / OUTCOME, json.dumps(outcome))


def _detach(place: Path) -> None:
    """Leave the terminal's process group, so that Ctrl-C reaches the parent alone, and die with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
    try:
        log = os.open(place / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except FileNotFoundError:  # stopped before it began: whoever stopped it has cleared up
        os._exit(1)
    os.dup2(log, 1)
    os.dup2(log, 2)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _train(config: RunConfig) -> dict[str, Any]:
    start = time.monotonic()
    with process_group(config.train.device, config.train.timeout_s) as device:
        result = train(config, device, console=Console(file=io.StringIO()))
    seconds = time.monotonic() - start
    assert result.evaluation is not None, "a suite's configs have data.test"
    run_dir = Path(config.run_dir)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps, train_seconds = speed(lines, config.data.batch_size)
    return {
        "metrics": _finite(result.evaluation.tasks),
        "validation": validation_at(lines, result.step),
        "step": result.step,
        "steps": steps,
        "epochs": round(steps / _steps_per_epoch(config), 4),
        "seconds": round(seconds, 3),
        "train_seconds": round(train_seconds, 3),
        "samples_per_s": round(steps * config.data.batch_size / train_seconds, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **_parameters(config, Statistics.load(run_dir / "statistics.json")),
    }


def validation_at(lines: Sequence[Mapping[str, float | None]], step: int) -> dict[str, dict[str, float | None]]:
    """Return the metrics that the evaluation during training found at a step; task -> metric -> value.

    Args:
        lines: of ``metrics.jsonl``; of several at the step the last counts.
        step: of the checkpoint that was scored.
    """
    found: dict[str, dict[str, float | None]] = {}
    for line in lines:
        for key, value in line.items() if line["step"] == step else ():
            split, _, rest = key.partition("/")
            task, _, metric = rest.rpartition("/")
            if split == "eval" and task:
                finite = value is not None and abs(value) < float("inf")
                found.setdefault(task, {})[metric] = value if finite else None
    return found


def speed(lines: list[Mapping[str, float]], batch_size: int) -> tuple[int, float]:
    """Return the steps that ``metrics.jsonl`` accounts for, and the seconds they took, evaluation excluded.

    Each line says how fast the steps since the line before it were; steps after the last line are left out (a run that
    patience ended between two lines).
    """
    before, seconds = 0, 0.0
    for line in lines:
        if "train/samples_per_s" in line:
            steps = int(line["step"]) - before
            seconds += steps * batch_size / line["train/samples_per_s"]
            before = int(line["step"])
    return before, seconds


def _steps_per_epoch(config: RunConfig) -> int:
    data = config.data
    rows = tuple(count for file in open_data(config).train for count in file.row_groups)
    return Order(rows, data.batch_size, data.streams, data.window, data.shuffle, config.train.seed).steps_per_epoch


def _parameters(config: RunConfig, statistics: Statistics) -> dict[str, int]:
    scales = {name: LabelScale.of(s) for name, s in statistics.labels.items()}
    model = build_model(config, scales)
    return {
        "dense_parameters": sum(p.numel() for p in model.objective.parameters()),
        "table_parameters": sum(p.numel() for p in model.embeddings.parameters()),
    }


def _finite(tasks: Metrics) -> dict[str, dict[str, float | None]]:
    """JSON has no nan: a metric that is not defined is null."""
    return {task: {n: v if abs(v) < float("inf") else None for n, v in m.items()} for task, m in tasks.items()}


def _peak_memory_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
