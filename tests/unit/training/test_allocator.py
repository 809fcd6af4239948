"""Freed memory stays with the process; a process of its own, since the setting is for good."""

import os
import subprocess
import sys

import pytest

from torchrec_mtl.training import allocator, distributed

FAULTS = """
import resource, sys
import numpy as np
from torchrec_mtl.training.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for _ in range(3):
    arrays = [np.ones(1 << 20) for _ in range(8)]  # 64 MiB
    del arrays
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    arrays = [np.ones(1 << 20) for _ in range(8)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(mode: str, **variables: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(allocator.platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")
def test_memory_that_a_step_freed_is_there_for_the_next():
    kept, faults = run("keep")
    assert kept == "True"
    assert faults < 1000  # 10 x 64 MiB are 163,840 pages
    assert run("leave")[1] > 10_000


def test_what_the_user_set_is_left_as_it_is():
    assert run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


def test_every_rank_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(distributed, "keep_freed_memory", lambda: calls.append(None))
    with distributed.process_group("cpu"):
        assert calls == [None]
