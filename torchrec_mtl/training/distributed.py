"""The process group: from torchrun's environment, or of one process; TorchRec wants one in every case."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from torchrec_mtl.device import has_cuda
from torchrec_mtl.training.allocator import keep_freed_memory
from torchrec_mtl.whereabouts import whereabouts

T = TypeVar("T")

NEW_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Set to 1, it has torchrun begin every attempt with a store of its own."""

_INTERFACE = "GLOO_SOCKET_IFNAME"
_OF_GLOO = re.compile(r"gloo/|Connection (closed|reset) by peer|Timed out waiting|Broken pipe|Application timeout")


class LostRanksError(RuntimeError):
    """Another rank did not come in time, or ended; what that one says is the cause."""


class OtherRankError(RuntimeError):
    """Rank 0 failed, and tells its users why."""


class RefusedElsewhereError(ValueError):
    """Another rank found the input wrong, and tells its users why."""


def is_of_group(error: BaseException) -> bool:
    """Return whether a collective failed because of another rank: it ended, or did not come in time."""
    if isinstance(error, LostRanksError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or bool(_OF_GLOO.search(str(error)))


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turn the failure of a collective into a `LostRanksError` that says where this rank stood."""
    try:
        yield
    except RuntimeError as error:
        if not is_of_group(error):
            raise
        late = re.search(r"[Tt]imed? ?out", str(error))
        what = (
            "another rank did not come in time (train.timeout_s); if it was only slow, raise that"
            if late
            else "another rank ended; what it says is the cause"
        )
        reason = str(error).strip().splitlines()[0][:200]
        raise LostRanksError(f"{what}. Here: {whereabouts}. ({reason})") from error


@contextmanager
def process_group(device: Literal["auto", "cpu", "cuda"] = "auto", timeout_s: float = 600.0) -> Iterator[torch.device]:
    """Join the group that torchrun describes, or make one of this process alone; yield this rank's device.

    A group that exists already is used and left as it is. The process is set to keep the memory that a step frees
    (`torchrec_mtl.training.allocator`).

    Args:
        device: auto takes CUDA where there is one.
        timeout_s: longest wait for another rank, seconds.
    """
    keep_freed_memory()
    local = _device(device)
    if dist.is_initialized():
        yield local
        return
    # Evaluation gathers on the CPU whatever the device.
    backend = "cpu:gloo,cuda:nccl" if local.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    several = "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ
    reached = nullcontext() if several else _out_of_reach()
    with tempfile.TemporaryDirectory() as folder, naming_lost_ranks(), reached:
        if several:
            _refuse_old_addresses(os.environ)
            whereabouts.at("meeting the other ranks")
            dist.init_process_group(backend, timeout=timeout)
        else:
            store = dist.FileStore(str(Path(folder) / "store"), 1)
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        try:
            yield local
        finally:
            dist.destroy_process_group()


@contextmanager
def _out_of_reach() -> Iterator[None]:
    """Have gloo listen on loopback, later groups too: it opens ports, by default where the host's name leads."""
    loopback = next((name for _, name in socket.if_nameindex() if name in {"lo", "lo0"}), None)
    before = os.environ.get(_INTERFACE)
    if loopback is not None:
        os.environ[_INTERFACE] = loopback
    try:
        yield
    finally:
        os.environ.pop(_INTERFACE, None)
        if before is not None:
            os.environ[_INTERFACE] = before


def _refuse_old_addresses(environment: Mapping[str, str]) -> None:
    """Refuse a restart in which ranks would find the addresses of their dead predecessors.

    torchrun of torch 2.13 keeps its store for all attempts, and a rank that reads an address before its successor has
    written it connects to nobody: half a minute later the restart has failed, too.
    """
    again = environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and environment["WORLD_SIZE"] != "1"
    if again and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            "torchrun restarted the ranks with the store of those before, in which they would find addresses of dead "
            f"ranks. Set {NEW_STORE}=1 in the environment of torchrun, as components/train.py does; the run goes on "
            "from its last checkpoint"
        )


def _device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not has_cuda()):
        return torch.device("cpu")
    if not has_cuda():
        raise ValueError(
            "train.device is cuda, but torch sees no CUDA device, or the FBGEMM installed is the CPU build; "
            "use train.device=cpu, or see `torchrec-mtl doctor`"
        )
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(local)
    return local


def on_rank_0(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run ``action`` on rank 0 and return its result on every rank; an error there is raised on every rank.

    The result travels pickled between the job's own processes.

    Args:
        action: what to do.
        group: whose ranks wait; by default all.

    Raises:
        ValueError: as raised by ``action``; on the other ranks a `RefusedElsewhereError` of the same words.
        OtherRankError: ``action`` raised something else, on the other ranks.
    """
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:  # raised below, after the other ranks know
            failure, outcome[1] = error, (isinstance(error, ValueError), str(error))
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(outcome, src=0, group=group)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        is_value_error, message = outcome[1]
        raise (RefusedElsewhereError if is_value_error else OtherRankError)(message)
    result: T = outcome[0]
    return result


def on_rank_0_alone(action: Callable[[], T]) -> T | None:
    """Run ``action`` on rank 0 and return its result there, None elsewhere; errors are raised as by `on_rank_0`."""
    kept: list[T] = []
    on_rank_0(lambda: kept.append(action()))
    return kept[0] if kept else None


def once_a_node(action: Callable[[], None]) -> None:
    """Run ``action`` in the first process of each node, the others wait; a ``ValueError`` is raised on every rank."""
    message: str | None = None
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        try:
            action()
        except ValueError as error:
            message = str(error)
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    first = next((i for i, m in enumerate(messages) if m is not None), None)
    if first is not None:
        raise (ValueError if first == dist.get_rank() else RefusedElsewhereError)(messages[first])
