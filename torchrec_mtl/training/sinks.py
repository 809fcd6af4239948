"""Where a run's numbers go: JSON lines, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from torchrec_mtl.atomic import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricSink(Protocol):
    """Takes named numbers of a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers; names are ``train/...``, ``eval/task/metric``, ``test/task/metric``."""

    def close(self) -> None:
        """Write what is held back."""


class JsonLinesSink:
    """One JSON object a line: ``{"step": ..., "time": ..., name: value, ...}``; a resumed run goes on in the same file.

    Args:
        path: of the file.
        last_step: of the checkpoint that the run goes on from; lines of later steps, left by a run that was killed, are
            dropped.
        settled: what follows the last step, such as its evaluation, is in the checkpoint; if not, it is done again, and
            lines of it are dropped, too.
    """

    def __init__(self, path: Path, last_step: int | None = None, *, settled: bool = True) -> None:
        if last_step is not None and path.is_file():
            _drop_later(path, last_step, settled)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _drop_later(path: Path, last_step: int, settled: bool) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(path, "".join(line for line in lines if _stays(line, last_step, settled)))


def _stays(line: str, last_step: int, settled: bool) -> bool:
    """Return whether a line is of what the checkpoint has seen; one that a kill cut short is not."""
    try:
        values = json.loads(line)
        step = int(values["step"])
    except (ValueError, KeyError, TypeError):
        return False
    return step < last_step or (step == last_step and (settled or any(name.startswith("train/") for name in values)))


class TensorBoardSink:
    """Scalars for TensorBoard."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder, self._first_step = folder, first_step

    @cached_property
    def _writer(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter  # slow to import: not before there is something to write

        return SummaryWriter(str(self._folder), purge_step=self._first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        if "_writer" in vars(self):
            self._writer.close()


class ProgressSink:
    """A bar with ETA on a terminal; a line each time elsewhere (a log file, TorchX's pipes)."""

    def __init__(self, console: Console, total: int, first_step: int) -> None:
        self._console, self._total, self._first = console, total, first_step
        self._start = time.monotonic()
        self._bar: Progress | None = None
        self._id: TaskID | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
            self._id = self._bar.add_task("train", total=total, completed=first_step, note="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, completed=step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show losses and speed, or the metrics of an evaluation."""
        note = "  ".join(f"{_short(name)} {value:.4g}" for name, value in values.items() if _shown(name))
        if not note:
            return
        if self._bar is not None and self._id is not None:
            if any(name.startswith("train/") for name in values):
                self._bar.update(self._id, completed=step, note=note)
            else:
                self._bar.console.print(f"step {step}  {note}", highlight=False)
            return
        self._console.print(
            f"step {step}/{self._total}  ETA {self._eta(step)}  {note}", highlight=False, soft_wrap=True
        )

    def say(self, text: str) -> None:
        """Show a line."""
        console = self._console if self._bar is None else self._bar.console
        console.print(text, highlight=False, soft_wrap=True)

    def _eta(self, step: int) -> str:
        done = max(step - self._first, 1)
        seconds = int((time.monotonic() - self._start) / done * max(self._total - step, 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


_EVAL_METRICS = frozenset({"auc", "nrmse", "gini", "loss"})


def _shown(name: str) -> bool:
    parts = name.split("/")
    if parts[0] == "train":
        return parts[1] in {"loss", "samples_per_s"}
    return parts[0] == "eval" and (parts[-1] in _EVAL_METRICS or parts[-1].startswith("recall@"))


def _short(name: str) -> str:
    split, *rest = name.split("/")
    return "/".join(rest) if split == "train" else name
