"""A run from config to results: data, statistics, resume, training, final evaluation, files in ``run_dir``."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console

from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.files import DataFile, open_files
from torchrec_mtl.data.fingerprint import Fingerprint
from torchrec_mtl.data.preflight import check_keys, check_negatives, check_retrieval, check_schema
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.findings import Finding
from torchrec_mtl.training.candidates import read_candidates
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import on_rank_0, once_a_node
from torchrec_mtl.training.evaluation import Evaluation, Metrics, as_json
from torchrec_mtl.training.findings import FILE as FINDINGS
from torchrec_mtl.training.findings import save_findings
from torchrec_mtl.training.run_dir import best_or_latest, enter
from torchrec_mtl.training.session import Session, open_session
from torchrec_mtl.training.sharding import refused_in_runs
from torchrec_mtl.training.sinks import JsonLinesSink, MetricSink, ProgressSink, TensorBoardSink
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.trainer import Trainer, is_main


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
        findings: what the head has to tell.
    """

    evaluation: Evaluation | None
    split: str
    step: int
    trained: bool
    references: Mapping[str, Metrics] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


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
    if problems := refused_in_runs(config):
        raise ConfigError(problems, source="config")
    console = console or Console()
    run_dir = Path(config.run_dir)
    once_a_node(lambda: prepare_data(config, console))
    files = open_data(config)
    fingerprint = Fingerprint.of(files.train)
    enter(run_dir, config, fresh=fresh)
    statistics = on_rank_0(lambda: _statistics(run_dir, files, config, console))
    checkpoints = Checkpoints(run_dir, keep=config.train.keep)
    session = open_session(config, statistics, device, candidates=read_candidates(config, files.train, statistics))
    state = _resume(session, checkpoints, fingerprint, console)
    trained = not state.finished
    if trained:
        _train(session, state, files, checkpoints, run_dir, console)
    return _final(session, files, checkpoints, run_dir, state.step if trained else None)


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
    data, items = config.data, config.retrieval.items if config.retrieval is not None else ()
    return [p for p in (*data.train, *(data.eval or ()), *(data.test or ()), *items) if _is_missing_file(p)]


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
        found = [*check_schema(opened[split], config), *check_keys(opened[split], config)]
        if config.retrieval is not None and split != "train":
            found += _check_corpus(opened[split], config)
        elif config.retrieval is not None and config.retrieval.negatives is not None:
            found += _check_negatives(opened[split], config)
        problems += [f"data.{split}: {p}" for p in found]
    if problems:
        raise ConfigError(problems, source="data")
    return Files(opened["train"], opened.get("eval"), opened.get("test"))


def _check_corpus(rows: Sequence[DataFile], config: RunConfig) -> list[str]:
    assert config.retrieval is not None
    try:
        return check_retrieval(rows, open_files(config.retrieval.items), config)
    except ValueError as error:
        return [f"retrieval.items: {line}" for line in str(error).splitlines()]


def _check_negatives(train: Sequence[DataFile], config: RunConfig) -> list[str]:
    assert config.retrieval is not None
    assert config.retrieval.negatives is not None
    found = config.retrieval.negatives.found
    try:
        return check_negatives(train, open_files(config.retrieval.items), open_files(found) if found else (), config)
    except ValueError as error:
        return [f"retrieval.negatives: {line}" for line in str(error).splitlines()]


def _statistics(run_dir: Path, files: Files, config: RunConfig, console: Console) -> Statistics:
    """Look at the data before the first step: statistics of train, and every bad value of all three splits."""
    path = run_dir / "statistics.json"
    if path.is_file():
        return Statistics.load(path)
    found: dict[str, Statistics] = {}
    problems: list[str] = []
    for split, opened in (("train", files.train), ("eval", files.eval), ("test", files.test)):
        if opened is None:
            continue
        try:
            found[split] = collect(opened, config.data, config.features, config.tasks, training=split == "train")
        except ValueError as error:
            problems += [f"data.{split}: {line}" for line in str(error).splitlines()]
    for task in config.tasks:
        if "train" in found and not found["train"].labels[task.name].rows:
            inside = f"where its space '{task.space}' is 1" if task.space is not None else "with a positive weight"
            problems.append(f"data.train: task '{task.name}' has no row {inside}; it would learn nothing: remove it")
    if problems:
        raise ConfigError(problems, source="data")
    for split, statistics in found.items():
        for what, count in statistics.tolerated.items():
            console.print(f"data.{split}: {count:,} {what}", highlight=False, soft_wrap=True)
    found["train"].save(path)
    return found["train"]


def _resume(session: Session, checkpoints: Checkpoints, fingerprint: Fingerprint, console: Console) -> TrainState:
    notes = on_rank_0(lambda: checkpoints.notes("latest"))
    mark = fingerprint.model_dump(mode="json")
    if notes is None:
        return TrainState(data=mark)
    state = TrainState(**{"updates": notes["step"], **notes})  # of before there were rewinds
    if difference := fingerprint.difference(Fingerprint.model_validate(state.data)):
        raise ValueError(
            f"the training data changed since step {state.step}: {difference}; a position in other data means nothing. "
            "Restore the files, or start over with --fresh"
        )
    session.restore(checkpoints, "latest")
    session.optimizers.set_step(state.updates)
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
            TensorBoardSink(run_dir / "tb", state.step + 1 if state.step else 0),
            ProgressSink(console, trainer.total_steps, state.step),
        ]
    trainer.sinks = sinks
    try:
        with _stop_on_signals(session):
            trainer.fit()
    finally:
        for sink in sinks:
            sink.close()


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


def _final(
    session: Session, files: Files, checkpoints: Checkpoints, run_dir: Path, trained_step: int | None
) -> RunResult:
    """Evaluate the best checkpoint, or the latest; ``trained_step`` is where this process's training ended."""
    which, trained = on_rank_0(lambda: best_or_latest(checkpoints)), trained_step is not None
    notes = on_rank_0(lambda: checkpoints.notes(which))
    step = int(notes["step"]) if notes else 0
    data, split = (files.test, "test") if files.test is not None else (files.eval, "eval")
    if step != trained_step:  # else it is what the model holds: reading it back would take as much memory again
        session.restore(checkpoints, which, weights_only=True)
    session.objective.activate(None)
    findings = tuple(session.objective.head.findings())
    if is_main() and findings:
        save_findings(run_dir / FINDINGS, findings)
    if data is None:
        return RunResult(None, split, step, trained, findings=findings)
    evaluation = session.evaluate(data)
    references: dict[str, Metrics] = {}
    if is_main():
        (run_dir / "metrics.json").write_text(as_json(step, evaluation) + "\n")
        if session.config.train.references:
            from torchrec_mtl.training.reference_rows import reference_metrics  # scipy: slow to import, seldom asked

            references = reference_metrics(session.config, session.encoder, files.train, data)
    return RunResult(evaluation, split, step, trained, references, findings)
