"""The body of a request, no larger than is allowed."""

from __future__ import annotations

from fastapi import Request
from starlette.requests import ClientDisconnect

from torchrec_mtl.serving.server.problems import RequestError


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body.

    Args:
        request: whose it is.
        limit: bytes.

    Raises:
        RequestError: 413 or 415: it is too large, or no JSON. Pages of other sites can make a browser send other types
            without being asked, and this one not.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, f"expected Content-Type: application/json, found {kind[:60] or 'none'}")
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise RequestError(413, f"the body has {told} bytes, and at most {limit} are taken; send fewer candidates")
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise RequestError(413, f"the body has more than {limit} bytes; send fewer candidates")
            parts.append(part)
    except ClientDisconnect as error:
        raise RequestError(400, "the request ended within its body") from error
    return b"".join(parts)
