"""Checkpoints: tensors by `torch.distributed.checkpoint`, everything else in a JSON beside it; nothing is unpickled freely."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta

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


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used."""


class _MetadataUnpickler(pickle.Unpickler):
    """DCP pickles its metadata; a crafted file could run anything, so only its own handful of classes is let in."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if module in _ALLOWED_MODULES or (module, name) in _ALLOWED_NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused {module}.{name}")


class TensorReader(FileSystemReader):
    """Reads checkpoints that hold tensors only; refuses foreign classes and pickled entries."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the metadata through the allow-list."""
        path = Path(str(self._get_metadata_path(kwargs.get("rank"))))
        with path.open("rb") as file:
            metadata: Metadata = _MetadataUnpickler(file).load()
        pickled = [k for k, v in metadata.state_dict_metadata.items() if isinstance(v, BytesStorageMetadata)]
        if pickled:
            raise pickle.UnpicklingError(f"refused pickled entries {pickled[:3]}")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class Checkpoints:
    """The checkpoints of a run: ``step-*`` folders, and an index that names the latest and the best.

    A checkpoint is written under another name and renamed when whole, so that a torn one is never chosen.

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
        """
        name = f"step-{step:09d}"
        partial, final = self.folder / f".partial-{name}", self.folder / name
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        dcp.save(dict(tensors), checkpoint_id=partial)
        if dist.get_rank() == 0:
            (partial / "notes.json").write_text(json.dumps(notes, indent=2) + "\n")
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            index = {**self.index(), "latest": name}
            if best:
                index["best"] = name
            self._write_index(index)
            self._prune(index)
        dist.barrier()

    def index(self) -> dict[str, str]:
        """Return ``{"latest": name, "best": name}``, as far as there are any."""
        path = self.folder / "index.json"
        if not path.is_file():
            return {}
        index: dict[str, str] = json.loads(path.read_text())
        return {key: name for key, name in index.items() if (self.folder / name / "notes.json").is_file()}

    def _write_index(self, index: Mapping[str, str]) -> None:
        partial = self.folder / ".index.json"
        partial.write_text(json.dumps(index, indent=2) + "\n")
        os.replace(partial, self.folder / "index.json")

    def _prune(self, index: Mapping[str, str]) -> None:
        steps = sorted(p for p in self.folder.glob("step-*") if p.name not in index.values())
        surplus = len(steps) + 1 - self.keep  # the latest counts
        for old in steps[: max(surplus, 0)]:
            shutil.rmtree(old, ignore_errors=True)

    def notes(self, which: str) -> dict[str, Any] | None:
        """Return the notes of the ``latest`` or ``best`` checkpoint, or None where there is none."""
        name = self.index().get(which)
        if name is None:
            return None
        notes: dict[str, Any] = json.loads((self.folder / name / "notes.json").read_text())
        return notes

    def load(self, tensors: dict[str, Any], which: str) -> None:
        """Load in place, on all ranks together; sharded tensors are re-sharded as needed.

        Args:
            tensors: nested dict like the one saved. The entry ``rng`` is left as it is where the checkpoint has none for
                this rank (another world size).
            which: ``latest`` or ``best``.

        Raises:
            CheckpointError: there is none, it does not fit the model, or it holds more than tensors.
        """
        name = self.index().get(which)
        if name is None:
            raise CheckpointError(f"no {which} checkpoint in {self.folder}; was the run trained?")
        path = self.folder / name
        try:
            stored = TensorReader(str(path)).read_metadata().state_dict_metadata
            wanted = {k: v for k, v in tensors.items() if k != "rng"}
            wanted["rng"] = {k: v for k, v in tensors.get("rng", {}).items() if f"rng.{k}" in stored}
            dcp.load(wanted, storage_reader=TensorReader(str(path)))
        except BaseException as error:  # DCP's CheckpointException is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
            raise CheckpointError(f"cannot load {path}: {reason.strip()}") from error
