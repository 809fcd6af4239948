"""What a head may ask of its phases, and what the trainer makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.runs import BATCH, SGD, open_run, raw_config, saved, write
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.heads.base import Phase, PhaseEnd
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run import train
from torchrec_mtl.training.session import Session
from torchrec_mtl.training.state import TrainState
from torchrec_mtl.training.trainer import InterruptedTrainingError, Trainer

EPOCH_STEPS = 4
TASKS = ("click", "long_view", "watch_time")


class Planned(SharedBottom):
    """Trains what the test plans, and notes what it is told."""

    plan: ClassVar[Sequence[Phase]] = ()
    told: ClassVar[list[tuple[str, Mapping[str, Mapping[str, float]]]]] = []
    progress: ClassVar[list[tuple[float, int]]] = []
    state_kept = ("ended",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("ended", torch.zeros(()))

    def phases(self, epochs: int) -> Sequence[Phase]:
        return self.plan

    def set_progress(self, fraction: float, step: int) -> None:
        self.progress.append((fraction, step))

    def end_phase(self, phase: Phase, metrics: Mapping[str, Mapping[str, float]]) -> PhaseEnd:
        self.told.append((phase.name, metrics))
        self.ended += 1
        return PhaseEnd(f"{phase.name} is over", {"ended/phase": float(self.ended)})


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with process_group("cpu"):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    train, test = make_table(EPOCH_STEPS * BATCH, seed=1), make_table(100, seed=2)
    return {"train": write(folder / "train.parquet", train), "eval": write(folder / "eval.parquet", test)}


class Run:
    """A run of planned phases, opened anew by every ``fit``; it is its own sink."""

    def __init__(self, files: dict[str, str], run_dir: Path, *plan: Phase, **train: Any) -> None:
        Planned.plan, Planned.told, Planned.progress = plan, [], []
        head = {"type": f"{__name__}:Planned", "shared": [8], "tower": [4]}
        optim = {**SGD, "schedule": {"type": "cosine"}}
        sections = {"data": files, "train": {"log_every": 1, **train}, "optim": optim, "gradient": {"type": "sum"}}
        self.raw = raw_config(files["train"], run_dir, head=head, **sections)
        self.checkpoints = Checkpoints(run_dir, keep=100)
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.batches: list[int] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, dict(values)))

    def close(self) -> None:
        pass

    def fit(self, stop_after: int | None = None) -> TrainState:
        session, files = open_run(self.raw)
        notes = self.checkpoints.notes("latest")
        state = TrainState() if notes is None else TrainState(**notes)
        if notes is not None:
            session.restore(self.checkpoints, "latest")
        trainer = Trainer(
            session,
            state,
            train_files=files.train,
            eval_files=files.eval,
            checkpoints=self.checkpoints,
            sinks=[self],
        )
        self.watch(session, state, stop_after)
        trainer.fit()
        return state

    def watch(self, session: Session, state: TrainState, stop_after: int | None) -> None:
        def see(module: Any, arguments: tuple[Any, ...]) -> None:
            batch = arguments[2]
            assert isinstance(batch, Batch)
            if module.training:
                self.batches.append(batch.step)
                module.stop_requested = state.step + 1 == stop_after

        session.objective.register_forward_pre_hook(see)

    def values(self, name: str) -> dict[int, float]:
        return {step: values[name] for step, values in self.lines if name in values}


def last_maps(run: Run, step: int) -> Tensor:
    return saved(run.checkpoints.folder.parent, f"step-{step:09d}")["model.objective.head.towers.last.weight"]


def test_a_schedule_and_the_progress_span_a_phase(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, Phase("one", 1), Phase("two", 1))
    run.fit()
    factors = list(run.values("train/lr_factor").values())
    assert factors[:4] == factors[4:]
    assert factors[0] == 1.0
    assert factors[3] == 0.0
    told = list(dict.fromkeys(Planned.progress))
    assert told[:5] == [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)]
    assert told[5:] == [(0.0, 4), (0.25, 5), (0.5, 6), (0.75, 7), (1.0, 8)]


def test_a_phase_of_some_steps_ends_in_mid_epoch_and_the_next_begins_another(
    files: dict[str, str], tmp_path: Path
) -> None:
    run = Run(files, tmp_path, Phase("short", 3, steps=6), Phase("rest", 1))
    state = run.fit()
    assert (state.step, state.phase, state.finished) == (10, 1, True)
    assert run.batches == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    assert list(run.values("eval/loss")) == [4, 6, 10]


def test_rewinding_starts_the_order_of_rows_again(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, Phase("warm", 1, steps=2, origin=True), Phase("a", 2), Phase("b", 1, rewind="all"))
    state = run.fit()
    assert run.batches == [0, 1, *range(4, 12), *range(4, 8)]
    assert (state.updates, state.step) == (2 + 4, 14)
    assert (tmp_path / "checkpoints" / "origin" / ".metadata").is_file()
    assert run.checkpoints.index()["latest"] == "step-000000014"


def test_what_a_rewind_sets_back(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, Phase("a", 1), Phase("b", 1, rewind="all"), Phase("c", 1, rewind="dense"))
    state = run.fit()
    first, second, third = (saved(tmp_path, f"step-{step:09d}") for step in (4, 8, 12))
    for key, value in first.items():
        if key.endswith("head.ended"):
            assert [t[key].item() for t in (first, second, third)] == [1, 2, 3]  # kept
            continue
        assert torch.equal(value, second[key]), key
        if "embeddings" in key and key.startswith("model."):
            assert not torch.equal(value, third[key]), key  # trained on
    assert (state.updates, state.step) == (8, 12)


def test_a_trial_is_scored_for_the_head_alone(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, Phase("trial", 1, ("click",), trial=True), Phase("real", 1), eval_every=3)
    state = run.fit()
    (name, metrics), (_, all_metrics) = Planned.told
    assert (name, list(metrics)) == ("trial", ["click"])
    assert set(metrics["click"]) >= {"auc", "loss"}
    assert set(all_metrics) == set(TASKS)
    assert list(run.values("eval/click/auc")) == [3, 4, 6, 8]  # at its end too
    assert list(run.values("eval/long_view/auc")) == [6, 8]
    assert state.best_step in {6, 8}
    notes = [json.loads((run.checkpoints.folder / f"step-{s:09d}" / "notes.json").read_text()) for s in (3, 4)]
    assert not any(note["is_best"] or note["notes"]["stale"] for note in notes)


def test_tasks_take_turns(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, Phase("turns", 1, alternate=True), checkpoint_every=1)
    run.fit()
    for task, steps in zip(TASKS, ([1, 4], [2], [3]), strict=True):
        assert list(run.values(f"train/loss/{task}")) == steps
    for step in (2, 3):
        moved = (last_maps(run, step) != last_maps(run, step - 1)).flatten(1).any(1)
        assert moved.tolist() == [k == step - 1 for k in range(3)]
    assert set(run.values("eval/watch_time/rmse")) == {4}  # all are evaluated


@pytest.mark.parametrize("stop_after", [3, 4, 6])
def test_the_end_of_a_phase_is_concluded_once(files: dict[str, str], tmp_path: Path, stop_after: int) -> None:
    run = Run(files, tmp_path, Phase("a", 1), Phase("b", 1, rewind="all"))
    with pytest.raises(InterruptedTrainingError):
        run.fit(stop_after=stop_after)
    run.fit()
    assert [name for name, _ in Planned.told] == ["a", "b"]
    assert run.values("ended/phase") == {4: 1.0, 8: 2.0}
    assert run.batches == [0, 1, 2, 3, 0, 1, 2, 3]
    ended = [saved(tmp_path, f"step-{step:09d}")["model.objective.head.ended"].item() for step in (4, 8)]
    assert ended == [1, 2]


def test_only_the_last_phase_has_a_best_checkpoint(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, Phase("a", 1), Phase("b", 1))
    with pytest.raises(InterruptedTrainingError):
        run.fit(stop_after=6)
    assert set(run.checkpoints.index()) == {"latest"}
    run.fit()
    assert run.checkpoints.index()["best"] == "step-000000008"


def test_a_head_that_only_changes_what_it_keeps_is_saved_with_it(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(head: Planned, phase: Phase, metrics: object) -> None:
        head.ended += 1

    monkeypatch.setattr(Planned, "end_phase", change)
    Run(files, tmp_path, Phase("a", 1)).fit()
    assert saved(tmp_path)["model.objective.head.ended"].item() == 1


def test_a_run_that_ends_before_its_last_phase_says_so(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps, expected in ((4, True), (5, False)):
        run = Run(files, tmp_path / str(steps), Phase("a", 1), Phase("last", 1), max_steps=steps)
        run.raw["data"] |= {"streams": 8}
        train(parse(run.raw), torch.device("cpu"), console=Console())
        said = "max_steps = 4 ends before the last phase, 'last', which begins after step 4" in capsys.readouterr().out
        assert said == expected


def test_max_steps_ends_a_run_within_its_phases(files: dict[str, str], tmp_path: Path) -> None:
    run = Run(files, tmp_path, Phase("a", 1), Phase("b", 2), max_steps=6)
    state = run.fit()
    assert (state.step, state.phase, state.finished) == (6, 1, True)
    assert list(run.values("train/lr_factor").values())[4:] == [1.0, 0.0]  # the schedule ends there too
