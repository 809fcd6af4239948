"""A run from config to results: data, statistics, resume, training, final evaluation, files in ``run_dir``."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
import yaml
from rich.console import Console

from torchrec_mtl.config.load import ConfigError, dump, load_config
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.files import DataFile, open_files
from torchrec_mtl.data.fingerprint import Fingerprint
from torchrec_mtl.data.preflight import check_schema
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import on_rank_0, once_a_node
from torchrec_mtl.training.evaluation import Evaluation, Metrics
from torchrec_mtl.training.reference_rows import reference_metrics
from torchrec_mtl.training.session import Session, open_session
from torchrec_mtl.training.sinks import JsonLinesSink, MetricSink, ProgressSink, TensorBoardSink
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.trainer import Trainer, is_main

# Keys that may differ when a run goes on: they change what is shown, kept, or how far it goes, not what a step does.
_MAY_DIFFER = frozenset(
    [
        "data.prefetch",
        "data.prepare",
        "data.test",
        "features.tables.*.sharding",
        "run_dir",
        *(f"train.{key}" for key in ("checkpoint_every", "device", "keep", "log_every", "pipeline", "references")),
        *(f"train.{key}" for key in ("timeout_s", "window")),
    ]
)


@dataclass(frozen=True)
class Files:
    """Opened data files."""

    train: tuple[DataFile, ...]
    eval: tuple[DataFile, ...] | None
    test: tuple[DataFile, ...] | None


@dataclass(frozen=True)
class RunResult:
    """What a finished run found.

    Attributes:
        evaluation: on the test data, or on the evaluation data where there is no test; None where there is neither.
        split: "test" or "eval".
        step: of the checkpoint evaluated.
        trained: False where the run was finished before.
        references: model -> metrics of the reference models, where asked for; on rank 0.
    """

    evaluation: Evaluation | None
    split: str
    step: int
    trained: bool
    references: Mapping[str, Metrics] = field(default_factory=dict)


def train(config: RunConfig, device: torch.device, *, fresh: bool = False, console: Console | None = None) -> RunResult:
    """Train a config to its end, or go on where ``run_dir`` stopped.

    Args:
        config: the run.
        device: of this rank; the process group exists.
        fresh: forget what ``run_dir`` holds.
        console: for rank 0.

    Raises:
        ValueError: the data do not fit the config, or ``run_dir`` holds another run.
        InterruptedTrainingError: a signal asked to stop; the state is saved.
    """
    console = console or Console()
    run_dir = Path(config.run_dir)
    once_a_node(lambda: prepare_data(config, console))
    files = open_data(config)
    fingerprint = Fingerprint.of(files.train)
    on_rank_0(lambda: _enter(run_dir, config, fresh))
    statistics = on_rank_0(lambda: _statistics(run_dir, files, config))
    checkpoints = Checkpoints(run_dir, keep=config.train.keep)
    session = open_session(config, statistics, device)
    state = _resume(session, checkpoints, fingerprint, console)
    trained = not state.finished
    if trained:
        _train(session, state, files, checkpoints, run_dir, console)
    return _final(session, files, checkpoints, run_dir, trained)


def best_or_latest(checkpoints: Checkpoints) -> str:
    """Return which checkpoint to use: the best where evaluations chose one."""
    return "best" if "best" in checkpoints.index() else "latest"


def prepare_data(config: RunConfig, console: Console) -> None:
    """Run ``data.prepare`` where a file of the data is missing."""
    missing, script = missing_files(config), config.data.prepare
    if script is None or not missing:
        return
    out = Path(missing[0]).parent
    console.print(f"{missing[0]} is missing; running {Path(script).name} --out {out}", highlight=False, soft_wrap=True)
    done = subprocess.run([sys.executable, script, "--out", str(out)], check=False)
    if done.returncode:
        raise ValueError(f"data.prepare: {script} failed with exit status {done.returncode}; see its message above")


def missing_files(config: RunConfig) -> list[str]:
    """Return the local files named by the config (globs and URIs aside) that do not exist."""
    data = config.data
    return [p for p in (*data.train, *(data.eval or ()), *(data.test or ())) if _is_missing_file(p)]


def _is_missing_file(pattern: str) -> bool:
    return "://" not in pattern and not any(c in pattern for c in "*?[") and not Path(pattern).exists()


def open_data(config: RunConfig) -> Files:
    """Open all files and check their schemas, all problems at once.

    Raises:
        ConfigError: files are missing or unreadable, or columns do not fit.
    """
    problems: list[str] = []
    opened: dict[str, tuple[DataFile, ...]] = {}
    for split in ("train", "eval", "test"):
        patterns: Sequence[str] | None = getattr(config.data, split)
        if patterns is None:
            continue
        try:
            opened[split] = open_files(patterns)
        except ValueError as error:
            problems += [f"data.{split}: {line}" for line in str(error).splitlines()]
            continue
        problems += [f"data.{split}: {p}" for p in check_schema(opened[split], config)]
    if problems:
        raise ConfigError(problems, source="data")
    return Files(opened["train"], opened.get("eval"), opened.get("test"))


def _enter(run_dir: Path, config: RunConfig, fresh: bool) -> None:
    """Make ``run_dir`` this run's, or make sure that it is. Without a checkpoint there is nothing to lose."""
    saved = run_dir / "config.yaml"
    if fresh or not Checkpoints(run_dir).index():
        for name in ("checkpoints", "tb"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        for name in ("config.yaml", "statistics.json", "metrics.json", "metrics.jsonl"):
            (run_dir / name).unlink(missing_ok=True)
    elif saved.is_file():
        changed = _differences(yaml.safe_load(saved.read_text()), config.model_dump(mode="json"))
        if changed:
            raise ConfigError(
                changed, source=f"{run_dir} holds another run (go on with its config, take another run_dir, or --fresh)"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    saved.write_text(dump(config))


def _differences(old: object, new: object, path: str = "") -> list[str]:
    if re.sub(r"\.\d+\.", ".*.", path) in _MAY_DIFFER:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in _differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path}: was {old!r}, is {new!r}"]


def _statistics(run_dir: Path, files: Files, config: RunConfig) -> Statistics:
    path = run_dir / "statistics.json"
    if path.is_file():
        return Statistics.load(path)
    statistics = collect(files.train, config.data, config.features, config.tasks)
    statistics.save(path)
    return statistics


def _resume(session: Session, checkpoints: Checkpoints, fingerprint: Fingerprint, console: Console) -> TrainState:
    notes = on_rank_0(lambda: checkpoints.notes("latest"))
    mark = fingerprint.model_dump(mode="json")
    if notes is None:
        return TrainState(data=mark)
    state = TrainState(**notes)
    if difference := fingerprint.difference(Fingerprint.model_validate(state.data)):
        raise ValueError(
            f"the training data changed since step {state.step}: {difference}; a position in other data means nothing. "
            "Restore the files, or start over with --fresh"
        )
    session.restore(checkpoints, "latest")
    if is_main() and not state.finished:
        console.print(f"going on after step {state.step}", highlight=False, soft_wrap=True)
    return state


def _train(
    session: Session, state: TrainState, files: Files, checkpoints: Checkpoints, run_dir: Path, console: Console
) -> None:
    trainer = Trainer(session, state, train_files=files.train, eval_files=files.eval, checkpoints=checkpoints, sinks=())
    sinks: list[MetricSink] = []
    if is_main():
        sinks = [
            JsonLinesSink(run_dir / "metrics.jsonl", last_step=state.step),
            TensorBoardSink(run_dir / "tb", state.step),
            ProgressSink(console, trainer.total_steps, state.step),
        ]
    trainer.sinks = sinks
    try:
        with _stop_on_signals(session):
            trainer.fit()
    finally:
        for sink in sinks:
            sink.close()
    for feature, count in session.encoder.counts.items():
        text = f"data.bad_ids: {count} ids of '{feature}' were out of range on this rank"
        console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def _stop_on_signals(session: Session) -> Iterator[None]:
    """On SIGINT or SIGTERM finish the step, save, and stop, on all ranks together; a second SIGINT stops at once."""

    def request(_number: int, _frame: FrameType | None) -> None:
        session.objective.stop_requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _final(session: Session, files: Files, checkpoints: Checkpoints, run_dir: Path, trained: bool) -> RunResult:
    which = on_rank_0(lambda: best_or_latest(checkpoints))
    notes = on_rank_0(lambda: checkpoints.notes(which))
    step = int(notes["step"]) if notes else 0
    data, split = (files.test, "test") if files.test is not None else (files.eval, "eval")
    if data is None:
        return RunResult(None, split, step, trained)
    session.restore(checkpoints, which, weights_only=True)
    evaluation = session.evaluate(data)
    references: dict[str, Metrics] = {}
    if is_main():
        text = json.dumps({"step": step, "tasks": evaluation.tasks}, indent=2) + "\n"
        (run_dir / "metrics.json").write_text(text)
        if session.config.train.references:
            references = reference_metrics(session.config, session.encoder, files.train, data)
    return RunResult(evaluation, split, step, trained, references)


def load_run(run: str | Path) -> tuple[RunConfig, Statistics, Checkpoints]:
    """Return config, statistics, and checkpoints of a run directory.

    Raises:
        ValueError: it is not one.
    """
    run_dir = Path(run)
    for name in ("config.yaml", "statistics.json", "checkpoints"):
        if not (run_dir / name).exists():
            raise ValueError(
                f"{run_dir} is not a trained run: {name} is missing. Give the run_dir of `torchrec-mtl train`"
            )
    return load_config(run_dir / "config.yaml"), Statistics.load(run_dir / "statistics.json"), Checkpoints(run_dir)
