"""Checkpoints hold tensors, refuse anything else, and a torn one is never chosen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrec_mtl.training.checkpoint import CheckpointError, Checkpoints
from torchrec_mtl.training.distributed import process_group


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with process_group("cpu"):
        yield


def tensors(value: float) -> dict[str, Any]:
    return {
        "model": {"head.weight": torch.full((2, 3), value), "head.bias": torch.full((3,), value)},
        "optim": {"state": {"head.weight": {"exp_avg": torch.full((2, 3), value)}, "table": {}}},
        "rng": {"cpu_rank0": torch.get_rng_state()},
    }


def saved(run_dir: Path, *steps: int, best: int | None = None, keep: int = 2, background: bool = False) -> Checkpoints:
    checkpoints = Checkpoints(run_dir, keep=keep, background=background)
    for step in steps:
        checkpoints.save(tensors(step), {"step": step}, step=step, best=step == best)
    return checkpoints


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, 7, best=5)
    for which, step in (("latest", 7), ("best", 5)):
        found = tensors(0.0)
        checkpoints.load(found, which)
        assert bool((found["model"]["head.bias"] == step).all())
        assert bool((found["optim"]["state"]["head.weight"]["exp_avg"] == step).all())
        assert checkpoints.notes(which) == {"step": step}


def test_a_part_alone_can_be_loaded(tmp_path: Path) -> None:
    found = {"model": tensors(0.0)["model"]}
    saved(tmp_path, 5).load(found, "latest")
    assert bool((found["model"]["head.weight"] == 5).all())


def test_without_checkpoints_there_is_neither_latest_nor_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.index() == {}
    assert checkpoints.notes("latest") is None
    with pytest.raises(CheckpointError, match=r"no latest checkpoint in .*; was the run trained\?"):
        checkpoints.load(tensors(0.0), "latest")


def steps(checkpoints: Checkpoints) -> list[str]:
    return sorted(p.name.removeprefix("step-0000000") for p in checkpoints.folder.iterdir())


def test_the_last_are_kept_and_the_best(tmp_path: Path) -> None:
    assert steps(saved(tmp_path / "a", 10, 20, 30, 40, best=10)) == ["10", "30", "40"]
    assert steps(saved(tmp_path / "b", 10, 20, 30, 40, best=40)) == ["30", "40"]
    assert steps(saved(tmp_path / "c", 10, 20, 30, keep=1)) == ["30"]
    assert steps(saved(tmp_path / "d", 10, 20, 30, best=10, keep=1)) == ["10", "30"]
    many = saved(tmp_path / "e", *range(10, 90, 10), keep=5, background=True)
    many.close()
    assert steps(many) == ["40", "50", "60", "70", "80"]


def test_the_best_is_the_last_that_was(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, best=10)
    checkpoints.save(tensors(20), {"step": 20}, step=20, best=True)
    checkpoints.save(tensors(30), {"step": 30}, step=30, best=False)
    assert checkpoints.index() == {"latest": "step-000000030", "best": "step-000000020"}


def test_notes_can_be_amended(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    checkpoints.amend({"step": 5, "finished": True}, step=5, best=True)
    assert checkpoints.notes("best") == {"step": 5, "finished": True}
    checkpoints.load(tensors(0.0), "best")


@pytest.mark.parametrize("torn", ["no notes", "half of the notes", "no metadata", "another name"])
def test_a_torn_checkpoint_is_never_chosen(tmp_path: Path, torn: str) -> None:
    checkpoints = saved(tmp_path, 5, 7)
    last = checkpoints.folder / "step-000000007"
    if torn == "no notes":
        (last / "notes.json").unlink()
    elif torn == "half of the notes":
        (last / "notes.json").write_text('{"is_best": fal')
    elif torn == "no metadata":
        (last / ".metadata").unlink()
    else:
        last.rename(checkpoints.folder / ".partial-step-000000007")
    assert checkpoints.index() == {"latest": "step-000000005"}
    found = tensors(0.0)
    checkpoints.load(found, "latest")
    assert bool((found["model"]["head.bias"] == 5).all())


def test_a_write_that_is_killed_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 5, best=5)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, killed)
            with pytest.raises((KeyboardInterrupt, CheckpointError)):
                checkpoints.save(tensors(7), {"step": 7}, step=7, best=True)
        assert checkpoints.index() == {"latest": "step-000000005", "best": "step-000000005"}
    checkpoints.save(tensors(9), {"step": 9}, step=9, best=False)
    assert [p.name for p in sorted(checkpoints.folder.iterdir())] == ["step-000000005", "step-000000009"]


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_leaves_the_one_before_and_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoints = saved(tmp_path, 4, best=4, background=background)
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.checkpoint.filesystem._write_item", full)
        with pytest.raises(CheckpointError, match=r"cannot save .*step-000000005: .*No space left on device"):
            save_and_wait(checkpoints, 5)
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step-000000004"]
    checkpoints.load(tensors(0.0), "latest")
    checkpoints.save(tensors(6), {"step": 6}, step=6, best=False)
    checkpoints.close()
    assert checkpoints.index()["latest"] == "step-000000006"


def save_and_wait(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(tensors(step), {"step": step}, step=step, best=False)
    checkpoints.wait()


def test_in_the_background_what_was_there_when_it_was_asked_for_is_saved(tmp_path: Path) -> None:
    checkpoints, state = Checkpoints(tmp_path, keep=3, background=True), tensors(1.0)
    for step in (1, 2, 3):
        state["model"]["head.bias"].fill_(step)
        checkpoints.save(state, {"step": step}, step=step, best=step == 2)
        state["model"]["head.bias"].fill_(-1.0)  # training goes on
    checkpoints.close()
    assert checkpoints.index() == {"latest": "step-000000003", "best": "step-000000002"}
    for which, step in (("latest", 3), ("best", 2)):
        found = tensors(0.0)
        checkpoints.load(found, which)
        assert bool((found["model"]["head.bias"] == step).all())
        assert bool((found["model"]["head.weight"] == 1).all())


def test_notes_are_amended_after_what_is_being_written(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, background=True)
    checkpoints.amend({"step": 5, "finished": True}, step=5, best=True)
    assert checkpoints.notes("best") == {"step": 5, "finished": True}
    assert not checkpoints.set_damaged_aside()


def without(key: str) -> dict[str, Any]:
    found = tensors(0.0)
    del found["model"][key]
    return found


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    more = tensors(0.0)
    more["model"]["head.more"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"of another model: it lacks model\.head\.more"):
        checkpoints.load(more, "latest")
    with pytest.raises(CheckpointError, match=r"of another model: it has besides model\.head\.bias"):
        checkpoints.load(without("head.bias"), "latest")
    other = tensors(0.0)
    other["model"]["head.weight"] = torch.zeros(4, 3)
    with pytest.raises(CheckpointError, match=r"model\.head\.weight"):
        checkpoints.load(other, "latest")


def test_a_part_of_a_tensor_is_written_from_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FBGEMM's tables are; DCP would clone each and keep all clones until the file is whole."""
    whole = torch.arange(24.0)
    parts = {"first": whole[:8].view(2, 4), "second": whole[8:].view(4, 4)}
    written: list[int] = []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda data, stream: (written.append(data.data_ptr()), save(data, stream)))
    Checkpoints(tmp_path).save({"model": parts}, {"step": 1}, step=1, best=False)
    assert sorted(written) == sorted(part.data_ptr() for part in parts.values())
    loaded = {"model": {name: torch.zeros_like(part) for name, part in parts.items()}}
    Checkpoints(tmp_path).load(loaded, "latest")
    assert all(torch.equal(loaded["model"][name], part) for name, part in parts.items())


