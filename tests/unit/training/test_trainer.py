"""Evaluations, checkpoints, and ends come at the right steps, each once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.runs import BATCH, SGD, assert_equal, open_run, raw_config, saved, write
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.evaluation import Evaluation
from torchrec_mtl.training.session import Session
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.trainer import InterruptedTrainingError, Trainer

EPOCH_STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with process_group("cpu"):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    train, test = make_table(EPOCH_STEPS * BATCH, seed=1), make_table(100, seed=2)
    return {"train": write(folder / "train.parquet", train), "eval": write(folder / "eval.parquet", test)}


class Recorder(Checkpoints):
    """Also remembers what was saved when; and takes the numbers as a sink."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, keep=100)
        self.saves: list[int] = []
        self.lines: list[tuple[int, dict[str, float]]] = []

    def save(
        self, tensors: Mapping[str, Any], notes: Mapping[str, Any], *, step: int, best: bool, last: bool = False
    ) -> None:
        self.saves.append(step)
        super().save(tensors, notes, step=step, best=best, last=last)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, dict(values)))

    def close(self) -> None:
        pass

    def steps(self, prefix: str) -> list[int]:
        return [step for step, values in self.lines if any(name.startswith(prefix) for name in values)]


class Run:
    """A run of ``config``, opened anew by every ``fit``, as a new process would."""

    def __init__(self, files: dict[str, str], run_dir: Path, **train: Any) -> None:
        plain = {"head": {"type": "shared_bottom", "shared": [8], "tower": [4]}, "gradient": {"type": "sum"}}
        self.raw = raw_config(files["train"], run_dir, data=files, train=train, **plain)
        self.records = Recorder(run_dir)

    def fit(self, stop_after: int | None = None) -> TrainState:
        session, files = open_run(self.raw)
        notes = self.records.notes("latest")
        state = TrainState() if notes is None else TrainState(**notes)
        if notes is not None:
            session.restore(self.records, "latest")
        trainer = Trainer(
            session,
            state,
            train_files=files.train,
            eval_files=files.eval,
            checkpoints=self.records,
            sinks=[self.records],
        )
        self.total_steps = trainer.total_steps
        if stop_after is not None:
            session.objective.register_forward_pre_hook(
                lambda module, _: setattr(module, "stop_requested", state.step + 1 >= stop_after)
            )
        trainer.fit()
        return state


def test_by_default_each_epoch_is_evaluated_and_saved(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, epochs=2, log_every=3)
    state = run.fit()
    assert run.records.steps("eval/") == [4, 8]
    assert run.records.saves == [4, 8]
    assert run.records.steps("train/") == [3, 6, 8]
    assert (state.step, state.evaluated, state.finished) == (8, 8, True)
    assert run.records.notes("latest") == state.notes()


def test_evaluations_and_checkpoints_come_every_so_many_steps_each_once(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, epochs=2, eval_every=3, checkpoint_every=2)
    run.fit()
    assert run.records.steps("eval/") == [3, 6, 8]
    assert run.records.saves == [2, 3, 4, 6, 8]


@pytest.mark.parametrize("stop_after", [2, 3, 4, 8])
def test_a_stop_at_an_event_leaves_it_to_the_next_run(files: dict[str, str], tmp_path: Path, stop_after: int) -> None:
    run, whole = (Run(files, tmp_path / name, epochs=2, eval_every=3, log_every=1) for name in ("parts", "whole"))
    whole.fit()
    with pytest.raises(InterruptedTrainingError, match=f"stopped after step {stop_after}"):
        run.fit(stop_after=stop_after)
    assert run.records.steps("eval/") == [step for step in (3, 6, 8) if step < stop_after]
    assert run.records.notes("latest")["step"] == stop_after
    run.fit()
    assert run.records.steps("eval/") == [3, 6, 8]
    assert run.records.steps("train/") == list(range(1, 9))
    assert run.records.notes("latest") == whole.records.notes("latest")
    factors = [[values.get("train/lr_factor") for _, values in r.records.lines] for r in (run, whole)]
    assert factors[0] == factors[1]


def test_max_steps_ends_the_run_and_its_schedule(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, epochs=3, max_steps=6, log_every=1)
    run.raw["optim"] = {**SGD, "schedule": {"type": "cosine"}}
    state = run.fit()
    assert (state.step, state.finished, run.total_steps) == (6, True, 6)
    assert run.records.steps("eval/") == [4, 6]
    factors = [values["train/lr_factor"] for _, values in run.records.lines if "train/lr_factor" in values]
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(0.0, abs=1e-12)


