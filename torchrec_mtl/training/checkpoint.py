"""Checkpoints: tensors by `torch.distributed.checkpoint`, all else in a JSON beside it; nothing is unpickled freely."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import MetadataIndex

from torchrec_mtl.training.background import Background
from torchrec_mtl.training.checkpoint_files import ChecksumWriter, Copied, TensorReader, WithoutCopies, damaged_files
from torchrec_mtl.training.checkpoint_folders import CheckpointFolders, name_of
from torchrec_mtl.training.checkpoint_notes import NOTES, CheckpointError, Notes, read_notes
from torchrec_mtl.training.distributed import is_of_group, on_rank_0

__all__ = ["CheckpointError", "Checkpoints", "TensorReader"]

# DCP reads attributes of TorchRec's tables that warn for themselves. Set for good: the filters are those of the
# process, and a thread that set them for a while would change them under the others.
warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)

_ORIGIN = "origin"


class Checkpoints:
    """The checkpoints of a run: ``step-*`` folders of tensors and notes.

    A checkpoint is written under another name and renamed when whole, and the folders themselves say which is the
    latest and the best: there is no index that a crash could leave behind the facts.

    Args:
        run_dir: of the run.
        keep: how many to keep beside the best.
        background: have `save` copy the state and return while a thread writes it; made on all ranks together.
        timeout_s: longest wait of that thread for other ranks, seconds.
    """

    def __init__(
        self, run_dir: str | Path, keep: int = 2, *, background: bool = False, timeout_s: float = 600.0
    ) -> None:
        self.folder = Path(run_dir) / "checkpoints"
        self._folders = CheckpointFolders(self.folder, keep)
        self._background: Background | None = None
        self._group: dist.ProcessGroup | None = None
        if background:
            self._background = Background("checkpoint")
            # A group of its own: what the ranks say to each other meanwhile must not be taken for it.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._held: dict[MetadataIndex, torch.Tensor] = {}
        self._intact: set[str] = set()

    def save(
        self, tensors: Mapping[str, Any], notes: Mapping[str, Any], *, step: int, best: bool, last: bool = False
    ) -> None:
        """Write on all ranks together.

        Args:
            tensors: nested dict of tensors (sharded ones included), the same keys on every rank but for ``rng``.
            notes: JSON values: position, phase, monitor.
            step: names the checkpoint.
            best: it is the best so far.
            last: nothing is trained after it, so there is nothing to copy it for: it is written before this returns.

        Raises:
            CheckpointError: it, or one before it that was written meanwhile, could not be written, on all ranks.
        """
        self.wait()
        tensors = _without_empty(tensors)
        if self._background is None or last:
            self._save(tensors, WithoutCopies(), Notes(notes, best), step)
            return
        copied = Copied(tensors, self._held)
        save = _on_this_gpu(lambda: self._save(tensors, copied, Notes(notes, best), step))
        self._background.start(save)

    def wait(self) -> None:
        """Wait until what `save` began is written.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._background is not None:
            self._background.wait()

    def close(self, *, failed: bool = False) -> None:
        """Wait for the last checkpoint, but not for ranks that may be gone where the run ``failed``."""
        if self._background is None:
            return
        if failed:
            self._background.leave(seconds=10.0)
        else:
            self._background.wait()
            dist.destroy_process_group(self._group)
        self._background = self._group = None
        self._held = {}  # the thread may still read what it was

    def save_origin(self, tensors: Mapping[str, Any]) -> None:
        """Write where later phases rewind to, on all ranks together; it stays however many checkpoints are kept.

        Raises:
            CheckpointError: it could not be written, on all ranks.
        """
        self.wait()
        checksums = self._write(_without_empty(tensors), WithoutCopies(), _ORIGIN)
        on_rank_0(lambda: self._folders.publish(_ORIGIN, Notes({}, False, checksums)))

    def load_origin(self, tensors: dict[str, Any]) -> None:
        """Load in place what `save_origin` wrote, on all ranks together.

        Raises:
            CheckpointError: it is not there, is damaged, or does not fit.
        """
        self._load(tensors, _ORIGIN, remedy="start over with --fresh")

    def amend(self, notes: Mapping[str, Any], *, step: int, best: bool) -> None:
        """Write other notes beside the tensors saved at ``step``; on all ranks together."""
        self.wait()
        on_rank_0(lambda: self._folders.amend(name_of(step), notes, best=best))

    def index(self) -> dict[str, str]:
        """Return ``{"latest": name, "best": name}``, as far as there are any; torn checkpoints do not count."""
        return self._folders.index()

    def notes(self, which: str) -> dict[str, Any] | None:
        """Return the notes of the ``latest`` or ``best`` checkpoint, or None where there is none."""
        return self._folders.notes(which)

    def set_damaged_aside(self) -> list[str]:
        """Rename the latest checkpoint, while its files are not what was written; on all ranks together.

        Returns:
            One line a checkpoint set aside, the latest first.

        Raises:
            CheckpointError: none is left.
        """
        on_rank_0(self._folders.put_back)
        said: list[str] = []
        while (name := on_rank_0(lambda: self.index().get("latest"))) is not None:
            if not (problems := self._damage(name)):
                return said
            aside = on_rank_0(lambda: self._folders.set_aside(name))
            said.append(f"checkpoint {name} is damaged and was set aside as {aside}: {problems[0]}")
        if said:
            raise CheckpointError("\n".join([*said, "no other checkpoint is left; start over with --fresh"]))
        return said

    def load(self, tensors: dict[str, Any], which: str) -> None:
        """Load in place, on all ranks together; sharded tensors are re-sharded as needed.

        Args:
            tensors: nested dict like the one saved. The entry ``rng`` is left as it is where the checkpoint has none
                for this rank (another world size).
            which: ``latest`` or ``best``.

        Raises:
            CheckpointError: there is none, it is damaged, does not fit the model, or holds more than tensors.
        """
        name = on_rank_0(lambda: self.index().get(which))
        if name is None:
            raise CheckpointError(f"no {which} checkpoint in {self.folder}; was the run trained?")
        self._load(tensors, name, remedy="remove that folder to do without it")

    def _load(self, tensors: dict[str, Any], name: str, *, remedy: str) -> None:
        path = self.folder / name
        if problems := self._damage(name):
            raise CheckpointError(f"{path} is damaged: {problems[0]}; {remedy}")
        with _as_checkpoint_error(f"cannot load {path}"):
            stored = TensorReader(str(path)).read_metadata().state_dict_metadata
            rng = {k: v for k, v in tensors.get("rng", {}).items() if f"rng.{k}" in stored}
            wanted = _without_empty({**tensors, "rng": rng})
            _check_names(wanted, stored)
            dcp.load(wanted, storage_reader=TensorReader(str(path)))

    def _damage(self, name: str) -> list[str]:
        """Return what is wrong with a checkpoint's files; read through once in a process."""
        if name in self._intact:
            return []
        stored = on_rank_0(lambda: read_notes(self.folder / name))
        if stored is not None:
            problems = damaged_files(self.folder / name, stored.checksums)
        else:  # an origin of before there were checksums has no notes
            torn = on_rank_0(lambda: (self.folder / name / NOTES).exists())
            problems = [f"{NOTES} is not whole"] if torn else []
        if not problems:
            self._intact.add(name)
        return problems

    def _save(self, tensors: Mapping[str, Any], planner: WithoutCopies, notes: Notes, step: int) -> None:
        name = name_of(step)
        self._intact.discard(name)
        checksums = self._write(tensors, planner, name)
        with _as_checkpoint_error(f"cannot save {self.folder / name}"):
            whole = Notes(notes.notes, notes.best, checksums)
            on_rank_0(lambda: self._folders.publish(name, whole), self._group)
            on_rank_0(self._folders.prune, self._group)

    def _write(self, tensors: Mapping[str, Any], planner: WithoutCopies, name: str) -> dict[str, str]:
        """Write the tensors to a folder of another name; return, on rank 0, the checksums of all its files."""
        partial = self._folders.partial(name)
        try:
            with _as_checkpoint_error(f"cannot save {self.folder / name}"):
                on_rank_0(lambda: self._folders.begin(name), self._group)
                writer = ChecksumWriter(partial)
                dcp.save(dict(tensors), storage_writer=writer, planner=planner, process_group=self._group)
                return _gather(writer.checksums, self._group)
        except CheckpointError:
            if dist.get_rank() == 0:  # it may be the disk that is full
                shutil.rmtree(partial, ignore_errors=True)
            raise