def saved_again_and_killed(run_dir: Path, patch: pytest.MonkeyPatch, killed_at: int, *, best: bool) -> Checkpoints:
    """Save step 4, and save it again with other values, killed at one of the renames."""
    checkpoints, calls, replace = saved(run_dir, 4, keep=1), list[Path](), os.replace

    def kill(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        replace(source, target)

    with patch.context() as patched:
        patched.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(tensors(9.0), {"step": 4}, step=4, best=best)
    return checkpoints


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_kill_while_a_step_is_saved_again_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    checkpoints = saved_again_and_killed(tmp_path, monkeypatch, killed_at, best=True)
    found = tensors(0.0)
    checkpoints.load(found, "latest")
    assert bool((found["model"]["head.bias"] == 4).all())
    checkpoints.save(tensors(9.0), {"step": 4}, step=4, best=True)
    checkpoints.load(found, "best")
    assert bool((found["model"]["head.bias"] == 9).all())
    assert steps(checkpoints) == ["04"]


def test_an_origin_stays_and_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save_origin({"dense": tensors(3.0)["model"], "tables": tensors(5.0)["model"]})
    assert checkpoints.index() == {}
    for step in (1, 2):
        checkpoints.save(tensors(step), {"step": step}, step=step, best=False)
    found = {"dense": tensors(0.0)["model"]}
    checkpoints.load_origin(found)
    assert bool((found["dense"]["head.bias"] == 3).all())
    with pytest.raises(CheckpointError, match="of another model"):
        checkpoints.load_origin({"dense": {"head.bias": torch.zeros(3)}})


def test_without_an_origin_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot load .*origin"):
        Checkpoints(tmp_path).load_origin({"dense": tensors(0.0)["model"]})


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_what_such_a_kill_leaves_can_be_amended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """A run that goes on notes the end of its evaluation beside it."""
    saved_again_and_killed(tmp_path, monkeypatch, killed_at, best=False)
    again = Checkpoints(tmp_path, keep=1)
    assert again.set_damaged_aside() == []
    again.amend({"step": 4, "settled": 4}, step=4, best=True)
    assert again.notes("best") == {"step": 4, "settled": 4}
    assert steps(again)[-1] == "04"


def test_what_is_synced_has_been_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCP asks for a file's number and has the disk hold it, without a flush."""
    sizes, fsync = dict[str, int](), os.fsync

    def look(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        sizes[Path(path).name] = os.fstat(descriptor).st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    saved(tmp_path, 5)
    folder = tmp_path / "checkpoints" / "step-000000005"
    assert sizes["__0_0.distcp"] == (folder / "__0_0.distcp").stat().st_size
    assert sizes[".metadata.tmp"] == (folder / ".metadata").stat().st_size
