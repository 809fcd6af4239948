"""Two nodes, each a network namespace with its own address and its own torchrun agent; one of them dies."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.specs import macros

import torchrec_mtl
from components.train import train
from tests.runs import ADAPTIVE, BATCH, differences, raw_config, saved, train_ranks, write
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.training.checkpoint import Checkpoints

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS, CHECKPOINT_EVERY = 100, 8
PORT = 29517
# A lost node is struck off after 3 missed heartbeats of a second, and nobody else is waited for longer than 3 seconds.
# The name of this machine leads both nodes to their own loopback: the first must be told that the address is its own.
RENDEZVOUS = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=60,is_host={host}"


@dataclass
class Node:
    """A namespace; its end of the link has the same name as it."""

    name: str
    address: str
    log: Path
    agents: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, config: Path, first: str) -> subprocess.Popen[str]:
        """What the component would start on a node: an agent, here with one rank. Nodes meet at the first address."""
        env = {
            "GLOO_SOCKET_IFNAME": self.name,
            "LOGLEVEL": "INFO",  # torchrun tells when nodes have met
            "PET_LOCAL_ADDR": self.address,
        }
        rendezvous = RENDEZVOUS.format(host=str(first == self.address).lower())
        app = train(config=str(config), nodes="1:2", cpu=1, env=env, rdzv_port=PORT, rdzv_conf=rendezvous)
        filled_in = macros.Values(img_root="", app_id="two-nodes", replica_id="0", rank0_env="TORCHX_RANK0_HOST")
        role = filled_in.apply(app.roles[0])
        root = str(Path(torchrec_mtl.__file__).parents[1])
        with self.log.open("a") as out:
            agent = subprocess.Popen(
                ["ip", "netns", "exec", self.name, role.entrypoint, *role.args],
                env={**os.environ, **role.env, "TORCHX_RANK0_HOST": first, "PYTHONPATH": root},
                stdout=out, stderr=subprocess.STDOUT, text=True, cwd=self.log.parent,
            )  # fmt: skip
        self.agents.append(agent)
        return agent

    def processes(self) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in done.stdout.split()]

    def ranks(self) -> list[int]:
        """Children of the agent, which bash and `ip netns exec` have become."""
        return [pid for pid in self.processes() if _parent(pid) == self.agents[-1].pid]

    def kill(self) -> None:
        """Agent and ranks at once, as when the machine goes down."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for agent in self.agents:
            agent.wait(timeout=20)

    def said(self, text: str, times: int = 1) -> bool:
        return self.log.is_file() and self.log.read_text().count(text) >= times


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return -1


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two namespaces that reach each other, and nothing else; addresses are those for documents (RFC 5737)."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` on this machine (package iproute2)")
    mark = f"mtl{os.getpid() % 100_000_000}"  # a link has at most 15 characters
    a = Node(f"{mark}a", "192.0.2.1", tmp_path / "a.log")
    b = Node(f"{mark}b", "192.0.2.2", tmp_path / "b.log")
    try:
        try:
            for node in (a, b):
                ip("netns", "add", node.name)
            ip("link", "add", a.name, "netns", a.name, "type", "veth", "peer", "name", b.name, "netns", b.name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        for node in (a, b):
            ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", node.name)
            ip("-n", node.name, "link", "set", node.name, "up")
            ip("-n", node.name, "link", "set", "lo", "up")
        yield a, b
    finally:
        for node in (a, b):
            node.kill()
            subprocess.run(["ip", "netns", "delete", node.name], check=False, capture_output=True)


def wait_for(what: str, done: Callable[[], bool], *nodes: Node, timeout_s: float = 120) -> float:
    """Return after how many seconds it was so."""
    start = time.monotonic()
    while not done():
        if time.monotonic() > start + timeout_s:
            logs = "\n".join(f"== {node.log.name}\n{node.log.read_text()[-5000:]}" for node in nodes)
            pytest.fail(f"waited {timeout_s:g} s for {what}\n{logs}")
        time.sleep(0.02)
    return time.monotonic() - start


def steps(run_dir: Path) -> list[int]:
    """Of the lines of metrics.jsonl; the last may be half written."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def config_of(file: str, run_dir: Path) -> dict[str, Any]:
    optim = {"sparse": ADAPTIVE["sparse"], "dense": {"type": "sgd", "lr": 0.05}}  # Adam makes much of rounding
    train = {"log_every": 1, "checkpoint_every": CHECKPOINT_EVERY, "timeout_s": 60, "device": "cpu"}
    return raw_config(file, run_dir, optim=optim, train=train)


def test_a_dead_node_is_left_behind_and_comes_back(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    a, b = nodes
    file = write(tmp_path / "train.parquet", make_table(STEPS * BATCH, seed=5))
    whole, parts = config_of(file, tmp_path / "whole"), config_of(file, tmp_path / "parts")
    config, run_dir = tmp_path / "config.yaml", tmp_path / "parts"
    config.write_text(yaml.safe_dump(parts))
    for node in nodes:
        node.start(config, a.address)
    wait_for("steps after a checkpoint", lambda: len(steps(run_dir)) > CHECKPOINT_EVERY + 2, *nodes)

    b.kill()
    killed = max(steps(run_dir))
    noticed = wait_for("the failed exchange", lambda: a.said("will restart worker group"), *nodes)
    alone = noticed + wait_for("the other node alone", lambda: a.said("group_world_size=1"), *nodes)
    wait_for("its rank", lambda: len(a.ranks()) == 1, *nodes)
    (rank,) = a.ranks()
    going_on = alone + wait_for("training to go on", lambda: a.said("going on after step"), *nodes)
    wait_for("a step of one node", lambda: "]:step" in a.log.read_text().split("going on after step ")[1], *nodes)
    # The one rank waits, as in a long step, so that the run is not over before the other node is back.
    os.kill(rank, signal.SIGSTOP)
    checkpoint = int(a.log.read_text().split("going on after step ")[1].split()[0])
    assert 0 < checkpoint <= killed
    assert killed - checkpoint <= CHECKPOINT_EVERY + 1
    assert max(steps(run_dir)) < STEPS
    b.start(config, a.address)
    wait_for("the node that came back", lambda: a.said("Detected 1 new nodes"), *nodes)
    os.kill(rank, signal.SIGCONT)
    wait_for("both nodes", lambda: a.said("group_world_size=2", times=2), *nodes)
    # Asked to end, it finished its step and saved: the two go on where the one was.
    wait_for("training to go on", lambda: a.said("going on after step", times=2), *nodes)
    assert a.said("stopped after step")
    for node in nodes:
        wait_for("the end", lambda agent=node.agents[-1]: agent.poll() is not None, *nodes)
        assert node.agents[-1].returncode == 0, node.log.read_text()[-5000:]

    assert steps(run_dir) == list(range(1, STEPS + 1))
    assert Checkpoints(run_dir).notes("latest")["step"] == STEPS
    assert train_ranks(whole, 1).step == STEPS
    found = differences(saved(tmp_path / "whole"), saved(run_dir))
    print(
        f"killed after step {killed}: noticed after {noticed:.1f} s, alone after {alone:.1f} s, training after "
        f"{going_on:.1f} s from step {checkpoint}; 2 -> 1 -> 2 nodes against 1 process: {found}"
    )
    assert max(found.values()) < 1e-5
