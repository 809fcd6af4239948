"""What a run leaves in its ``run_dir``, and whose it is: nothing is deleted that was not written by a run."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import torch.distributed as dist

from torchrec_mtl import device
from torchrec_mtl.atomic import write_text
from torchrec_mtl.config.checks_device import for_the_cpu
from torchrec_mtl.config.differences import differences
from torchrec_mtl.config.later import with_later_keys
from torchrec_mtl.config.load import ConfigError, dump, load_config
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.config.text import read_plain
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.training.checkpoint import CheckpointError, Checkpoints
from torchrec_mtl.training.distributed import on_rank_0, on_rank_0_alone
from torchrec_mtl.training.fresh import FILE as FRESH

# Keys that may differ when a run goes on: they change what is shown, kept, or how far it goes, not what a step does.
# The training data is guarded by its fingerprint, so the files may have moved.
_MAY_DIFFER = frozenset(
    [
        *(f"data.{key}" for key in ("prefetch", "prepare", "test", "train")),
        *(f"features.tables.*.{key}" for key in ("cache_load_factor", "kernel", "sharding")),
        "init_from",
        "run_dir",
        *(f"train.{key}" for key in ("checkpoint_every", "device", "keep", "log_every", "pipeline", "references")),
        *(f"train.{key}" for key in ("save", "sinks", "timeout_s", "window")),
    ]
)
_LOCK = ".lock"
_FILES = (
    *("statistics.json", "init_from.json", "metrics.json", "metrics.jsonl", "findings.json", "calibration.json"),
    *("ranks.json", "report.html"),
    "config.yaml",  # last: a folder without it is nobody's
)


def enter(run_dir: Path, config: RunConfig, *, fresh: bool) -> None:
    """Make ``run_dir`` this run's, or make sure that it is; on all ranks together.

    Raises:
        ConfigError: it holds another run.
        CheckpointError: it holds checkpoints of which none can be read.
        ValueError: its config.yaml is not of a run, or not all ranks see the same folder.
    """
    on_rank_0(lambda: _enter(run_dir, config, fresh))
    _check_shared(run_dir)


def _enter(run_dir: Path, config: RunConfig, fresh: bool) -> None:
    saved = run_dir / "config.yaml"
    old = _read_config(saved)
    checkpoints = Checkpoints(run_dir)
    if fresh:
        if old is not None:  # without a config of ours, what lies here is not ours
            _forget(run_dir)
    elif old is not None and checkpoints.index():
        if changed := differences(with_later_keys(old, config), config.model_dump(mode="json"), may_differ=_may_differ):
            where = f"{run_dir} holds another run (go on with its config, take another run_dir, or --fresh)"
            raise ConfigError(changed, source=where)
    elif any(checkpoints.folder.glob("step-*")) or any(checkpoints.folder.glob("damaged-*")):
        raise CheckpointError(
            f"{checkpoints.folder} holds checkpoints of which none can be read here; mend them, take another run_dir, "
            "or start over with --fresh"
        )
    elif old is not None:
        _forget(run_dir)  # the run never came to a checkpoint: there is nothing to lose
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(saved, dump(config))


@contextmanager
def locked(run_dir: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other processes from writing to ``run_dir``, on all ranks together; a killed process holds no lock.

    Args:
        run_dir: of the run.
        wait_s: seconds to wait for another process to end; under torchrun it may be of this job, on a lost node.

    Raises:
        ValueError: another process writes there, or no folder can be made there.
    """
    held = on_rank_0_alone(lambda: lock(run_dir, wait_s))
    try:
        yield
    finally:
        if held is not None:
            if run_dir.is_dir() and [path.name for path in run_dir.iterdir()] == [_LOCK]:  # refused before it began
                (run_dir / _LOCK).unlink()
                run_dir.rmdir()
            held.close()


