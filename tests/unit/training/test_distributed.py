"""The process group comes and goes, and what fails on rank 0 fails everywhere."""

import pytest
import torch
import torch.distributed as dist

from torchrec_mtl.testing import run_ranks
from torchrec_mtl.training.distributed import on_rank_0, once_a_node, process_group


def fail_inside() -> None:
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        raise RuntimeError(f"one rank of {'one' if dist.get_world_size() == 1 else 'several'}")


def test_the_group_is_left_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="one rank of one"):
        fail_inside()
    assert not dist.is_initialized()


def test_a_group_that_exists_is_used_and_kept() -> None:
    with process_group("cpu"):
        with process_group("cpu"):
            pass
        assert dist.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"use train\.device=cpu"), process_group("cuda"):
        pass


def fail(error: Exception) -> None:
    raise error


def collect_errors() -> list[str]:
    """Runs in a rank."""
    found = [str(on_rank_0(dist.get_rank)), str(on_rank_0(lambda: 7))]
    for action in (on_rank_0, once_a_node):
        try:
            action(lambda: fail(ValueError("a wrong value")))
        except ValueError as error:
            found.append(f"ValueError: {error}")
    try:
        on_rank_0(lambda: fail(OSError("a full disk")))
    except (OSError, RuntimeError) as error:
        found.append(str(error))
    return found


@pytest.mark.distributed
def test_errors_of_rank_0_are_raised_on_every_rank() -> None:
    expected = ["0", "7", "ValueError: a wrong value", "ValueError: a wrong value", "a full disk"]
    assert run_ranks(collect_errors, 2) == [expected, expected]
