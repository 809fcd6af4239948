"""Checkpoints: tensors by `torch.distributed.checkpoint`, all else in a JSON beside it; nothing is unpickled freely."""

from __future__ import annotations

import enum
import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta
from torch.distributed.checkpoint.planner import WriteItem

from torchrec_mtl.training.distributed import on_rank_0

_ALLOWED_MODULES = frozenset({"torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"})
_ALLOWED_NAMES = frozenset(
    {
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),  # Python 3.13
        ("torch.serialization", "_get_layout"),
        ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    }
)
_ORIGIN, _OLD = "origin", ".old"
_OF_NUMPY = frozenset({torch.float32, torch.float64, torch.float16})  # bfloat16 is not


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used."""


class _MetadataUnpickler(pickle.Unpickler):
    """DCP pickles its metadata; a crafted file could run anything, so only its own handful of classes is let in."""

    def find_class(self, module: str, name: str) -> object:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        if module in _ALLOWED_MODULES or (module, name) in _ALLOWED_NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused {module}.{name}")


def _enum_member(owner: object, name: str) -> enum.Enum:
    """Stand in for ``getattr``, by which early releases of Python 3.11 pickle members of enumerations, and no more."""
    if isinstance(owner, enum.EnumMeta) and name in owner.__members__:
        return cast(enum.Enum, owner[name])
    raise pickle.UnpicklingError(f"refused getattr of {name}")


class TensorReader(FileSystemReader):
    """Reads checkpoints that hold tensors only; refuses foreign classes and pickled entries."""

    def read_metadata(self, *_args: object, **kwargs: object) -> Metadata:
        """Read the metadata through the allow-list."""
        path = Path(str(self._get_metadata_path(cast("int | None", kwargs.get("rank")))))
        with path.open("rb") as file:
            metadata: Metadata = _MetadataUnpickler(file).load()
        pickled = [k for k, v in metadata.state_dict_metadata.items() if isinstance(v, BytesStorageMetadata)]
        if pickled:
            raise pickle.UnpicklingError(f"refused pickled entries {pickled[:3]}")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _WithoutCopies(DefaultSavePlanner):
    """Has tables on the CPU written from where they are.

    FBGEMM holds all tables in one tensor. DCP clones a part of a tensor before it writes it, and keeps the clones till
    the file is whole: without this, saving took the tables' memory a second time.
    """

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Return what is to be written; for a part of a tensor, a tensor of the same memory and no more than it."""
        data = super().resolve_data(write_item)
        if not isinstance(data, torch.Tensor) or data.device.type != "cpu" or data.dtype not in _OF_NUMPY:
            return data
        return torch.from_numpy(data.detach().numpy()) if data.is_contiguous() and data.numel() else data


