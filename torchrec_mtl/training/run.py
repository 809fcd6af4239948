"""A run from config to results: data, statistics, resume, training, final evaluation, files in ``run_dir``."""

from __future__ import annotations

import os
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

from torchrec_mtl.collectives import rank
from torchrec_mtl.config.checks import refused_in_runs
from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.fingerprint import Fingerprint
from torchrec_mtl.data.splits import Files, missing_files, open_data
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.findings import Finding
from torchrec_mtl.noise import stable_seed
from torchrec_mtl.registry import check_switch
from torchrec_mtl.training.candidates import read_candidates
from torchrec_mtl.training.checkpoint import CheckpointError, Checkpoints
from torchrec_mtl.training.distributed import naming_lost_ranks, on_rank_0, once_a_node
from torchrec_mtl.training.evaluation import Evaluation, Metrics
from torchrec_mtl.training.fresh import is_begun, mark_begun
from torchrec_mtl.training.last_evaluation import evaluate_last, write_ranks
from torchrec_mtl.training.run_dir import best_or_latest, enter, leave_nothing, locked
from torchrec_mtl.training.run_sinks import run_sinks, write_test
from torchrec_mtl.training.saving import open_checkpoints
from torchrec_mtl.training.session import Session, open_session
from torchrec_mtl.training.sinks import MetricSink, ProgressSink
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.stored_run import StoredRun
from torchrec_mtl.training.trainer import InterruptedTrainingError, Trainer, is_main
from torchrec_mtl.training.warm_start import begin_from, find_source
from torchrec_mtl.whereabouts import telling_standstills, whereabouts


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
        fresh: forget what ``run_dir`` holds; once a job, however often torchrun starts its ranks.
        console: for rank 0.

    torch's own generator is seeded by ``train.seed`` and the rank.

    Raises:
        ValueError: the data do not fit the config, or ``run_dir`` holds another run.
        InterruptedTrainingError: a signal asked to stop; the state is saved.
    """
    if problems := refused_in_runs(config):
        raise ConfigError(problems, source="config")
    with naming_lost_ranks(), telling_standstills(config.train.timeout_s / 2):
        whereabouts.at("preparing the data")
        once_a_node(lambda: prepare_data(config, console or Console()))
        files = open_data(config)
        wait_s = config.train.timeout_s / 2 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        with locked(Path(config.run_dir), wait_s):
            fresh = fresh and not is_begun(Path(config.run_dir))
            source = find_source(config, fresh=fresh)  # first: entering forgets what a fresh run takes the place of
            enter(Path(config.run_dir), config, fresh=fresh)
            if fresh:
                mark_begun(Path(config.run_dir))
            try:
                return _run(config, files, source, device, console or Console())
            except (ValueError, CheckpointError):
                if is_main():
                    leave_nothing(Path(config.run_dir))
                raise


def _run(
    config: RunConfig, files: Files, source: StoredRun | None, device: torch.device, console: Console
) -> RunResult:
    run_dir, fingerprint = Path(config.run_dir), Fingerprint.of(files.train)
    torch.manual_seed(stable_seed(config.train.seed, "rank", rank()))  # ours draw from `Noise`, a plug-in may not
    whereabouts.at("reading the data once on rank 0, for statistics and bad values")
    statistics = on_rank_0(lambda: _statistics(run_dir, files, config, console))
    whereabouts.at("building the model")
    session = open_session(config, statistics, device, candidates=read_candidates(config, files.train, statistics))
    checkpoints = open_checkpoints(session)
    whereabouts.at("reading the last checkpoint")
    state = _resume(session, checkpoints, fingerprint, console)
    if source is not None:
        begin_from(source, session, state, checkpoints=checkpoints, files=files.train, console=console)
    if state.finished:
        checkpoints.close()
        return _final(session, files, checkpoints, None, ())
    trainer = Trainer(session, state, train_files=files.train, eval_files=files.eval, checkpoints=checkpoints, sinks=())
    with run_sinks(config, state, trainer.total_steps, console) as trainer.sinks:
        _train(trainer)
        return _final(session, files, checkpoints, state.step, trainer.sinks)


def prepare_data(config: RunConfig, console: Console) -> None:
    """Run ``data.prepare`` where a file of the data is missing."""
    missing, script = missing_files(config), config.data.prepare
    if script is None or not missing:
        return
    check_switch(f"data.prepare: {script}")
    out = Path(missing[0]).parent
    console.print(f"{missing[0]} is missing; running {Path(script).name} --out {out}", highlight=False, soft_wrap=True)
    done = subprocess.run([sys.executable, script, "--out", str(out)], check=False)
    if done.returncode:
        raise ValueError(f"data.prepare: {script} failed with exit status {done.returncode}; see its message above")


def _statistics(run_dir: Path, files: Files, config: RunConfig, console: Console) -> Statistics:
    """Look at the data before the first step: statistics of train, and every bad value of all three splits."""
    path = run_dir / "statistics.json"
    if path.is_file() and Checkpoints(run_dir).index():  # else it is not of this run
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
    damaged = checkpoints.set_damaged_aside()
    if is_main():
        for line in damaged:
            console.print(line, highlight=False, soft_wrap=True)
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


def _train(trainer: Trainer) -> None:
    ended = False
    try:
        with _stop_on_signals(trainer.session):
            trainer.fit()
        ended = True
    except InterruptedTrainingError:
        ended = True
        raise
    finally:
        trainer.checkpoints.close(failed=not ended)


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
    session: Session, files: Files, checkpoints: Checkpoints, trained_step: int | None, sinks: Sequence[MetricSink]
) -> RunResult:
    """Evaluate the best checkpoint, or the latest; ``trained_step`` is where this process's training ended."""
    which, trained = on_rank_0(lambda: best_or_latest(checkpoints)), trained_step is not None
    notes = on_rank_0(lambda: checkpoints.notes(which))
    step = int(notes["step"]) if notes else 0
    data, split = (files.test, "test") if files.test is not None else (files.eval, "eval")
    if trained:
        for sink in sinks:
            if isinstance(sink, ProgressSink):
                sink.close()
        write_ranks(session)  # before a checkpoint is read back, which takes as much memory again
    if step != trained_step:  # else it is what the model holds
        session.restore(checkpoints, which, weights_only=True)
    session.objective.activate(None)
    whereabouts.at("evaluating the trained model")
    evaluation, findings = evaluate_last(session, data, split, step)
    references: dict[str, Metrics] = {}
    if is_main() and evaluation is not None and data is not None:
        if split == "test":
            write_test(sinks, step, evaluation)
        if session.config.train.references:
            from torchrec_mtl.training.reference_rows import reference_metrics  # scipy: slow to import, seldom asked

            references = reference_metrics(session.config, session.encoder, files.train, data)
    return RunResult(evaluation, split, step, trained, references, findings)
