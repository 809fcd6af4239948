"""The process group comes and goes, and what fails on rank 0 fails everywhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist

from torchrec_mtl.testing import run_ranks
from torchrec_mtl.training.distributed import (
    NEW_STORE,
    LostRanksError,
    naming_lost_ranks,
    on_rank_0,
    once_a_node,
    process_group,
)
from torchrec_mtl.whereabouts import whereabouts


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


def test_a_restart_that_would_find_dead_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts ranks again, without the setting that the components make."""
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(ValueError, match=f"Set {NEW_STORE}=1 in the environment of torchrun"), process_group("cpu"):
        pytest.fail("joined")


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:12", "another rank ended"),
        ("[/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv", "did not come in time"),
        ("Application timeout caused pair closure", "did not come in time"),
    ],
)
def test_a_lost_rank_is_told_with_where_this_one_stands(message: str, says: str) -> None:
    whereabouts.at("training", step=7, phase="joint")
    with pytest.raises(LostRanksError, match=rf"{says}.*rank 0, training, after step 7, phase 'joint'"), naming_twice():
        raise RuntimeError(message)


@contextmanager
def naming_twice() -> Iterator[None]:
    """As a run within the process group of a command."""
    with naming_lost_ranks(), naming_lost_ranks():
        yield


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^size mismatch$"), naming_lost_ranks():
        raise RuntimeError("size mismatch")
    with pytest.raises(KeyError), naming_lost_ranks():
        raise KeyError("x")
