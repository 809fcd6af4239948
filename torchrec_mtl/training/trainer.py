"""The trainer: phases, epochs, steps; evaluation, checkpoints, and a clean stop in between. It knows no head."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch

from torchrec_mtl.collectives import rank
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.gradients.diagnostics import summarise
from torchrec_mtl.heads.base import Phase
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.evaluation import Evaluation
from torchrec_mtl.training.optim import schedule_factor
from torchrec_mtl.training.session import Session, take
from torchrec_mtl.training.sinks import MetricSink, ProgressSink
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.window import WindowMetrics


class InterruptedTrainingError(Exception):
    """A rank was asked to stop; the state is saved."""


@dataclass
class _Window:
    """Sums since the last log line, kept on the device: nothing is read back in a step.

    A resumed run starts with an empty one, so its first line is a mean over fewer steps.
    """

    losses: torch.Tensor | None = None
    steps: int = 0
    rows: int = 0
    start: float = field(default_factory=time.monotonic)

    def add(self, output: StepOutput, rows: int) -> None:
        self.losses = output.losses if self.losses is None else self.losses + output.losses
        self.steps, self.rows = self.steps + 1, self.rows + rows


class Trainer:
    """Trains a session to its end, from wherever its state stands.

    Args:
        session: what to train.
        state: where the run stands.
        train_files: training data.
        eval_files: evaluated during training; None: never.
        checkpoints: where state is saved.
        sinks: take the numbers; empty on ranks other than 0.
    """

    def __init__(
        self,
        session: Session,
        state: TrainState,
        *,
        train_files: Sequence[DataFile],
        eval_files: Sequence[DataFile] | None,
        checkpoints: Checkpoints,
        sinks: Sequence[MetricSink],
    ) -> None:
        self.session, self.state, self.checkpoints, self.sinks = session, state, checkpoints, sinks
        self.config = session.config.train
        self.eval_files = eval_files
        self.reader: ParquetReader = session.reader(train_files, train=True)
        self.phases: Sequence[Phase] = session.objective.head.phases(self.config.epochs)
        planned = sum(p.epochs for p in self.phases) * self.reader.steps_per_epoch
        self.total_steps = min(planned, self.config.max_steps or planned)
        assert self.total_steps > 0, "open_files() refuses empty files"
        self._window = _Window()
        self._metrics = WindowMetrics(session.config.tasks, rows=self.config.window)
        self._saved_step = state.step if state.step else -1

    def fit(self) -> None:
        """Train to the end, then save.

        Raises:
            InterruptedTrainingError: a rank was asked to stop (``Objective.stop_requested``); the state is saved.
        """
        state = self.state
        self.session.model.train()
        while not state.finished:
            self.session.objective.activate(self.phases[state.phase].tasks)
            self._epoch()
            if not state.finished:
                self._next_epoch()

    def _epoch(self) -> None:
        state = self.state
        passed = sum(p.epochs for p in self.phases[: state.phase]) + state.epoch
        with closing(self.session.read(self.reader, passed, state.epoch_step)) as batches:
            self._events()  # those that a stop came before
            while not self._epoch_is_over():
                self._steps(take(batches, self._until_next_event()))
                self._events()

    def _epoch_is_over(self) -> bool:
        state = self.state
        return state.epoch_step >= self.reader.steps_per_epoch or state.finished or self._patience_is_over()

    def _next_epoch(self) -> None:
        state = self.state
        state.epoch, state.epoch_step = state.epoch + 1, 0
        if state.epoch == self.phases[state.phase].epochs or self._patience_is_over():
            # What was best in one phase says nothing about the next, which trains something else.
            state.phase, state.epoch, state.best, state.stale = state.phase + 1, 0, None, 0

    def _until_next_event(self) -> int:
        state = self.state
        left = [self.reader.steps_per_epoch - state.epoch_step, self.total_steps - state.step]
        every = [self.config.eval_every, self.config.checkpoint_every]
        return min(left + [n - state.step % n for n in every if n is not None])

    def _steps(self, batches: Iterator[Batch]) -> None:
        """Train on all of ``batches``."""
        self._prepare_step()
        for output in self.session.run(batches):
            self.state.step += 1
            self.state.epoch_step += 1
            self._observe(output)
            self._prepare_step()  # first, so that what is saved or evaluated now does not depend on a stop
            if output.stop:
                self._save(best=False)
                raise InterruptedTrainingError(f"stopped after step {self.state.step}")

    def _prepare_step(self) -> None:
        step, total = self.state.step, self.total_steps
        self.session.optimizers.set_factor(schedule_factor(self.session.config.optim.schedule, step, total))
        self.session.objective.head.set_progress(min(step / total, 1.0), step)

    def _observe(self, output: StepOutput) -> None:
        self._window.add(output, self.session.config.data.batch_size)
        self._metrics.hold(output)
        for sink in self.sinks:
            if isinstance(sink, ProgressSink):
                sink.advance(self.state.step)
        if self.state.step % self.config.log_every and self.state.step != self.total_steps:
            return
        windowed = self._metrics.compute()  # on all ranks
        if self.sinks:
            self._log(output.names, windowed)
        self._window = _Window()
        self.session.objective.boundary.history.clear()

    def _log(self, names: Sequence[str], windowed: Mapping[str, float]) -> None:
        window, objective = self._window, self.session.objective
        assert window.losses is not None
        means = (window.losses / window.steps).tolist()
        values = {f"train/loss/{name}": mean for name, mean in zip(names, means, strict=True)}
        values |= {f"train/window/{name}": value for name, value in windowed.items()}
        values["train/samples_per_s"] = window.rows / max(time.monotonic() - window.start, 1e-9)
        values["train/lr_factor"] = schedule_factor(
            self.session.config.optim.schedule, self.state.step - 1, self.total_steps
        )
        gradients = summarise(objective.boundary.history, objective.rule.tasks, objective.rule.core)
        values |= {f"train/gradient/{name}": value for name, value in gradients.items()}
        self._write(values)

    def _events(self) -> None:
        """Evaluate and save where it is time, once a step; decide whether training goes on."""
        state, start = self.state, time.monotonic()
        if state.settled == state.step:
            return
        last = state.phase == len(self.phases) - 1
        epoch_ended = state.epoch_step >= self.reader.steps_per_epoch
        # Where patience ended a phase before, the last one ends before the planned steps are made.
        over = state.step >= self.total_steps or (
            last and epoch_ended and state.epoch + 1 >= self.phases[state.phase].epochs
        )
        ended = over or epoch_ended
        best = False
        if self.eval_files is not None and (_is_time(state.step, self.config.eval_every, ended) or over):
            self._save(best=False)  # an evaluation may fail, or be killed, and must not take the training with it
            best = self._evaluate(self.eval_files)
        evaluated = state.evaluated == state.step
        state.settled, state.finished = state.step, over or (last and self._patience_is_over())
        if evaluated or state.finished or _is_time(state.step, self.config.checkpoint_every, ended):
            self._save(best=best)
        self._window.start += time.monotonic() - start  # the speed shown is that of training

    def _evaluate(self, files: Sequence[DataFile]) -> bool:
        evaluation: Evaluation = self.session.evaluate(files)
        values = {f"eval/{task}/{name}": v for task, m in evaluation.tasks.items() for name, v in m.items()}
        self._write({**values, "eval/loss": evaluation.loss})
        return self.state.record(evaluation.value(self.config.monitor.metric), self.config.monitor)

    def _patience_is_over(self) -> bool:
        patience = self.config.monitor.patience
        return patience is not None and self.state.stale >= patience

    def _save(self, *, best: bool) -> None:
        step, notes = self.state.step, self.state.notes()
        if self._saved_step == step:
            self.checkpoints.amend(notes, step=step, best=best)
            return
        self.checkpoints.save(self.session.tensors(), notes, step=step, best=best)
        self._saved_step = step

    def _write(self, values: dict[str, float]) -> None:
        finite = {name: v for name, v in values.items() if not math.isnan(v)}
        for sink in self.sinks:
            sink.write(self.state.step, finite)


def _is_time(step: int, every: int | None, ended: bool) -> bool:
    """Return whether something is due that happens every so many steps, by default at the end of each epoch."""
    return ended if every is None else step % every == 0


def is_main() -> bool:
    """Return whether this rank speaks for all."""
    return rank() == 0
