"""The trainer: phases, epochs, steps; evaluation, checkpoints, and a clean stop in between. It knows no head."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import torch

from torchrec_mtl.collectives import rank
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.gradients.diagnostics import summarise
from torchrec_mtl.heads.base import Phase
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.evaluation import Evaluation, Metrics
from torchrec_mtl.training.optim import schedule_factor
from torchrec_mtl.training.rewind import rewind, save_origin
from torchrec_mtl.training.session import Session, take
from torchrec_mtl.training.sinks import MetricSink, ProgressSink
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.window import StepSums, WindowMetrics
from torchrec_mtl.whereabouts import whereabouts


class InterruptedTrainingError(Exception):
    """A rank was asked to stop; the state is saved."""


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
        planned = sum(map(self._planned_steps, self.phases))
        self.total_steps = min(planned, self.config.max_steps or planned)
        assert self.total_steps > 0, "open_files() refuses empty files"
        self._begin_windows()
        self._saved_step = state.step if state.step else -1

    def fit(self) -> None:
        """Train to the end, then save.

        Raises:
            InterruptedTrainingError: a rank was asked to stop (``Objective.stop_requested``); the state is saved.
        """
        state = self.state
        self.session.model.train()
        if self.total_steps <= (before := sum(map(self._planned_steps, self.phases[:-1]))):
            self._say(
                f"train.max_steps = {self.total_steps} ends before the last phase, '{self.phases[-1].name}', which "
                f"begins after step {before}: what is trained is no finished model"
            )
        while not state.finished:
            self._at("training")
            self.session.objective.head.begin_phase(self._phase)
            self.session.objective.activate(self._phase.tasks)
            self._epoch()
            if not state.finished:
                self._next_epoch()

    def _begin_windows(self) -> None:
        self._window = StepSums()
        self._metrics = WindowMetrics(self.session.config.tasks, rows=self.config.window)

    @property
    def _phase(self) -> Phase:
        return self.phases[self.state.phase]

    def _planned_steps(self, phase: Phase) -> int:
        whole = phase.epochs * self.reader.steps_per_epoch
        return whole if phase.steps is None else min(whole, phase.steps)

    @property
    def _phase_end(self) -> int:
        """The step after which the phase ends, if no patience ends it before."""
        return self.state.phase_start + self._planned_steps(self._phase)

    def _epoch(self) -> None:
        state = self.state
        with closing(self.session.read(self.reader, state.passes + state.epoch, state.epoch_step)) as batches:
            self._events()  # those that a stop came before
            while not self._epoch_is_over():
                self._steps(take(batches, self._until_next_event()))
                self._events()

    def _epoch_is_over(self) -> bool:
        return self.state.finished or self._epoch_ended() or self._patience_is_over()

    def _epoch_ended(self) -> bool:
        state = self.state
        return state.epoch_step >= self.reader.steps_per_epoch or state.step >= self._phase_end

    def _next_epoch(self) -> None:
        state = self.state
        state.epoch, state.epoch_step = state.epoch + 1, 0
        if state.step >= self._phase_end or self._patience_is_over():
            self._next_phase()

    def _next_phase(self) -> None:
        """Set back what the next phase does not start with. What the last one found is saved already."""
        state = self.state
        self._begin_windows()
        ways = {phase.rewind for phase in self.phases}
        if self._phase.origin and ways != {"none"}:
            state.mark_origin()
            save_origin(self.session, self.checkpoints, tables="all" in ways)
        how = self.phases[state.phase + 1].rewind
        state.begin_phase(rewind=how != "none", tables=how == "all")
        if how != "none":
            has_origin = any(phase.origin for phase in self.phases[: state.phase])
            origin = self.checkpoints if has_origin else None
            rewind(self.session, origin, tables=how == "all", updates=state.updates)
        elif self._phase.masked:
            # Steps in which a parameter was frozen would count in the correction of its moments' bias.
            self.session.optimizers.clear(tables=False)

    def _until_next_event(self) -> int:
        state = self.state
        left = [self.reader.steps_per_epoch - state.epoch_step]
        left += [end - state.step for end in (self._phase_end, self.total_steps)]
        every = [self.config.eval_every, self.config.checkpoint_every]
        return min(left + [n - state.step % n for n in every if n is not None])

    def _steps(self, batches: Iterator[Batch]) -> None:
        """Train on all of ``batches``."""
        self._at("training")
        self._prepare_step()
        for output in self.session.run(batches):
            self.state.step += 1
            self.state.epoch_step += 1
            self.state.updates += 1
            self._at("training")
            self._observe(output)
            self._prepare_step()  # first, so that what is saved or evaluated now does not depend on a stop
            if output.stop:
                self._save(best=False, last=True)
                raise InterruptedTrainingError(f"stopped after step {self.state.step}")

    def _at(self, doing: str) -> None:
        """Note where this rank stands, for the message of a wait that is too long."""
        whereabouts.at(doing, step=self.state.step, phase=self._phase.name)

    def _prepare_step(self) -> None:
        done, total = self._phase_progress(self.state.step)
        objective, phase = self.session.objective, self._phase
        self.session.optimizers.set_factor(schedule_factor(self.session.config.optim.schedule, done, total))
        if phase.alternate:
            tasks = objective.tasks if phase.tasks is None else phase.tasks
            objective.activate([tasks[done % len(tasks)]])
        objective.head.set_progress(min(done / total, 1.0), self.state.step)

    def _phase_progress(self, step: int) -> tuple[int, int]:
        """Return how many steps of the phase ``step`` is after, and how many the phase has."""
        start = self.state.phase_start
        return step - start, min(self._phase_end, self.total_steps) - start

    def _observe(self, output: StepOutput) -> None:
        self._window.add(output, self.session.objective.on, self.session.config.data.batch_size)
        self._metrics.hold(output)
        for sink in self.sinks:
            if isinstance(sink, ProgressSink):
                sink.advance(self.state.step)
        if self.state.step % self.config.log_every and self.state.step not in {self.total_steps, self._phase_end}:
            return
        windowed = self._metrics.compute()  # on all ranks
        if self.sinks:
            self._log(output.names, windowed)
        self._window = StepSums()
        self.session.objective.boundary.history.clear()

    def _log(self, names: Sequence[str], windowed: Mapping[str, float]) -> None:
        window, objective = self._window, self.session.objective
        values = {f"train/loss/{name}": mean for name, mean in zip(names, window.means(), strict=True)}
        values |= {f"train/window/{name}": value for name, value in windowed.items()}
        values["train/samples_per_s"] = window.rows / max(time.monotonic() - window.start, 1e-9)
        values["train/lr_factor"] = schedule_factor(
            self.session.config.optim.schedule, *self._phase_progress(self.state.step - 1)
        )
        if len(self.phases) > 1:
            values["train/phase"] = self.state.phase
        gradients = summarise(objective.boundary.history, objective.rule.tasks, objective.rule.core)
        values |= {f"train/gradient/{name}": value for name, value in gradients.items()}
        self._write(values)

    def _events(self) -> None:
        """Evaluate and save where it is time, once a step; decide whether training goes on."""
        state, start = self.state, time.monotonic()
        if state.settled == state.step:
            return
        last, ended = state.phase == len(self.phases) - 1, self._epoch_ended()
        # Where patience ended a phase before, the last one ends before the planned steps are made.
        over = state.step >= self.total_steps or (last and state.step >= self._phase_end)
        phase_ended, ended = state.step >= self._phase_end, ended or over
        best, metrics = False, Metrics()
        due = _is_time(state.step, self.config.eval_every, ended) or over or (phase_ended and self._phase.trial)
        if self.eval_files is not None and due:
            # An evaluation may fail, or be killed, and must not take the training with it.
            self._save(best=False, last=over)
            best, metrics = self._evaluate(self.eval_files)
        if phase_ended or self._patience_is_over():
            self._end_phase(metrics)
        evaluated = state.evaluated == state.step
        state.settled, state.finished = state.step, over or (last and self._patience_is_over())
        if evaluated or phase_ended or state.finished or _is_time(state.step, self.config.checkpoint_every, ended):
            self._save(best=best, last=state.finished)
        self._window.start += time.monotonic() - start  # the speed shown is that of training

    def _end_phase(self, metrics: Metrics) -> None:
        """Let the head conclude; what it changes is saved with this step."""
        head = self.session.objective.head
        before = [head.get_buffer(name).clone() for name in head.state_kept]
        end = head.end_phase(self._phase, metrics)
        self.session.agree(head.state_kept)
        after = [head.get_buffer(name) for name in head.state_kept]
        if not all(map(torch.equal, before, after)):
            self._saved_step = -1  # what was saved for the evaluation is no longer true
        if end is None:
            return
        self._write(dict(end.values))
        self._say(end.text)

    def _say(self, text: str) -> None:
        for sink in self.sinks:
            if isinstance(sink, ProgressSink):
                sink.say(text)

    def _evaluate(self, files: Sequence[DataFile]) -> tuple[bool, Metrics]:
        """Return whether the model is the best so far, and the metrics of the phase's tasks."""
        phase = self._phase
        self._at("evaluating")
        self.session.objective.activate(phase.tasks)  # all of them, where a step trains one
        evaluation: Evaluation = self.session.evaluate(files)
        metrics = {t: m for t, m in evaluation.tasks.items() if phase.tasks is None or t in phase.tasks}
        values = {f"eval/{task}/{name}": v for task, m in metrics.items() for name, v in m.items()}
        self._write({**values, "eval/loss": evaluation.loss})
        if phase.trial:
            self.state.evaluated = self.state.step
            return False, metrics
        better = self.state.record(evaluation.value(self.config.monitor.metric), self.config.monitor)
        return better and phase is self.phases[-1], metrics

    def _patience_is_over(self) -> bool:
        patience = self.config.monitor.patience
        return patience is not None and self.state.stale >= patience

    def _save(self, *, best: bool, last: bool) -> None:
        self._at("saving a checkpoint")
        step, notes = self.state.step, self.state.notes()
        if self._saved_step == step:
            self.checkpoints.amend(notes, step=step, best=best)
            return
        self.checkpoints.save(self.session.tensors(), notes, step=step, best=best, last=last)
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
