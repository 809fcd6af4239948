"""The process group: from torchrun's environment, or of one process; TorchRec wants one in every case."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from torchrec_mtl.device import has_cuda
from torchrec_mtl.training.allocator import keep_freed_memory

T = TypeVar("T")


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
    with tempfile.TemporaryDirectory() as folder:
        if "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            store = dist.FileStore(str(Path(folder) / "store"), 1)
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        try:
            yield local
        finally:
            dist.destroy_process_group()


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


def on_rank_0(action: Callable[[], T]) -> T:
    """Run ``action`` on rank 0 and return its result on every rank; an error there is raised on every rank.

    A ``ValueError`` keeps its type, anything else becomes a ``RuntimeError`` on the other ranks. The result travels
    pickled between the job's own processes.
    """
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:  # raised below, after the other ranks know
            failure, outcome[1] = error, (isinstance(error, ValueError), str(error))
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        is_value_error, message = outcome[1]
        raise (ValueError if is_value_error else RuntimeError)(message)
    result: T = outcome[0]
    return result


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
    first = next((m for m in messages if m is not None), None)
    if first is not None:
        raise ValueError(first)
