"""Around every request: how long it took, how it ended, and a line in the access log. Plain ASGI, for its speed."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Set

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchrec_mtl.serving.server.monitoring import Monitor

ACCESS = logging.getLogger("torchrec_mtl.serve.access")


class Watched:
    """An app whose requests are counted.

    Args:
        app: the app.
        monitor: of the server.
        paths: counted by name; all others as "other", so that nobody makes up series.
        access_log: write a line of JSON a request.
    """

    def __init__(self, app: ASGIApp, monitor: Monitor, paths: Set[str], *, access_log: bool) -> None:
        self._app = app
        self._monitor = monitor
        self._paths = paths
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or an event of the server's life."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 0, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:  # the server's time to stop is up
            if status == 0:
                await _stopped(watched)
        finally:
            self._note(scope, status or 500, time.perf_counter() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._monitor.requests.labels(path, str(status)).inc()
        self._monitor.seconds.labels(path).observe(seconds)
        if self._access_log:
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(seconds * 1000, 2),
            }
            ACCESS.info("%s", json.dumps(line))


async def _stopped(send: Send) -> None:
    body = b'{"error":"the server has stopped","problems":[]}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
