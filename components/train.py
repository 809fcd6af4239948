"""TorchX components that train: ``torchx run components/train.py:htlnet [options] [key=value ...]``.

TorchX executes this file among the names of its own ``torchx.specs.finder`` and reads signatures from its source, so:
nothing is imported from beside it, no name of that module is taken for something else (``_Component``), annotations are
``Optional``, ``Dict``, ``List``, and every argument has a line of help.
"""

import importlib.util
import inspect
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import yaml
from torchx import specs
from torchx.components import dist
from torchx.specs.finder import ComponentValidationException

_Launcher = Callable[..., specs.AppDef]
_STREAMS = 8  # data.streams where a config does not say


def train(
    *overrides: str,
    config: str,
    nproc: int = 1,
    nodes: str = "1",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "torchrec-mtl:latest",
    name: str = "/",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_restarts: int = 3,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    rdzv_conf: str = "",
) -> specs.AppDef:
    """Train what a config describes, whatever its head.

    Options come first, overrides last:
    torchx run components/train.py:train --config my.yaml --nproc 2 train.epochs=2 optim.dense.lr=0.002

    Args:
        overrides: settings of the config to change, as key.path=value; after all options
        config: the run as YAML; one of the examples is found as installed where it does not lie here
        nproc: ranks on each node; on GPUs one a GPU
        nodes: number of nodes, or fewest:most (1:2), where training goes on while nodes come and go
        cpu: CPU cores of each node for all its ranks; 0: the cores of this machine / nodes, at least one a rank
        gpu: GPUs of each node, to ask of the scheduler (the device itself is the config's train.device)
        memMB: memory of each node in MB, to ask of the scheduler
        h: a named resource of TorchX, in place of cpu, gpu and memMB
        image: container image, for schedulers that use one
        name: name of the job, or experiment/name; /: the config's file name
        env: environment of the ranks, as NAME=value,NAME=value (OMP_NUM_THREADS: by default cpu / nproc)
        mounts: mounts of the container, as type=bind,src=/host,dst=/job[,readonly]
        max_restarts: times that torchrun starts the ranks again after one failed, from the last checkpoint
        max_retries: times that the scheduler starts the whole job again; it goes on from its last checkpoint
        rdzv_port: port on the first node where the nodes meet; not used with one node
        rdzv_conf: settings of that meeting for torchrun, as key=value,key=value (last_call_timeout=60)
    """
    _check_overrides(overrides)
    smallest, largest = _parse_nodes(str(nodes))
    for what, value, least in (("nproc", nproc, 1), ("max_restarts", max_restarts, 0), ("max_retries", max_retries, 0)):
        if value < least:
            raise ComponentValidationException(f"{what} is at least {least}; found {value}")
    config = _find_example(config)
    _check_ranks(config, overrides, smallest, largest, nproc)
    cpu = cpu or max(nproc, _count_cores() // largest)  # local_cwd starts all nodes on this machine
    size = f"{smallest}:{largest}" if smallest < largest else str(largest)
    app = dist.ddp(
        "train", config, *overrides, m="torchrec_mtl", image=image, name=name if name != "/" else Path(config).stem,
        h=h, cpu=cpu, gpu=gpu, memMB=memMB, j=f"{size}x{nproc}", env=dict(env or {}), max_retries=max_retries,
        rdzv_port=rdzv_port, mounts=mounts,
    )  # fmt: skip
    role = app.roles[0]
    role.name = "train"  # dist.ddp takes that of the module, whose underscore some schedulers drop
    # Idle OpenMP threads of one rank must not hold the cores of another. A value from the user or the shell wins.
    defaults = {"OMP_NUM_THREADS": str(max(1, role.resource.cpu // nproc)), "OMP_WAIT_POLICY": "PASSIVE"}
    # torchrun of torch 2.13 keeps one store for all attempts: ranks started again would find the addresses of dead
    # ones in it, and a node that comes back waits for an address that is told only once.
    defaults["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    for key, default in defaults.items():
        role.env.setdefault(key, os.environ.get(key, default))
    # What dist.ddp does not hand to torchrun.
    more = f"--max_restarts {max_restarts}" + (f" --rdzv_conf {shlex.quote(rdzv_conf)}" if rdzv_conf else "")
    torchrun, arguments = role.args[-1].split(" ", 1)
    role.args[-1] = f"{_path_prefix()}exec {torchrun} {more} {arguments}"
    return app


def _options_of_train(function: _Launcher) -> _Launcher:
    """Give a component the options of ``train`` and their help; its own defaults win.

    TorchX takes names, types, and defaults of options from the signature, and their help from the docstring.
    """
    own = inspect.signature(function).parameters
    options = [own.get(name, option) for name, option in inspect.signature(train).parameters.items()]
    function.__signature__ = inspect.Signature(options, return_annotation=specs.AppDef)  # type: ignore[attr-defined]
    function.__doc__ = f"{str(function.__doc__).rstrip()}\n\n    Args:{str(train.__doc__).split('Args:')[1]}"
    return function


@_options_of_train
def dmmp(
    *overrides: str, config: str = "examples/movielens/dmmp.yaml", name: str = "dmmp", **options: Any
) -> specs.AppDef:
    """Train DMMP; without arguments on the ratings of examples/movielens, which are prepared where they are missing.

    Options come first, overrides last:
    torchx run components/train.py:dmmp --nproc 2 train.epochs=1 head.layout=user_per_task
    """
    return train(*overrides, config=config, name=name, **options)


@_options_of_train
def dtrn(
    *overrides: str, config: str = "examples/movielens/dtrn.yaml", name: str = "dtrn", **options: Any
) -> specs.AppDef:
    """Train DTRN; without arguments on the ratings of examples/movielens, which are prepared where they are missing.

    Options come first, overrides last:
    torchx run components/train.py:dtrn --nproc 2 train.epochs=1 bottom.layers=2
    """
    return train(*overrides, config=config, name=name, **options)


@_options_of_train
def htlnet(
    *overrides: str, config: str = "examples/cdnow/htlnet.yaml", name: str = "htlnet", **options: Any
) -> specs.AppDef:
    """Train HTLNet; without arguments on the purchase log of examples/cdnow, which is prepared where it is missing.

    Options come first, overrides last:
    torchx run components/train.py:htlnet --nproc 2 train.epochs=2 optim.dense.lr=0.002
    """
    return train(*overrides, config=config, name=name, **options)


@_options_of_train
def ncs4cvr(
    *overrides: str, config: str = "examples/cdnow/ncs4cvr.yaml", name: str = "ncs4cvr", **options: Any
) -> specs.AppDef:
    """Train NCS4CVR, rounds of pruning first; without arguments on the purchase log of examples/cdnow, like htlnet.

    Options come first, overrides last:
    torchx run components/train.py:ncs4cvr --nproc 2 head.rounds=2 head.density=0.3
    """
    return train(*overrides, config=config, name=name, **options)


@_options_of_train
def shared_bottom(
    *overrides: str, config: str = "examples/cdnow/shared_bottom.yaml", name: str = "shared_bottom", **options: Any
) -> specs.AppDef:
    """Train the shared-bottom baseline; without arguments on the purchase log of examples/cdnow, like htlnet.

    Options come first, overrides last:
    torchx run components/train.py:shared_bottom --nproc 2 train.epochs=2 optim.dense.lr=0.002
    """
    return train(*overrides, config=config, name=name, **options)


# Tuple, and not List, also keeps this function off TorchX's list of components.
def _check_overrides(overrides: Tuple[str, ...]) -> None:
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


def _parse_nodes(nodes: str) -> Tuple[int, int]:
    """The smallest and the largest number of nodes."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", nodes)
    if match is None:
        raise ComponentValidationException(f"nodes is a number, or a range such as 1:2; found {nodes!r}")
    smallest, largest = int(match[1]), int(match[2] or match[1])
    if smallest < 1:
        raise ComponentValidationException(f"nodes is at least 1; found {nodes!r}")
    if smallest > largest:
        raise ComponentValidationException(
            f"the smaller number of nodes comes first; found {nodes!r}: {largest}:{smallest}?"
        )
    return smallest, largest


def _check_ranks(config: str, overrides: Tuple[str, ...], smallest: int, largest: int, nproc: int) -> None:
    """Refuse what training would refuse after the nodes have met: ranks that do not divide ``data.streams``.

    A config that is not readable here (it may lie in the image) or has mistakes is left to the ranks.
    """
    try:
        read = yaml.safe_load(Path(config).read_bytes())
        streams = int(read["data"].get("streams", _STREAMS))
        for text in overrides:
            key, value = text.split("=", 1)
            if key == "data.streams":
                streams = int(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return
    unfit = [nodes for nodes in range(smallest, largest + 1) if streams % (nodes * nproc)]
    if unfit:
        fit = [str(ranks) for ranks in range(1, streams + 1) if streams % ranks == 0]
        raise ComponentValidationException(
            f"the ranks divide data.streams, {streams}; found {unfit[0]} nodes x {nproc} = {unfit[0] * nproc} ranks. "
            f"Choose --nodes and --nproc so that every number of ranks is one of {', '.join(fit)}, or set data.streams "
            f"to a multiple of {unfit[0] * nproc} that divides data.batch_size."
        )


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
