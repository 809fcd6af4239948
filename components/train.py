"""TorchX components that train: ``torchx run components/train.py:htlnet [options] [key=value ...]``.

TorchX executes this file in a namespace of its own and reads signatures from its source, so: nothing is imported from
beside it, annotations are ``Optional``, ``Dict``, ``List``, and every argument has a line of help.
"""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from torchx import specs
from torchx.components import dist
from torchx.specs.finder import ComponentValidationException


def dmmp(
    *overrides: str,
    config: str = "examples/movielens/dmmp.yaml",
    nproc: int = 1,
    nodes: int = 1,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "torchrec-mtl:latest",
    name: str = "dmmp",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train DMMP; without arguments on the ratings of examples/movielens, which are prepared where they are missing.

    Options come first, overrides last:
    torchx run components/train.py:dmmp --nproc 2 train.epochs=1 head.layout=user_per_task

    Args:
        overrides: settings of the config to change, as key.path=value; after all options
        config: the run as YAML; one of examples/movielens is found as installed where it does not lie here
        nproc: ranks on each node; on GPUs one a GPU
        nodes: number of nodes
        cpu: CPU cores of each node for all its ranks; 0: the cores of this machine / nodes, at least one a rank
        gpu: GPUs of each node, to ask of the scheduler (the device itself is the config's train.device)
        memMB: memory of each node in MB, to ask of the scheduler
        h: a named resource of TorchX, in place of cpu, gpu and memMB
        image: container image, for schedulers that use one
        name: name of the job, or experiment/name
        env: environment of the ranks, as NAME=value,NAME=value (OMP_NUM_THREADS: by default cpu / nproc)
        mounts: mounts of the container, as type=bind,src=/host,dst=/job[,readonly]
        max_retries: restarts the scheduler may make; a restarted run goes on from its last checkpoint
        rdzv_port: port on the first node where the nodes meet; not used with one node
    """
    return _train(
        overrides, config=config, nproc=nproc, nodes=nodes, cpu=cpu, gpu=gpu, memMB=memMB, h=h,
        image=image, name=name, env=env, mounts=mounts, max_retries=max_retries, rdzv_port=rdzv_port,
    )  # fmt: skip


def dtrn(
    *overrides: str,
    config: str = "examples/movielens/dtrn.yaml",
    nproc: int = 1,
    nodes: int = 1,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "torchrec-mtl:latest",
    name: str = "dtrn",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train DTRN; without arguments on the ratings of examples/movielens, which are prepared where they are missing.

    Options come first, overrides last:
    torchx run components/train.py:dtrn --nproc 2 train.epochs=1 bottom.layers=2

    Args:
        overrides: settings of the config to change, as key.path=value; after all options
        config: the run as YAML; one of examples/movielens is found as installed where it does not lie here
        nproc: ranks on each node; on GPUs one a GPU
        nodes: number of nodes
        cpu: CPU cores of each node for all its ranks; 0: the cores of this machine / nodes, at least one a rank
        gpu: GPUs of each node, to ask of the scheduler (the device itself is the config's train.device)
        memMB: memory of each node in MB, to ask of the scheduler
        h: a named resource of TorchX, in place of cpu, gpu and memMB
        image: container image, for schedulers that use one
        name: name of the job, or experiment/name
        env: environment of the ranks, as NAME=value,NAME=value (OMP_NUM_THREADS: by default cpu / nproc)
        mounts: mounts of the container, as type=bind,src=/host,dst=/job[,readonly]
        max_retries: restarts the scheduler may make; a restarted run goes on from its last checkpoint
        rdzv_port: port on the first node where the nodes meet; not used with one node
    """
    return _train(
        overrides, config=config, nproc=nproc, nodes=nodes, cpu=cpu, gpu=gpu, memMB=memMB, h=h,
        image=image, name=name, env=env, mounts=mounts, max_retries=max_retries, rdzv_port=rdzv_port,
    )  # fmt: skip


def htlnet(
    *overrides: str,
    config: str = "examples/cdnow/htlnet.yaml",
    nproc: int = 1,
    nodes: int = 1,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "torchrec-mtl:latest",
    name: str = "htlnet",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train HTLNet; without arguments on the purchase log of examples/cdnow, which is prepared where it is missing.

    Options come first, overrides last:
    torchx run components/train.py:htlnet --nproc 2 train.epochs=2 optim.dense.lr=0.002

    Args:
        overrides: settings of the config to change, as key.path=value; after all options
        config: the run as YAML; one of examples/cdnow is found as installed where it does not lie here
        nproc: ranks on each node; on GPUs one a GPU
        nodes: number of nodes
        cpu: CPU cores of each node for all its ranks; 0: the cores of this machine / nodes, at least one a rank
        gpu: GPUs of each node, to ask of the scheduler (the device itself is the config's train.device)
        memMB: memory of each node in MB, to ask of the scheduler
        h: a named resource of TorchX, in place of cpu, gpu and memMB
        image: container image, for schedulers that use one
        name: name of the job, or experiment/name
        env: environment of the ranks, as NAME=value,NAME=value (OMP_NUM_THREADS: by default cpu / nproc)
        mounts: mounts of the container, as type=bind,src=/host,dst=/job[,readonly]
        max_retries: restarts the scheduler may make; a restarted run goes on from its last checkpoint
        rdzv_port: port on the first node where the nodes meet; not used with one node
    """
    return _train(
        overrides, config=config, nproc=nproc, nodes=nodes, cpu=cpu, gpu=gpu, memMB=memMB, h=h,
        image=image, name=name, env=env, mounts=mounts, max_retries=max_retries, rdzv_port=rdzv_port,
    )  # fmt: skip


def ncs4cvr(
    *overrides: str,
    config: str = "examples/cdnow/ncs4cvr.yaml",
    nproc: int = 1,
    nodes: int = 1,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "torchrec-mtl:latest",
    name: str = "ncs4cvr",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train NCS4CVR, rounds of pruning first; without arguments on the purchase log of examples/cdnow, like htlnet.

    Options come first, overrides last:
    torchx run components/train.py:ncs4cvr --nproc 2 head.rounds=2 head.density=0.3

    Args:
        overrides: settings of the config to change, as key.path=value; after all options
        config: the run as YAML; one of examples/cdnow is found as installed where it does not lie here
        nproc: ranks on each node; on GPUs one a GPU
        nodes: number of nodes
        cpu: CPU cores of each node for all its ranks; 0: the cores of this machine / nodes, at least one a rank
        gpu: GPUs of each node, to ask of the scheduler (the device itself is the config's train.device)
        memMB: memory of each node in MB, to ask of the scheduler
        h: a named resource of TorchX, in place of cpu, gpu and memMB
        image: container image, for schedulers that use one
        name: name of the job, or experiment/name
        env: environment of the ranks, as NAME=value,NAME=value (OMP_NUM_THREADS: by default cpu / nproc)
        mounts: mounts of the container, as type=bind,src=/host,dst=/job[,readonly]
        max_retries: restarts the scheduler may make; a restarted run goes on from its last checkpoint
        rdzv_port: port on the first node where the nodes meet; not used with one node
    """
    return _train(
        overrides, config=config, nproc=nproc, nodes=nodes, cpu=cpu, gpu=gpu, memMB=memMB, h=h,
        image=image, name=name, env=env, mounts=mounts, max_retries=max_retries, rdzv_port=rdzv_port,
    )  # fmt: skip


def shared_bottom(
    *overrides: str,
    config: str = "examples/cdnow/shared_bottom.yaml",
    nproc: int = 1,
    nodes: int = 1,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "torchrec-mtl:latest",
    name: str = "shared_bottom",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train the shared-bottom baseline; without arguments on the purchase log of examples/cdnow, like htlnet.

    Options come first, overrides last:
    torchx run components/train.py:shared_bottom --nproc 2 train.epochs=2 optim.dense.lr=0.002

    Args:
        overrides: settings of the config to change, as key.path=value; after all options
        config: the run as YAML; one of examples/cdnow is found as installed where it does not lie here
        nproc: ranks on each node; on GPUs one a GPU
        nodes: number of nodes
        cpu: CPU cores of each node for all its ranks; 0: the cores of this machine / nodes, at least one a rank
        gpu: GPUs of each node, to ask of the scheduler (the device itself is the config's train.device)
        memMB: memory of each node in MB, to ask of the scheduler
        h: a named resource of TorchX, in place of cpu, gpu and memMB
        image: container image, for schedulers that use one
        name: name of the job, or experiment/name
        env: environment of the ranks, as NAME=value,NAME=value (OMP_NUM_THREADS: by default cpu / nproc)
        mounts: mounts of the container, as type=bind,src=/host,dst=/job[,readonly]
        max_retries: restarts the scheduler may make; a restarted run goes on from its last checkpoint
        rdzv_port: port on the first node where the nodes meet; not used with one node
    """
    return _train(
        overrides, config=config, nproc=nproc, nodes=nodes, cpu=cpu, gpu=gpu, memMB=memMB, h=h,
        image=image, name=name, env=env, mounts=mounts, max_retries=max_retries, rdzv_port=rdzv_port,
    )  # fmt: skip


def train(
    *overrides: str,
    config: str,
    nproc: int = 1,
    nodes: int = 1,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "torchrec-mtl:latest",
    name: str = "/",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train what a config describes, whatever its head.

    Options come first, overrides last:
    torchx run components/train.py:train --config my.yaml --nproc 2 train.epochs=2 optim.dense.lr=0.002

    Args:
        overrides: settings of the config to change, as key.path=value; after all options
        config: the run as YAML
        nproc: ranks on each node; on GPUs one a GPU
        nodes: number of nodes
        cpu: CPU cores of each node for all its ranks; 0: the cores of this machine / nodes, at least one a rank
        gpu: GPUs of each node, to ask of the scheduler (the device itself is the config's train.device)
        memMB: memory of each node in MB, to ask of the scheduler
        h: a named resource of TorchX, in place of cpu, gpu and memMB
        image: container image, for schedulers that use one
        name: name of the job, or experiment/name (default: the config's file name)
        env: environment of the ranks, as NAME=value,NAME=value (OMP_NUM_THREADS: by default cpu / nproc)
        mounts: mounts of the container, as type=bind,src=/host,dst=/job[,readonly]
        max_retries: restarts the scheduler may make; a restarted run goes on from its last checkpoint
        rdzv_port: port on the first node where the nodes meet; not used with one node
    """
    return _train(
        overrides, config=config, nproc=nproc, nodes=nodes, cpu=cpu, gpu=gpu, memMB=memMB, h=h,
        image=image, name=name, env=env, mounts=mounts, max_retries=max_retries, rdzv_port=rdzv_port,
    )  # fmt: skip


# Tuple, and not List, also keeps this function off TorchX's list of components.
def _train(
    overrides: Tuple[str, ...],
    *,
    config: str,
    nproc: int,
    nodes: int,
    cpu: int,
    gpu: int,
    memMB: int,
    h: Optional[str],
    image: str,
    name: str,
    env: Optional[Dict[str, str]],
    mounts: Optional[List[str]],
    max_retries: int,
    rdzv_port: int,
) -> specs.AppDef:
    _check(overrides, nproc=nproc, nodes=nodes)
    config = _find_example(config)
    cpu = cpu or max(nproc, _count_cores() // nodes)
    app = dist.ddp(
        "train", config, *overrides, m="torchrec_mtl", image=image, name=name if name != "/" else Path(config).stem,
        h=h, cpu=cpu, gpu=gpu, memMB=memMB, j=f"{nodes}x{nproc}", env=dict(env or {}), max_retries=max_retries,
        rdzv_port=rdzv_port, mounts=mounts,
    )  # fmt: skip
    role = app.roles[0]
    # Idle OpenMP threads of one rank must not hold the cores of another. A value from the user or the shell wins.
    defaults = {"OMP_NUM_THREADS": str(max(1, role.resource.cpu // nproc)), "OMP_WAIT_POLICY": "PASSIVE"}
    for key, value in defaults.items():
        role.env.setdefault(key, os.environ.get(key, value))
    role.args[-1] = f"{_path_prefix()}exec {role.args[-1]}"
    return app


def _check(overrides: Tuple[str, ...], *, nproc: int, nodes: int) -> None:
    for text in overrides:
        if text.startswith("-"):
            raise ComponentValidationException(
                f"options come before key=value overrides; found {text!r} after {overrides[0]!r}. "
                f"Write `torchx run components/train.py:... {text} ... {overrides[0]}`."
            )
        if "=" not in text:
            raise ComponentValidationException(
                f"an override is key.path=value; found {text!r}. A config file is given with --config."
            )
    if nproc < 1 or nodes < 1:
        raise ComponentValidationException(f"nproc and nodes are at least 1; found nproc {nproc}, nodes {nodes}")


def _find_example(config: str) -> str:
    """The path of the config; one of an example that does not lie here is taken from the installed package."""
    installed = (Path("examples/cdnow"), Path("examples/movielens"))
    if Path(config).parent not in installed or Path(config).is_file():
        return config
    package = importlib.util.find_spec("torchrec_mtl")
    folders = [Path(folder) for folder in (package.submodule_search_locations or [] if package else [])]
    # A wheel holds examples/ inside the package, an editable install beside it.
    places = [place / config for folder in folders for place in (folder, folder.parent)]
    found = [str(place) for place in places if place.is_file()]
    if not found:
        raise ComponentValidationException(
            f"no {config} in {Path.cwd()}, and no installed torchrec_mtl that holds it. "
            "Run from the repository's root, or name a config with --config."
        )
    return found[0]


def _count_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _path_prefix() -> str:
    """Puts this interpreter's torchrun first on PATH, where it is not yet (``.venv/bin/torchx``, not activated).

    On another machine, or in an image, the folder does not exist and the prefix does nothing.
    """
    here = Path(sys.executable).parent
    if not (here / "torchrun").is_file() or shutil.which("torchrun") == str(here / "torchrun"):
        return ""
    return f'export PATH={shlex.quote(str(here))}:"$$PATH"; '
