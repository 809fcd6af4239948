"""One job, the same for every contender: data, columns, sizes of the model, and how to train it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

MODELS = ("mmoe", "ple", "esmm", "shared_bottom")

STARTED = "PEERS_STARTED"  # environment variable: time.monotonic() of the parent just before it starts a runner
MARK = "RESULT "  # before the line of JSON that a runner prints at its end


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a runner is told.

    Attributes:
        model: one of `MODELS`.
        train: Parquet file.
        test: Parquet file, evaluated once, at the end.
        sparse: column of ids -> rows of its table.
        dense: numeric columns, already standardised.
        tasks: label columns (0/1); with ESMM the second one needs the first.
        folder: scratch, for what a contender writes.
        seed: of initial values and of the order of rows.
        epochs: passes over the training file.
        batch_size: rows of a training step.
        eval_batch_size: rows of an evaluation step.
        dim: width of every embedding.
        lr: Adam's learning rate; for ours of the dense part only.
        table_lr: learning rate of our fused row-wise Adagrad; the peers' tables use Adam and ``lr``.
        init_std: standard deviation of the initial rows.
        experts: of MMoE.
        shared_experts: of PLE.
        task_experts: of PLE, for each task.
        hidden: widths of an expert, of the shared bottom, or of each ESMM network.
        tower: widths of each task's tower.
    """

    model: str
    train: str
    test: str
    sparse: Mapping[str, int]
    dense: tuple[str, ...]
    tasks: tuple[str, ...]
    folder: str
    seed: int = 0
    epochs: int = 1
    batch_size: int = 2048
    eval_batch_size: int = 8192
    dim: int = 16
    lr: float = 1e-3
    table_lr: float = 0.1
    init_std: float = 1e-4
    experts: int = 4
    shared_experts: int = 1  # DeepCTR-Torch makes as many shared experts as a task has
    task_experts: int = 1
    hidden: tuple[int, ...] = (128, 64)
    tower: tuple[int, ...] = (64,)

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)

    def digest(self) -> str:
        """Return a hash of what is asked for, whatever the folder."""
        text = dataclasses.replace(self, folder="").to_json()
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
