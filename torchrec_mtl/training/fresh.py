"""``--fresh`` once a job: ranks that torchrun starts again must not forget what those before them did."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch.distributed as dist

from torchrec_mtl.atomic import write_text
from torchrec_mtl.training.distributed import on_rank_0

FILE = ".fresh"


def is_begun(run_dir: Path) -> bool:
    """Return whether the job of these ranks has started over in ``run_dir`` already; on all ranks together.

    torchrun starts ranks again with the arguments of the first time. Its agent stays the same, on one node at least.
    """
    agents = _agents()
    return on_rank_0(lambda: bool(agents & _noted(run_dir)))


def mark_begun(run_dir: Path) -> None:
    """Note that the job of these ranks has started over; on all ranks together."""
    agents = _agents()
    if agents:
        on_rank_0(lambda: write_text(run_dir / FILE, "\n".join(sorted(agents)) + "\n"))


def _agents() -> frozenset[str]:
    """Return the agents of torchrun that started the ranks, by host, process, and time; none without torchrun."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, _own_agent())
    return frozenset(agent for agent in found if agent is not None)


def _own_agent() -> str | None:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    agent = os.getppid()
    # After the name in brackets; the 20th of the rest is when it started, since a number may be given again.
    started = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {agent} {started}"


def _noted(run_dir: Path) -> frozenset[str]:
    path = run_dir / FILE
    return frozenset(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else frozenset()
