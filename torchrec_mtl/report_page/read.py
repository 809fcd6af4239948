"""A run as the page sees it: read from its files, each of them checked, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torchrec_mtl.config.text import read_plain
from torchrec_mtl.findings import Finding
from torchrec_mtl.report_page.log import Log, read_log
from torchrec_mtl.training import calibration, findings, ranks_file
from torchrec_mtl.training.calibration import Calibration
from torchrec_mtl.training.ranks_file import RankMemory

Config = Mapping[str, Any]
Metrics = Mapping[str, Mapping[str, float | None]]
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What lies in the folder of a run; None: there is no such file.

    Attributes:
        folder: of the run, as given.
        name: of the folder.
        config: as it was trained.
        step: of the checkpoint evaluated at the end; None where there is no final evaluation yet.
        metrics: task -> metric -> value, of that evaluation.
        log: ``metrics.jsonl``.
        findings: ``findings.json``.
        calibration: ``calibration.json``.
        ranks: ``ranks.json``.
    """

    folder: Path
    name: str
    config: Config
    step: int | None
    metrics: Metrics
    log: Log | None
    findings: tuple[Finding, ...] | None
    calibration: Calibration | None
    ranks: tuple[RankMemory, ...] | None

    @property
    def tasks(self) -> Mapping[str, str]:
        """Name -> kind of the tasks, in causal order."""
        return {task["name"]: task.get("kind", "") for task in self.config["tasks"]}

    @property
    def head(self) -> str:
        """Type of the head."""
        return str(self.config["head"]["type"])

    @property
    def seed(self) -> object:
        """Of the run; None in a config that does not say it."""
        return (self.config.get("train") or {}).get("seed")

    @property
    def split(self) -> str:
        """What the final evaluation is of."""
        return "test" if self.config["data"].get("test") else "eval"

    @property
    def evaluated_on(self) -> object:
        """Files of the final evaluation."""
        return self.config["data"].get(self.split)


def read_run(folder: Path) -> Run:
    """Read a run; one that still trains has fewer files.

    Raises:
        ValueError: it is no run, or one of its files is damaged.
    """
    config = _read_config(folder)
    step, metrics = _optional(folder / "metrics.json", _read_metrics) or (None, {})
    try:
        run = Run(
            folder,
            folder.resolve().name,
            config,
            step,
            metrics,
            log=_optional(folder / "metrics.jsonl", read_log),
            findings=_optional(folder / findings.FILE, findings.load_findings),
            calibration=_optional(folder / calibration.FILE, calibration.load_calibration),
            ranks=_optional(folder / ranks_file.FILE, ranks_file.load_ranks),
        )
        assert run.tasks is not None
        _ = (run.head, run.seed, run.evaluated_on)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:  # YAML of another shape
        raise ValueError(f"{folder / 'config.yaml'} is not as a training writes it: {error!r}; restore it") from error
    return run


def _optional(path: Path, read: Callable[[Path], T]) -> T | None:
    return read(path) if path.is_file() else None


def _read_config(folder: Path) -> Config:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run: config.yaml is missing. Give the run_dir of a training")
    config = read_plain(path)
    if not isinstance(config, dict) or not {"data", "head", "tasks"} <= config.keys():
        raise ValueError(f"{folder} is not a run: its config.yaml is of something else. Give the run_dir of a training")
    return config


def _read_metrics(path: Path) -> tuple[int, Metrics]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        step, tasks = found["step"], found["tasks"]
        return int(step), {
            str(task): {str(name): _number(value) for name, value in metrics.items()} for task, metrics in tasks.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path} does not hold the metrics of a run: {error!r}. Evaluate it again, or restore it"
        ) from error


def _number(value: object) -> float | None:
    if value is None or isinstance(value, (int, float)):
        return None if value is None else float(value)
    raise TypeError(f"expected a number, found {str(value)[:40]!r}")