def lock(run_dir: Path, wait_s: float = 0.0) -> TextIO:
    """Take the lock of a run's folder, which is held until the file returned is closed, or the process ends.

    Args:
        run_dir: of the run.
        wait_s: seconds to wait for another process to end.

    Raises:
        ValueError: another process holds it, or no folder can be made there.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"run_dir {run_dir} cannot be written: {error.strerror}; take another run_dir") from error
    deadline = time.monotonic() + wait_s
    try:
        while not _is_taken(file):
            if time.monotonic() >= deadline:
                raise BlockingIOError
            time.sleep(0.5)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"run_dir {run_dir} is being written by {holder}; wait for it, stop it, or take another run_dir"
        ) from None
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _is_taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def leave_nothing(run_dir: Path) -> None:
    """Take back what a run has made, where something turns out to be bad before its first step."""
    if any(run_dir.glob("checkpoints/*step-*")) or (run_dir / "metrics.jsonl").exists():
        return
    for name in ("statistics.json", "init_from.json", FRESH, "config.yaml", _LOCK):
        (run_dir / name).unlink(missing_ok=True)
    shutil.rmtree(run_dir / "checkpoints" / "origin", ignore_errors=True)
    for folder in (run_dir / "checkpoints", run_dir):
        with suppress(OSError):  # something else lies there, or nothing
            folder.rmdir()


def _read_config(path: Path) -> Mapping[str, object] | None:
    if not path.is_file():
        return None
    config = read_plain(path)
    if not isinstance(config, dict) or not {"data", "head", "run_dir"} <= config.keys():
        raise ValueError(f"{path} is there, but is not the config of a run; take another run_dir")
    return config


def _forget(run_dir: Path) -> None:
    checkpoints = (f"checkpoints/{name}" for name in ("step-*", "origin*", ".partial-*", "damaged-*"))
    for pattern in (*checkpoints, "tb"):
        for folder in run_dir.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
    for name in _FILES:
        (run_dir / name).unlink(missing_ok=True)


def _check_shared(run_dir: Path) -> None:
    """Every rank writes its part of a checkpoint: all must see one folder."""

    def leave_token() -> str:
        name = f".token-{uuid.uuid4().hex}"
        (run_dir / name).touch()
        return name

    token = run_dir / on_rank_0(leave_token)  # where this rank's run_dir is: it may be another path
    seen = [False] * dist.get_world_size()
    dist.all_gather_object(seen, token.exists())
    on_rank_0(token.unlink)
    if blind := [rank for rank, sees in enumerate(seen) if not sees]:
        raise ValueError(f"run_dir {run_dir} must lie on storage that all nodes share; ranks {blind} do not see it")


def _may_differ(path: str) -> bool:
    return re.sub(r"\.\d+\.", ".*.", path) in _MAY_DIFFER


def best_or_latest(checkpoints: Checkpoints) -> str:
    """Return which checkpoint to use: the best where evaluations chose one."""
    return "best" if "best" in checkpoints.index() else "latest"


def load_run(run: str | Path) -> tuple[RunConfig, Statistics, Checkpoints]:
    """Return config, statistics, and checkpoints of a trained run, ready for inference on this machine.

    The device is this machine's, and the tables get an optimizer that any device has: it is not used. Nor are sinks.

    Raises:
        ValueError: it is not a trained run.
    """
    run_dir = Path(run)
    for name in ("config.yaml", "statistics.json", "checkpoints"):
        if not (run_dir / name).exists():
            raise ValueError(f"{run_dir} is not a trained run: {name} is missing. Give the run_dir of a training")
    unused = ["optim.sparse={type: sgd}", "train.sinks=[]"]
    placement = [] if device.has_cuda() else for_the_cpu(_read_config(run_dir / "config.yaml") or {})
    config = load_config(run_dir / "config.yaml", ["train.device=auto", *unused, *placement])
    return config, Statistics.load(run_dir / "statistics.json"), Checkpoints(run_dir)