def evaluations(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Have evaluations find these losses."""
    found = iter(losses)
    monkeypatch.setattr(Session, "evaluate", lambda self, files: Evaluation(tasks={}, loss=next(found)))


def test_patience_ends_the_run_and_the_monitor_picks_the_best(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations(monkeypatch, 3.0, 2.0, 2.5, 2.0, 1.0)
    run = Run(files, tmp_path, epochs=2, eval_every=1, monitor={"patience": 2})
    state = run.fit()
    assert (state.step, state.best, state.best_step, state.finished) == (4, 2.0, 2, True)
    assert run.records.notes("best")["step"] == 2
    # Run again, it has nothing to do.
    lines = len(run.records.lines)
    assert run.fit().notes() == state.notes()
    assert len(run.records.lines) == lines


def test_patience_counts_over_a_stop(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations(monkeypatch, 3.0, 4.0, 4.0, 1.0)
    run = Run(files, tmp_path, epochs=2, eval_every=2, monitor={"patience": 2})
    with pytest.raises(InterruptedTrainingError):
        run.fit(stop_after=5)
    assert run.fit().step == 6


def test_without_evaluation_data_epochs_are_saved(files: dict[str, str], tmp_path: Path) -> None:
    run = Run({"train": files["train"]}, tmp_path, epochs=2)
    run.fit()
    assert run.records.saves == [4, 8]
    assert run.records.index() == {"latest": "step-000000008"}


def test_phases_train_their_tasks_only(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, epochs=1)
    run.raw["head"] = {"type": "tests.runs:TwoPhases", "shared": [8], "tower": [4]}
    with pytest.raises(InterruptedTrainingError):
        run.fit(stop_after=6)  # in the second phase
    state = run.fit()
    assert (state.phase, state.step, state.finished) == (1, 8, True)
    assert run.records.saves == [4, 6, 8]
    start, _ = open_run(run.raw)
    first = start.objective.head.towers.last.weight.detach()
    after = [
        saved(tmp_path, name)["model.objective.head.towers.last.weight"]
        for name in ("step-000000004", "step-000000008")
    ]
    moved = [[bool((a[k] != b[k]).any()) for k in range(3)] for a, b in itertools.pairwise([first, *after])]
    assert moved == [[True, False, False], [False, True, True]]


@pytest.mark.parametrize("reason", [RuntimeError("a bad row"), KeyboardInterrupt("killed")])
def test_an_evaluation_that_fails_takes_no_step_with_it(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: BaseException
) -> None:
    run, whole = (Run(files, tmp_path / name, epochs=2, log_every=1) for name in ("parts", "whole"))
    whole.fit()

    def fail(session: Session, found: object) -> Evaluation:
        raise reason

    with monkeypatch.context() as patched:
        patched.setattr(Session, "evaluate", fail)
        with pytest.raises(type(reason), match=str(reason)):
            run.fit()
    notes = run.records.notes("latest")
    assert (notes["step"], notes["settled"], notes["evaluated"]) == (4, 0, 0)
    assert run.records.steps("eval/") == []
    run.fit()
    assert run.records.steps("eval/") == [4, 8]
    assert run.records.steps("train/") == list(range(1, 9))
    assert run.records.saves == [4, 8]
    for which in ("latest", "best"):
        assert run.records.notes(which) == whole.records.notes(which)
        assert_equal(saved(tmp_path / "parts", which), saved(tmp_path / "whole", which))


def two_phases(files: dict[str, str], run_dir: Path, **train: Any) -> Run:
    run = Run(files, run_dir, eval_every=1, monitor={"patience": 2}, **train)
    run.raw["head"] = {"type": "tests.runs:TwoPhases", "shared": [8], "tower": [4]}
    return run


def test_patience_ends_a_phase_and_the_next_has_a_best_of_its_own(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations(monkeypatch, 1.0, 2.0, 2.0, 9.0, 8.0, 8.5, 8.5)  # the second phase never is as good as the first
    run = two_phases(files, tmp_path, epochs=2)
    state = run.fit()
    assert (state.phase, state.step, state.finished) == (1, 7, True)
    assert (state.best, state.best_step) == (8.0, 5)
    assert run.records.notes("best")["step"] == 5
    phases = [Checkpoints(tmp_path).folder / f"step-{step:09d}" / "notes.json" for step in (3, 4)]
    assert [json.loads(p.read_text())["notes"]["phase"] for p in phases] == [0, 1]


def test_a_phase_that_patience_ended_is_not_entered_again(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations(monkeypatch, 1.0, 2.0, 2.0, 9.0, 8.0, 8.5, 8.5)
    run = two_phases(files, tmp_path, epochs=2)
    with pytest.raises(InterruptedTrainingError):
        run.fit(stop_after=3)  # before the evaluation that uses the patience up
    state = run.fit()
    assert (state.phase, state.step, state.best_step, state.finished) == (1, 7, 5, True)


def test_the_last_phase_ends_at_its_epochs_however_early_it_began(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations(monkeypatch, 1.0, 2.0, 2.0, 9.0, 8.0, 7.0, 6.0)
    run = two_phases(files, tmp_path, epochs=1, log_every=5)
    state = run.fit()
    assert (state.phase, state.step, state.finished) == (1, 3 + EPOCH_STEPS, True)
    assert (state.best, state.best_step) == (6.0, 7)
    assert run.fit().notes() == state.notes()


def test_the_end_of_a_shortened_run_is_evaluated(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations(monkeypatch, 1.0, 2.0, 3.0, 2.5, 2.0)
    run = two_phases(files, tmp_path, epochs=2)
    run.raw["train"] |= {"eval_every": 3, "monitor": {"patience": 1}}
    state = run.fit()  # the first phase ends after step 6 of its 8
    assert (state.phase, state.step, state.finished) == (1, 14, True)
    assert run.records.steps("eval/") == [3, 6, 9, 12, 14]
