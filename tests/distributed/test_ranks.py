"""`run_ranks` returns, raises, and ends: whatever the ranks do."""

import os
import time
import warnings

import pytest
import torch
import torch.distributed as dist

from torchrec_mtl.testing import run_ranks
from torchrec_mtl.testing.ranks import RankError

pytestmark = pytest.mark.distributed


def add_up(value: float) -> tuple[float, str]:
    total = torch.tensor([value + dist.get_rank()])
    dist.all_reduce(total)
    return float(total), os.environ["LOCAL_RANK"]


def fail_on_one() -> None:
    if dist.get_rank() == 1:
        raise KeyError("the reason")
    dist.barrier()


def die_on_one() -> None:
    if dist.get_rank() == 0:
        os._exit(3)
    dist.barrier()


def sleep_on_one() -> None:
    time.sleep(60 * dist.get_rank())


def warn() -> None:
    warnings.warn("as the caller wants", UserWarning, stacklevel=1)


def test_results_come_by_rank() -> None:
    assert run_ranks(add_up, 2, 1.5) == [(4.0, "0"), (4.0, "1")]


def test_the_first_failure_is_raised_and_the_others_end() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 failed.*in fail_on_one.*the reason"):
        run_ranks(fail_on_one, 2)


def test_a_rank_that_dies_is_named() -> None:
    with pytest.raises(RankError, match="rank 0 died with exit code 3"):
        run_ranks(die_on_one, 2)


def test_a_rank_that_hangs_is_killed() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[1\] did not end"):
        run_ranks(sleep_on_one, 2, timeout_s=5.0)


def test_the_callers_warning_filters_hold() -> None:
    with pytest.raises(RankError, match="as the caller wants"):
        run_ranks(warn, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_ranks(warn, 1) == [None]


def test_local_functions_are_refused() -> None:
    with pytest.raises(ValueError, match="top level"):
        run_ranks(lambda: None, 1)