def _on_this_gpu(work: Callable[[], None]) -> Callable[[], None]:
    """Have a thread use the GPU of this one: it would take the first, and each rank a part of that one's memory."""
    if not torch.cuda.is_available():
        return work
    device = torch.cuda.current_device()

    def on_it() -> None:
        torch.cuda.set_device(device)
        work()

    return on_it


def _gather(mine: Mapping[str, str], group: dist.ProcessGroup | None) -> dict[str, str]:
    """Return the entries of all ranks, on rank 0."""
    of_ranks: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(dict(mine), of_ranks, dst=0, group=group)
    return {name: value for of_rank in of_ranks or () for name, value in of_rank.items()}


def _without_empty(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out empty dicts (SGD's state): DCP would pickle them."""
    pruned = {k: _without_empty(v) if isinstance(v, Mapping) else v for k, v in tensors.items()}
    return {k: v for k, v in pruned.items() if not (isinstance(v, dict) and not v)}


def _check_names(tensors: Mapping[str, Any], stored: Collection[str]) -> None:
    """Raise ``ValueError``, on all ranks, where the parts asked for have other tensors than the checkpoint.

    DCP itself ignores what the checkpoint has too much.
    """
    parts = tuple(f"{part}." for part in tensors if part != "rng")  # every rank has a random state of its own
    mine = [key for key in flatten_state_dict(dict(tensors))[0] if key.startswith(parts)]
    of_ranks: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)  # a table's optimizer is known to the ranks that hold its rows only
    wanted, found = set(chain.from_iterable(of_ranks)), {key for key in stored if key.startswith(parts)}
    for what, keys in (("lacks", wanted - found), ("has besides", found - wanted)):
        if keys:
            raise ValueError(f"the checkpoint is of another model: it {what} {', '.join(sorted(keys)[:3])}")


@contextmanager
def _as_checkpoint_error(what: str) -> Iterator[None]:
    """Turn every failure into one `CheckpointError` of one line; DCP's ``CheckpointException`` is no ``Exception``."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, CheckpointError)) or is_of_group(error):
            raise
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
        raise CheckpointError(f"{what}: {reason.strip()}") from error