class Checkpoints:
    """The checkpoints of a run: ``step-*`` folders of tensors and notes.

    A checkpoint is written under another name and renamed when whole, and the folders themselves say which is the
    latest and the best: there is no index that a crash could leave behind the facts.

    Args:
        run_dir: of the run.
        keep: how many to keep beside the best.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2) -> None:
        self.folder = Path(run_dir) / "checkpoints"
        self.keep = keep

    def save(self, tensors: Mapping[str, Any], notes: Mapping[str, Any], *, step: int, best: bool) -> None:
        """Write on all ranks together.

        Args:
            tensors: nested dict of tensors (sharded ones included), the same keys on every rank but for ``rng``.
            notes: JSON values: position, phase, monitor.
            step: names the checkpoint.
            best: it is the best so far.

        Raises:
            CheckpointError: it could not be written, on all ranks.
        """
        partial = self._write(tensors, _name(step))
        on_rank_0(lambda: self._publish(partial, notes, step, best))

    def save_origin(self, tensors: Mapping[str, Any]) -> None:
        """Write where later phases rewind to, on all ranks together; it stays however many checkpoints are kept.

        Raises:
            CheckpointError: it could not be written, on all ranks.
        """
        partial = self._write(tensors, _ORIGIN)
        on_rank_0(lambda: _replace(partial, self.folder / _ORIGIN))

    def load_origin(self, tensors: dict[str, Any]) -> None:
        """Load in place what `save_origin` wrote, on all ranks together.

        Raises:
            CheckpointError: it is not there, or does not fit.
        """
        self._load(tensors, self.folder / _ORIGIN)

    def amend(self, notes: Mapping[str, Any], *, step: int, best: bool) -> None:
        """Write other notes beside the tensors saved at ``step``; on all ranks together."""
        on_rank_0(lambda: _write_notes(self.folder / _name(step), notes, best))

    def index(self) -> dict[str, str]:
        """Return ``{"latest": name, "best": name}``, as far as there are any; torn checkpoints do not count."""
        read = {folder.name: _read_notes(folder) for folder in sorted(self.folder.glob("step-*"))}
        whole = [
            (name, stored)
            for name, stored in read.items()
            if stored is not None and (not name.endswith(_OLD) or read.get(name.removesuffix(_OLD)) is None)
        ]
        best = [(name, stored) for name, stored in whole if stored["is_best"]]
        return {key: found[-1][0] for key, found in (("latest", whole), ("best", best)) if found}

    def notes(self, which: str) -> dict[str, Any] | None:
        """Return the notes of the ``latest`` or ``best`` checkpoint, or None where there is none."""
        name = self.index().get(which)
        stored = None if name is None else _read_notes(self.folder / name)
        return None if stored is None else dict(stored["notes"])

    def load(self, tensors: dict[str, Any], which: str) -> None:
        """Load in place, on all ranks together; sharded tensors are re-sharded as needed.

        Args:
            tensors: nested dict like the one saved. The entry ``rng`` is left as it is where the checkpoint has none
                for this rank (another world size).
            which: ``latest`` or ``best``.

        Raises:
            CheckpointError: there is none, it does not fit the model, or it holds more than tensors.
        """
        name = on_rank_0(lambda: self.index().get(which))
        if name is None:
            raise CheckpointError(f"no {which} checkpoint in {self.folder}; was the run trained?")
        self._load(tensors, self.folder / name)

    def _load(self, tensors: dict[str, Any], path: Path) -> None:
        with _as_checkpoint_error(f"cannot load {path}"):
            stored = TensorReader(str(path)).read_metadata().state_dict_metadata
            rng = {k: v for k, v in tensors.get("rng", {}).items() if f"rng.{k}" in stored}
            wanted = _without_empty({**tensors, "rng": rng})
            _check_names(wanted, stored)
            dcp.load(wanted, storage_reader=TensorReader(str(path)))

    def _write(self, tensors: Mapping[str, Any], name: str) -> Path:
        """Write the tensors to a folder of another name, and return it."""
        partial = self.folder / f".partial-{name}"
        on_rank_0(lambda: self._prepare(partial))
        with _as_checkpoint_error(f"cannot save {self.folder / name}"):
            dcp.save(_without_empty(tensors), checkpoint_id=partial, planner=_WithoutCopies())
        return partial

    def _prepare(self, partial: Path) -> None:
        for torn in self.folder.glob(".partial-*"):
            shutil.rmtree(torn, ignore_errors=True)
        partial.mkdir(parents=True)

    def _publish(self, partial: Path, notes: Mapping[str, Any], step: int, best: bool) -> None:
        _write_notes(partial, notes, best)
        _replace(partial, self.folder / _name(step))
        self._prune()

    def _prune(self) -> None:
        chosen = self.index().values()
        surplus = [p for p in sorted(self.folder.glob("step-*")) if p.name not in chosen]
        for old in surplus[: max(len(surplus) - (self.keep - 1), 0)]:  # the latest counts as kept
            shutil.rmtree(old, ignore_errors=True)


def _replace(partial: Path, final: Path) -> None:
    """Put a whole checkpoint in the place of one of the same step, which stays usable until then."""
    old = final.with_name(final.name + _OLD)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _write_notes(folder: Path, notes: Mapping[str, Any], best: bool) -> None:
    partial = folder / ".notes.json"
    with partial.open("w") as file:
        file.write(json.dumps({"is_best": best, "notes": notes}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / "notes.json")


def _read_notes(folder: Path) -> dict[str, Any] | None:
    """Return what was written beside a checkpoint, or None where it is not whole."""
    if not (folder / ".metadata").is_file():
        return None
    try:
        stored = json.loads((folder / "notes.json").read_text())
    except (FileNotFoundError, ValueError):  # another failure to read must not pass for a torn checkpoint
        return None
    return stored if isinstance(stored, dict) and {"is_best", "notes"} <= stored.keys() else None


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
        with warnings.catch_warnings():
            # DCP reads attributes of TorchRec's tables that warn for themselves.
            warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
            yield
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
        raise CheckpointError(f"{what}: {reason.strip()}") from error
