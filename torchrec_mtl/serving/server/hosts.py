"""Which names a server answers to. Plain ASGI, as ``middleware``.

A web page may make its own name point at this machine (DNS rebinding), and then ask a server here as if it were the
page's own. Its requests name the page's host.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send


class Hosts:
    """An app that answers requests to certain hosts, and any other with 400.

    Args:
        app: the app.
        names: hosts without a port; addresses of loopback are taken in any case.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(map(str.lower, names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            name = host_of(Headers(scope=scope).get("host", ""))
            if name not in self._names and not is_loopback(name):
                await _refuse(send, name)
                return
        await self._app(scope, receive, send)


def host_of(header: str) -> str:
    """Return the host of a header, without its port.

    Example:
        >>> host_of("[::1]:8000"), host_of("Here:80"), host_of("a")
        ('::1', 'here', 'a')
    """
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def is_loopback(name: str) -> bool:
    """Return whether a host is this machine's own, whatever a name server says.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("localhost.example")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return name == "localhost"


async def _refuse(send: Send, name: str) -> None:
    message = f"no host '{name[:60]}' here; ask for localhost, or start the server with --allowed-host {name[:60]}"
    body = json.dumps({"error": message, "problems": []}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
