"""The peers, and one virtual environment for each of them under .venv-peers/NAME."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-peers"
TORCH = "torch==2.13.0"  # as ours, requirements/cpu.txt
OURS = "ours"


@dataclass(frozen=True)
class Peer:
    """A library beside ours.

    Attributes:
        name: of its environment, and of its runner ``run_NAME.py``.
        distribution: its package, with the version.
        module: imported once after the installation: it must work, and Python compiles it.
        requirements: further packages, pinned.
        alone: install the distribution without what it asks for; the requirements then have to be all it needs.
        lacks: model -> why it is not compared.
    """

    name: str
    distribution: str
    module: str
    requirements: tuple[str, ...]
    alone: bool = False
    lacks: Mapping[str, str] | None = None


_NEW = ("numpy==2.4.6", "pyarrow==26.0.1", "scikit-learn==1.9.1", "scipy==1.17.1")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("rechub", "torch-rechub==0.9.0", "torch_rechub.trainers", (*_NEW, "pandas==3.1.1")),
        # It imports requests and does not ask for it.
        Peer("deepctr", "deepctr-torch==0.3.0", "deepctr_torch.models.multitask", (*_NEW, "requests==2.34.2")),
        Peer(
            "fuxictr",
            "fuxictr==2.3.10",
            "fuxictr.pytorch.models",
            (*_NEW, "pandas==3.1.1", "polars==2.1.0", "ray[data]==2.60.0"),
            lacks={"esmm": "not in this peer"},
        ),
        # It asks for torchvision, which nothing here needs, and which must fit torch's build.
        Peer(
            "nextrec",
            "nextrec==0.6.14",
            "nextrec.models.multitask.mmoe",
            (
                "numpy==1.26.4",
                "pandas==1.5.3",
                "pyarrow==12.0.1",
                "scikit-learn==1.9.1",
                "scipy==1.11.4",
                "polars==2.1.0",
                "pyyaml==6.0.4",
                "rich==15.0.0",
                "transformers==5.24.0",
            ),
            alone=True,
        ),
    )
}


def set_up(peer: Peer) -> str | None:
    """Make the environment, or find it ready; return None, or why it cannot be had."""
    key = f"{sys.version_info[:2]} {peer}"
    stamp = _stamp(peer.name)
    if stamp.is_file() and stamp.read_text() == key:
        return None
    stamp.unlink(missing_ok=True)
    why = _install(peer)
    _failure(peer.name).unlink(missing_ok=True)
    if why is None:
        stamp.write_text(key)  # last: a broken set-up starts again
    else:
        _failure(peer.name).write_text(why)
    return why


def missing(name: str) -> str | None:
    """Return why a contender has no environment, or None."""
    if name == OURS or _stamp(name).is_file():
        return None
    failure = _failure(name)
    return f"does not install: {failure.read_text()}" if failure.is_file() else "not installed: run `peers.py setup`"


def python(name: str) -> Path:
    """Return the interpreter of a contender; ours runs in the environment of this process."""
    return Path(sys.executable) if name == OURS else FOLDER / name / "bin" / "python"


def versions(name: str) -> dict[str, str]:
    """Return the versions that matter of a contender: its own, and those of what computes and reads."""
    if name == OURS:
        shown, path = ["torchrec_mtl", "torchrec", "fbgemm_gpu-cpu"], sys.path
    else:
        shown = [PEERS[name].distribution.split("==")[0]]
        path = [str(p) for p in (FOLDER / name).glob("lib/python*/site-packages")]
    found = {d.metadata["Name"]: d.version for d in distributions(path=path)}
    shown += ["torch", "numpy", "pyarrow"]
    return {package: found[package] for package in shown if package in found} | _commit(name)


def environment() -> dict[str, str]:
    """Return the variables that every contender runs with: one thread, no GPU, no network.

    DeepCTR-Torch looks up its newest release when it is imported; a proxy that is not there answers that at once.
    Compiled modules are kept, or each run would compile the peer again before its first step.
    """
    fixed = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUDA_VISIBLE_DEVICES": "",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "PYTHONPATH": str(ROOT),
    }
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | fixed


def _stamp(name: str) -> Path:
    return FOLDER / name / ".stamp"


def _failure(name: str) -> Path:
    return FOLDER / f"{name}.failed"


def _install(peer: Peer) -> str | None:
    pip = [str(python(peer.name)), "-m", "pip", "install", "--quiet", "--no-compile"]
    pip += shlex.split(os.environ.get("PIP_ARGS", ""))
    commands: list[Sequence[str]] = []
    if not python(peer.name).exists():
        commands.append([sys.executable, "-m", "venv", "--clear", str(FOLDER / peer.name)])
    if peer.alone:
        commands += [[*pip, TORCH, *peer.requirements], [*pip, "--no-deps", peer.distribution]]
    else:
        commands.append([*pip, TORCH, peer.distribution, *peer.requirements])
    # torch._dynamo is imported by the first optimizer: compile it now, too.
    commands.append([str(python(peer.name)), "-W", "ignore", "-c", f"import torch._dynamo, {peer.module}"])
    for command in commands:
        install = "pip" in command
        env = {**os.environ} if install else environment()
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            errors = [line for line in lines if "error" in line.lower()]
            return (errors or lines or [f"exit status {done.returncode}"])[-1].strip()
    return None


def _commit(name: str) -> dict[str, str]:
    """Return our commit: between two releases the version does not say which code ran."""
    if name != OURS:
        return {}
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return {}
    return {} if done.returncode else {"commit": done.stdout.strip()}
