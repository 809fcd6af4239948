"""The process of a server: its socket, its signals, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import uvicorn

from torchrec_mtl.serving.server.app import make_app
from torchrec_mtl.serving.server.hangups import Hangups
from torchrec_mtl.serving.server.hosts import is_loopback
from torchrec_mtl.serving.server.limits import Limits
from torchrec_mtl.serving.server.middleware import ACCESS
from torchrec_mtl.serving.server.model import Sources, load_model
from torchrec_mtl.serving.server.monitoring import Monitor
from torchrec_mtl.serving.server.pool import Pool
from torchrec_mtl.serving.server.serving import LOG, Serving

_IDLE_S = 30  # that a connection is kept open between requests; longer than most gateways keep theirs


@dataclass(frozen=True)
class Options:
    """How a server runs.

    Attributes:
        host: address to listen on.
        port: to listen on; 0: any that is free.
        limits: of requests.
        drain_s: after SIGTERM, how long new connections are taken still, while /health says 503.
        stop_s: after that, how long requests that are inside may take.
        allow_reload: offer POST /reload.
        access_log: write a line of JSON a request to standard output.
        allowed_hosts: names that requests may give, besides those of loopback and ``host``. Without any, a server on
            loopback takes no others, and one that listens elsewhere takes all.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    limits: Limits = field(default_factory=Limits)
    drain_s: float = 0.0
    stop_s: int = 30
    allow_reload: bool = False
    access_log: bool = False
    allowed_hosts: tuple[str, ...] = ()


def run(sources: Sources, options: Options, hangups: Hangups | None = None) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP loads the bundle anew.

    Args:
        sources: of the model.
        options: see `Options`.
        hangups: where those are noted that come before the server listens; it loads anew then.

    Raises:
        ValueError: the address cannot be used, or the bundle cannot be served.
        ImportError: a package is missing.
    """
    _log_to_people(access=options.access_log)
    with contextlib.closing(_bind(options.host, options.port)) as listener:
        model = load_model(sources, options.limits)
        monitor = Monitor()
        serving = Serving(sources, model, options.limits, monitor)
        pool = Pool(options.limits)
        app = make_app(
            serving,
            pool,
            allow_reload=options.allow_reload,
            access_log=options.access_log,
            hosts=_hosts(options, listener),
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=_IDLE_S,
            limit_concurrency=options.limits.connections + 1,  # which uvicorn refuses
            timeout_graceful_shutdown=options.stop_s,
        )
        server = _Server(config, lambda: _announce(serving, listener))
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(server, serving, listener, options, hangups or Hangups()))
    serving.close()
    if pool.close():
        LOG.info("stopped")
        return
    # Threads cannot be stopped, and Python would wait for them.
    LOG.warning("stopped, with %d requests unanswered", pool.inside)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class _Server(uvicorn.Server):
    """Uvicorn's, without its own signals: it would raise them again at its end, and no exit status would be 0."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, and only then say so."""
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    server: _Server, serving: Serving, listener: socket.socket, options: Options, hangups: Hangups
) -> None:
    loop = asyncio.get_running_loop()
    tasks = set[asyncio.Task[None]]()  # the loop itself holds none

    def stop(wait_s: float) -> None:
        if serving.stopping:  # asked twice
            server.force_exit = server.should_exit = True
            return
        serving.stopping = True
        LOG.info("stopping when requests have ended; a second signal stops at once")
        loop.call_later(wait_s, setattr, server, "should_exit", True)

    def reload() -> None:
        task = loop.create_task(serving.reload_on_signal())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGTERM, stop, options.drain_s)
    loop.add_signal_handler(signal.SIGINT, stop, 0.0)
    loop.add_signal_handler(signal.SIGHUP, reload)
    if hangups.came:  # what was loaded may be older than it
        reload()
    await server.serve(sockets=[listener])


def _announce(serving: Serving, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    model = serving.model
    LOG.info("serving %s, step %d: %s", model.folder, model.step, ", ".join(model.predictor.outputs))
    if model.index is not None:
        LOG.info("searching %d items", len(model.index))
    LOG.info("%s, its page %s/docs; Ctrl-C stops", address, address)
    if not is_loopback(host):
        LOG.warning("whoever reaches this address can use it: there is no authentication")


def _hosts(options: Options, listener: socket.socket) -> tuple[str, ...] | None:
    """Return the names that requests may give; None where any may be right, as nobody knows the machine's."""
    if not options.allowed_hosts and not is_loopback(listener.getsockname()[0]):
        return None
    return (*options.allowed_hosts, options.host)


def _bind(host: str, port: int) -> socket.socket:
    """Take the address at once; connections are taken when the bundle is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"no address '{host}' to listen on: {error}; give another with --host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ValueError(f"cannot listen on {host}, port {port}: {reason}; give another --port or --host") from error
    return listener


def _log_to_people(*, access: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for log in (LOG, logging.getLogger("uvicorn.error")):
        log.handlers = [handler]
        log.propagate = False
    LOG.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    if access:
        lines = logging.StreamHandler(sys.stdout)
        lines.setFormatter(logging.Formatter("%(message)s"))
        ACCESS.handlers = [lines]
        ACCESS.setLevel(logging.INFO)
        ACCESS.propagate = False
