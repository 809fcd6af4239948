"""The command that serves a bundle over HTTP."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from torchrec_mtl.cli_common import errors_of_serving
from torchrec_mtl.serving.server.hangups import noted_hangups


def add_serve(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve_command)


def serve_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of an export, or a link to it.", show_default=False)],
    index: Annotated[
        Path | None, typer.Option(help="Folder of an item index, made of the same run.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8000,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Requests worked on at once; by default as many as cores.", show_default=False),
    ] = None,
    torch_threads: Annotated[int, typer.Option(min=1, help="Threads of torch for each of them.")] = 1,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; beyond, 503.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds of a request; beyond, 504.")] = 10.0,
    connections: Annotated[int, typer.Option(min=1, help="Open connections; beyond, 503.")] = 512,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a body; beyond, 413.")] = 4 * 1024 * 1024,
    max_candidates: Annotated[int, typer.Option(min=1, help="Candidates a request; beyond, 422.")] = 10_000,
    max_k: Annotated[int, typer.Option(min=1, help="Items a search; beyond, 422.")] = 1000,
    max_seen: Annotated[int, typer.Option(min=0, help="Items a search leaves out; beyond, 422.")] = 10_000,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds after SIGTERM in which /health says 503, and all else goes on.")
    ] = 0.0,
    stop_timeout: Annotated[int, typer.Option(min=0, help="Seconds that requests may take after that.")] = 30,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Further host that requests may name, such as your gateway's; may be repeated. On loopback, others "
            "are refused.",
            show_default=False,
        ),
    ] = None,
    allow_reload: Annotated[
        bool, typer.Option("--allow-reload", help="Offer POST /reload. SIGHUP reloads in any case.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Run the bundle's native code: only of one that you trust.")
    ] = False,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Print a line of JSON a request on standard output.")
    ] = False,
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
