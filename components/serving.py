"""TorchX component that serves: ``torchx run components/serving.py:serve --bundle DIR [options]``.

As in ``train.py``, TorchX reads this file by itself: annotations are ``Optional``, ``Dict``, ``List``, and every
argument has a line of help.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Dict, List, Optional

from torchx import specs
from torchx.specs.finder import ComponentValidationException


def serve(
    bundle: str,
    index: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    args: str = "",
    cpu: int = 2,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "torchrec-mtl:latest",
    name: str = "serve",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 3,
) -> specs.AppDef:
    """Serve scores of a bundle, and searches of an index, over HTTP.

    torchx run components/serving.py:serve --bundle runs/bundle --port 8000 --args "--allow-reload --access-log"

    Args:
        bundle: folder of an export, as the server sees it
        index: folder of an item index of the same run
        host: address to listen on; 0.0.0.0 where others than this machine are to reach it, as in a container
        port: to listen on; schedulers with containers are told of it
        replicas: servers, each with all of the bundle; more than one only where each has an address of its own
        args: further options of torchrec-mtl serve, in one text
        cpu: CPU cores of each server, and requests that it works on at once unless args has --workers
        memMB: memory of each server in MB, to ask of the scheduler
        h: a named resource of TorchX, in place of cpu and memMB
        image: container image, for schedulers that use one
        name: name of the job
        env: environment of the servers, as NAME=value,NAME=value
        mounts: mounts of the container, as type=bind,src=/host,dst=/job[,readonly]
        max_retries: times that the scheduler starts a server again
    """
    for what, value, least in (("port", port, 1), ("replicas", replicas, 1), ("max_retries", max_retries, 0)):
        if value < least:
            raise ComponentValidationException(f"{what} is at least {least}; found {value}")
    try:
        more = shlex.split(args)
    except ValueError as error:
        raise ComponentValidationException(f"args is no command line: {error}; found {args!r}") from error
    words = ["python", "-m", "torchrec_mtl", "serve", bundle, "--host", host, "--port", str(port)]
    resource = specs.resource(cpu=cpu, memMB=memMB, h=h)
    if resource.cpu > 0:  # a machine may have more cores than the server gets
        words += ["--workers", str(max(1, int(resource.cpu)))]
    words += (["--index", index] if index else []) + more
    return specs.AppDef(
        name=name,
        roles=[
            specs.Role(
                name="serve",
                image=image,
                entrypoint="bash",
                # exec: signals of the scheduler reach the server itself, which lets requests end.
                args=["-c", f"{_path_prefix()}exec {shlex.join(words)}"],
                num_replicas=replicas,
                env={"OMP_NUM_THREADS": "1", **(env or {})},
                port_map={"http": port},
                resource=resource,
                mounts=specs.parse_mounts(mounts) if mounts else [],
                max_retries=max_retries,
            )
        ],
    )


def _path_prefix() -> str:
    """Puts this interpreter's folder first on PATH, for schedulers that start jobs on this machine.

    On another machine, or in an image, the folder does not exist and the prefix does nothing.
    """
    here = Path(sys.executable).parent
    if os.environ.get("PATH", "").split(os.pathsep)[0] == str(here):
        return ""
    return f'export PATH={shlex.quote(str(here))}:"$$PATH"; '
