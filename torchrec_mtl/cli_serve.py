"""The command that serves a bundle over HTTP."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from torchrec_mtl.cli_common import errors_of_serving
from torchrec_mtl.serving.server.hangups import noted_hangups

Bundle = Annotated[Path, typer.Argument(help="Folder of an export, or a link to it.", show_default=False)]
Index = Annotated[Path | None, typer.Option(help="Folder of an item index, made of the same run.", show_default=False)]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Requests worked on at once; by default as many as cores.", show_default=False),
]
TorchThreads = Annotated[int, typer.Option(min=1, help="Threads of torch for each of them.")]
Waiting = Annotated[int, typer.Option(min=0, help="Requests that may wait; beyond, 503.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds of a request; beyond, 504.")]
Connections = Annotated[int, typer.Option(min=1, help="Open connections; beyond, 503.")]
MaxBody = Annotated[int, typer.Option(min=1, help="Bytes of a body; beyond, 413.")]
MaxCandidates = Annotated[int, typer.Option(min=1, help="Candidates a request; beyond, 422.")]
MaxK = Annotated[int, typer.Option(min=1, help="Items a search; beyond, 422.")]
MaxSeen = Annotated[int, typer.Option(min=0, help="Items a search leaves out; beyond, 422.")]
Drain = Annotated[
    float, typer.Option(min=0, help="Seconds after SIGTERM in which /health says 503, and all else goes on.")
]
StopTimeout = Annotated[int, typer.Option(min=0, help="Seconds that requests may take after that.")]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        help="Further host that requests may name, such as your gateway's; may be repeated. On loopback, others "
        "are refused.",
        show_default=False,
    ),
]
AllowReload = Annotated[bool, typer.Option("--allow-reload", help="Offer POST /reload. SIGHUP reloads in any case.")]
Compiled = Annotated[bool, typer.Option("--compiled", help="Run the bundle's native code: only of one that you trust.")]
AccessLog = Annotated[bool, typer.Option("--access-log", help="Print a line of JSON a request on standard output.")]


def add_serve(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve_command)


def serve_command(
    bundle: Bundle,
    index: Index = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Workers = None,
    torch_threads: TorchThreads = 1,
    waiting: Waiting = 64,
    timeout: Timeout = 10.0,
    connections: Connections = 512,
    max_body: MaxBody = 4 * 1024 * 1024,
    max_candidates: MaxCandidates = 10_000,
    max_k: MaxK = 1000,
    max_seen: MaxSeen = 10_000,
    drain: Drain = 0.0,
    stop_timeout: StopTimeout = 30,
    allowed_host: AllowedHost = None,
    allow_reload: AllowReload = False,
    compiled: Compiled = False,
    access_log: AccessLog = False,
) -> None:
    """Serve scores of a bundle, and searches of an index, over HTTP; /docs is a page to try it.

    There is no authentication. SIGTERM and Ctrl-C let requests end first; SIGHUP loads the bundle anew, and no request
    is lost.
    """
    with noted_hangups() as hangups, errors_of_serving():  # before all that takes time
        _require_packages()
        from torchrec_mtl.serving.server.limits import Limits, usable_cores
        from torchrec_mtl.serving.server.model import Sources
        from torchrec_mtl.serving.server.process import Options, run

        limits = Limits(
            max_body_bytes=max_body,
            max_candidates=max_candidates,
            max_k=max_k,
            max_seen=max_seen,
            timeout_s=timeout,
            workers=workers or usable_cores(),
            torch_threads=torch_threads,
            waiting=waiting,
            connections=connections,
        )
        options = Options(
            host,
            port,
            limits,
            drain_s=drain,
            stop_s=stop_timeout,
            allow_reload=allow_reload,
            access_log=access_log,
            allowed_hosts=tuple(allowed_host or ()),
        )
        run(Sources(bundle, index, compiled), options, hangups)


def _require_packages() -> None:
    for name in ("fastapi", "fastapi_offline", "orjson", "prometheus_client", "uvicorn"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ImportError(f'{name} is missing; run: pip install "torchrec_mtl[serve]"') from error
