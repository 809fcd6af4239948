"""The folders of a run's checkpoints: what they are called, which count, and how one takes the place of another.

All of it is the file system's; ranks and tensors are `torchrec_mtl.training.checkpoint`'s.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrec_mtl.atomic import replace_folder
from torchrec_mtl.training.checkpoint_notes import Notes, read_notes

_OLD, _DAMAGED = ".old", "damaged-"


class CheckpointFolders:
    """``step-*`` folders, of which those that are whole count.

    Args:
        folder: that holds them.
        keep: how many to keep beside the best.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def index(self) -> dict[str, str]:
        """Return ``{"latest": name, "best": name}``, as far as there are any; torn checkpoints do not count."""
        read = {folder.name: read_notes(folder) for folder in sorted(self.folder.glob("step-*"))}
        whole = [
            (name, stored)
            for name, stored in read.items()
            if stored is not None and (not name.endswith(_OLD) or read.get(name.removesuffix(_OLD)) is None)
        ]
        best = [(name, stored) for name, stored in whole if stored.best]
        return {key: found[-1][0] for key, found in (("latest", whole), ("best", best)) if found}

    def notes(self, which: str) -> dict[str, Any] | None:
        """Return the notes of the ``latest`` or ``best`` checkpoint, or None where there is none."""
        name = self.index().get(which)
        stored = None if name is None else read_notes(self.folder / name)
        return None if stored is None else dict(stored.notes)

    def begin(self, name: str) -> Path:
        """Make, and return, the folder in which a checkpoint is written; torn ones are removed."""
        for torn in self.folder.glob(".partial-*"):
            shutil.rmtree(torn, ignore_errors=True)
        partial = self.partial(name)
        partial.mkdir(parents=True)
        return partial

    def partial(self, name: str) -> Path:
        """Return where a checkpoint is written."""
        return self.folder / f".partial-{name}"

    def publish(self, name: str, notes: Notes) -> None:
        """Give a checkpoint its name, in the place of one of the same step, which stays usable until then."""
        notes.write(self.partial(name))
        final = self.folder / name
        replace_folder(self.partial(name), final, old=final.with_name(final.name + _OLD))

    def prune(self) -> None:
        """Remove all but the last, the best, and as many before the last as are kept."""
        chosen = self.index().values()
        surplus = [p for p in sorted(self.folder.glob("step-*")) if p.name not in chosen]
        for old in surplus[: max(len(surplus) - (self.keep - 1), 0)]:  # the latest counts as kept
            shutil.rmtree(old, ignore_errors=True)

    def amend(self, name: str, notes: Mapping[str, Any], *, best: bool) -> None:
        """Write other notes beside a checkpoint's tensors."""
        stored = read_notes(self.folder / name)
        Notes(notes, best, {} if stored is None else stored.checksums).write(self.folder / name)

    def put_back(self) -> None:
        """Give a checkpoint its name again whose successor a kill kept from taking its place."""
        for old in self.folder.glob(f"*{_OLD}"):
            final = old.with_name(old.name.removesuffix(_OLD))
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(old, final)

    def set_aside(self, name: str) -> str:
        """Rename a damaged checkpoint, so that it does not count; return its new name."""
        aside = self.folder / f"{_DAMAGED}{name}"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self.folder / name, aside)
        return aside.name


def name_of(step: int) -> str:
    """Return the name of a step's checkpoint."""
    return f"step-{step:09d}"
