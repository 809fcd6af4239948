"""A checkpoint that is not what was written is never used, and one that was crafted runs nothing."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from torchrec_mtl.training.checkpoint import CheckpointError, Checkpoints
from torchrec_mtl.training.checkpoint_files import MetadataUnpickler
from torchrec_mtl.training.checkpoint_notes import FORMAT, Notes
from torchrec_mtl.training.distributed import process_group


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with process_group("cpu"):
        yield


def tensors(value: float) -> dict[str, Any]:
    return {"model": {"head.weight": torch.full((2, 3), value), "head.bias": torch.full((3,), value)}}


def saved(run_dir: Path, *steps: int, best: int | None = None) -> Checkpoints:
    checkpoints = Checkpoints(run_dir)
    for step in steps:
        checkpoints.save(tensors(step), {"step": step}, step=step, best=step == best)
    return checkpoints


FILES = (".metadata", "__0_0.distcp")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["one bit", "cut short", "gone"])
def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, name: str, how: str) -> None:
    saved(tmp_path, 5, 7, best=7)
    damage(tmp_path / "checkpoints" / "step-000000007" / name, how)
    checkpoints = Checkpoints(tmp_path)  # of a new process
    if (name, how) != (".metadata", "gone"):  # such a one is torn, and does not count at all
        with pytest.raises(CheckpointError, match=rf"step-000000007 is damaged: {name}.*remove that folder"):
            checkpoints.load(tensors(0.0), "best")
        (said,) = checkpoints.set_damaged_aside()
        assert said.startswith("checkpoint step-000000007 is damaged and was set aside as damaged-step-000000007: ")
        assert name in said
        assert (checkpoints.folder / "damaged-step-000000007").is_dir()
    assert checkpoints.set_damaged_aside() == []
    assert checkpoints.index() == {"latest": "step-000000005"}
    found = tensors(0.0)
    checkpoints.load(found, "latest")
    assert bool((found["model"]["head.bias"] == 5).all())


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_where_all_are_damaged_nothing_is_begun_anew(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, 7)
    for folder in checkpoints.folder.iterdir():
        damage(folder / "__0_0.distcp", "one bit")
    with pytest.raises(CheckpointError, match=r"(?s)000000007 is damaged.*000000005 is damaged.*no other.*--fresh"):
        Checkpoints(tmp_path).set_damaged_aside()


def test_notes_that_are_not_what_was_written_do_not_count(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, 7)
    notes = checkpoints.folder / "step-000000007" / "notes.json"
    notes.write_text(notes.read_text().replace('"step": 7', '"step": 3'))
    assert checkpoints.index() == {"latest": "step-000000005"}


def test_a_later_format_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("torchrec_mtl.training.checkpoint_notes.FORMAT", FORMAT + 1)
        later.setattr("torchrec_mtl.training.checkpoint_notes.__version__", "7.8.9")
        checkpoints = saved(tmp_path, 5)
    with pytest.raises(CheckpointError, match=rf"has format {FORMAT + 1}, of torchrec_mtl 7\.8\.9; this version"):
        checkpoints.index()


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.proof}",))


def without_checksums(folder: Path) -> None:
    """As whoever crafts a checkpoint would see to, or a version that knew none wrote it."""
    Notes({"step": 5}, best=False).write(folder)


def test_crafted_metadata_runs_nothing(tmp_path: Path) -> None:
    checkpoints, proof = saved(tmp_path, 5), tmp_path / "proof"
    (checkpoints.folder / "step-000000005" / ".metadata").write_bytes(pickle.dumps(Evil(proof)))
    without_checksums(checkpoints.folder / "step-000000005")
    with pytest.raises(CheckpointError, match=r"refused posix\.system"):
        checkpoints.load(tensors(0.0), "latest")
    assert not proof.exists()


class ByName:
    """Pickles as members of enumerations do in the first releases of Python 3.11: by ``getattr``."""

    def __init__(self, owner: object, name: str) -> None:
        self.parts = owner, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.parts


def test_members_of_enumerations_may_be_pickled_by_name() -> None:
    stored = io.BytesIO(pickle.dumps(ByName(_MEM_FORMAT_ENCODING, "TORCH_PRESERVE_FORMAT")))
    assert MetadataUnpickler(stored).load() is _MEM_FORMAT_ENCODING.TORCH_PRESERVE_FORMAT


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (_MEM_FORMAT_ENCODING, "__class__"),
        (_MEM_FORMAT_ENCODING, "mro"),
        (torch.Size, "__subclasses__"),
        ("text", "format"),
    ],
)
def test_nothing_else_is_reached_by_name(owner: object, name: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=f"refused getattr of {name}"):
        MetadataUnpickler(io.BytesIO(pickle.dumps(ByName(owner, name)))).load()


def test_pickled_entries_are_refused(tmp_path: Path) -> None:
    checkpoints, proof = saved(tmp_path, 5), tmp_path / "proof"
    folder, other = checkpoints.folder / "step-000000005", tmp_path / "other"
    dcp.save({**tensors(5), "model": {"evil": Evil(proof)}}, checkpoint_id=other)
    shutil.copytree(other, folder, dirs_exist_ok=True)
    without_checksums(folder)
    with pytest.raises(CheckpointError, match=r"refused pickled entries.*model.evil"):
        checkpoints.load(tensors(0.0), "latest")
    assert not proof.exists()


def test_a_torn_origin_is_not_loaded(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save_origin({"dense": tensors(3.0)["model"]})
    notes = tmp_path / "checkpoints" / "origin" / "notes.json"
    notes.write_text(notes.read_text()[:-5])
    with pytest.raises(CheckpointError, match=r"origin is damaged: notes\.json is not whole; start over with --fresh"):
        Checkpoints(tmp_path).load_origin({"dense": tensors(0.0)["model"]})
