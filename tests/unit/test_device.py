"""A fork server must not ask CUDA for devices: its children could not use one, nor train with Adam on the CPU."""

import os

from torchrec_mtl.bench.workers import _environment
from torchrec_mtl.device import FORKABLE
from torchrec_mtl.testing.ranks import run_ranks


def test_the_servers_of_bench_are_started_so_and_the_shell_is_left_as_it_was(monkeypatch):
    for name in FORKABLE:
        monkeypatch.delenv(name, raising=False)
    with _environment():
        assert {name: os.environ.get(name) for name in FORKABLE} == FORKABLE
    assert not set(FORKABLE) & set(os.environ)


def test_so_are_those_of_ranks():
    assert run_ranks(environment, 1) == [FORKABLE]


def environment() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in FORKABLE}
