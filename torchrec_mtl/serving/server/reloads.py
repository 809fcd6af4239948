"""POST /reload: which folders it may name, and what it answers."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from torchrec_mtl.serving.server import shapes
from torchrec_mtl.serving.server.bodies import parse
from torchrec_mtl.serving.server.model import Sources
from torchrec_mtl.serving.server.problems import Problem, RequestError, refuse
from torchrec_mtl.serving.server.questions import unknown_fields
from torchrec_mtl.serving.server.reading import read_body
from torchrec_mtl.serving.server.serving import BusyError, RefusedError, Serving


def add_reload(app: FastAPI, serving: Serving) -> None:
    """Add the endpoint."""

    @app.post(
        "/reload",
        tags=["Server"],
        summary="Serve another bundle",
        responses=shapes.errors(400, 408, 409, 413, 415, 422) | {200: {"model": shapes.Reloaded}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": shapes.ReloadRequest.model_json_schema()}},
            }
        },
    )
    async def reload(request: Request) -> Response:
        """Load a bundle, try it, and serve it from then on; requests go on with the old one until then.

        One that cannot be served changes nothing, and the answer says why.
        """
        try:
            async with asyncio.timeout(serving.limits.timeout_s):
                body = await read_body(request, serving.limits.max_body_bytes)
        except TimeoutError as error:
            raise RequestError(408, f"the body took longer than {serving.limits.timeout_s:g} s") from error
        try:
            model = await serving.reload(named(serving.sources, parse(body)))
        except BusyError as error:
            raise RequestError(409, f"{error}; try again later") from error
        except RefusedError as error:
            raise RequestError(422, "the bundle cannot be served", [Problem("bundle", str(error))]) from error
        found = shapes.Reloaded(run=model.predictor.about.run, step=model.step)
        return Response(orjson.dumps(shapes.json_of(found)), media_type="application/json")


def named(now: Sources, document: dict[str, Any]) -> Sources:
    """Return the sources that a body names: folders beside those that are served, and no others.

    Raises:
        RequestError: 422.
    """
    refuse(unknown_fields(document, [*shapes.ReloadRequest.model_fields]))
    try:
        wanted = shapes.ReloadRequest.model_validate(document)
    except ValidationError as error:
        refuse([Problem(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors(include_url=False)])
        raise
    if wanted.index is not None and now.index is None:
        refuse([Problem("index", "the server was started without --index; leave it out")])
    index = now.index
    if index is not None and wanted.index is not None:
        index = index.parent / _plain("index", wanted.index)
    bundle = now.bundle if wanted.bundle is None else now.bundle.parent / _plain("bundle", wanted.bundle)
    return Sources(bundle, index, now.compiled)


def _plain(at: str, name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or "\\" in name or not name.isprintable():
        refuse([Problem(at, f"expected the name of a folder beside the one that is served, found {name!r:.60}")])
    return name
