"""Another run as a source of tensors: its config as written, and which of its checkpoints is meant."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from torchrec_mtl.checksums import damage
from torchrec_mtl.config.text import read_plain
from torchrec_mtl.training.checkpoint import CheckpointError, Checkpoints
from torchrec_mtl.training.checkpoint_notes import read_notes
from torchrec_mtl.training.run_dir import best_or_latest

Which = Literal["best", "latest"]


@dataclass(frozen=True)
class StoredRun:
    """A checkpoint of a run.

    Attributes:
        path: folder of the checkpoint.
        step: its step.
        updates: steps that its tables have seen.
        checksums: of the checkpoint's files, as noted when it was written.
        config: the run's config as plain values; not checked, it may be of an older version.
    """

    path: Path
    step: int
    updates: int
    checksums: Mapping[str, str]
    config: Mapping[str, Any]

    @classmethod
    def find(cls, run: str | Path, which: Which | None = None) -> Self:
        """Look a run up.

        Args:
            run: its ``run_dir``.
            which: the checkpoint; by default the best where evaluations chose one.

        Raises:
            ValueError: it is no run.
            CheckpointError: it has no such checkpoint.
        """
        run_dir = Path(run)
        config = read_plain(run_dir / "config.yaml")
        if not isinstance(config, dict) or not {"data", "head", "run_dir"} <= config.keys():
            raise ValueError(f"{run_dir} is not a run: it has no config.yaml of one. Give the run_dir of a training")
        checkpoints = Checkpoints(run_dir)
        which = which or ("best" if best_or_latest(checkpoints) == "best" else "latest")
        names = checkpoints.index()
        folder = checkpoints.folder / names.get(which, "")
        written = read_notes(folder) if which in names else None
        if written is None:
            hint = "it has a latest one" if names else "was the run trained?"
            raise CheckpointError(f"no {which} checkpoint in {checkpoints.folder}; {hint}")
        step = int(written.notes["step"])
        return cls(folder, step, int(written.notes.get("updates", step)), written.checksums, config)

    def check(self) -> None:
        """Raise ``CheckpointError`` where a file is not what was written."""
        for name, expected in self.checksums.items():
            if (problem := damage(self.path / name, expected)) is not None:
                raise CheckpointError(f"{self.path} is damaged: {problem}; take another checkpoint")

    def digest(self) -> str:
        """Return what tells this checkpoint from all others, hexadecimal; empty where it has no checksums."""
        listed = "\n".join(f"{name} {value}" for name, value in sorted(self.checksums.items()))
        return hashlib.sha256(listed.encode()).hexdigest() if listed else ""

    def section(self, *keys: str) -> Any:  # noqa: ANN401
        """Return what the config has under ``keys``, None where nothing."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value
