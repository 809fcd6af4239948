"""Nobody outside can reach a run."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch.distributed as dist

from benchmarks.bad_inputs_tries import call
from torchrec_mtl.training.distributed import process_group


def listening():
    """Addresses on which this process waits for others."""
    own = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            own.add(os.readlink(f"/proc/self/fd/{name}").removeprefix("socket:[").removesuffix("]"))
        except OSError:  # that of the listing
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *others = line.split()
            if state == "0A" and others[5] in own:
                found.append(address.partition(":")[0])
    return found


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="Linux tells who listens")
def test_one_process_listens_on_loopback_alone_even_where_gloo_is_told_another_interface(bench, tmp_path, monkeypatch):
    other = next((name for _, name in socket.if_nameindex() if name != "lo"), "lo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", other)
    seen = []
    train = "torchrec_mtl.training.run.prepare_data"
    monkeypatch.setattr(train, lambda *_: seen.append(listening()))
    done = call(["train", bench.folder / "config.yaml", f"run_dir={tmp_path / 'run'}", "train.save=background"])
    assert done.status == 0, done.said
    assert set(seen[0]) == {"0100007F"}  # gloo, 127.0.0.1
    with process_group("cpu"):
        dist.new_group(backend="gloo")
        assert set(listening()) == {"0100007F"}
    assert os.environ["GLOO_SOCKET_IFNAME"] == other
