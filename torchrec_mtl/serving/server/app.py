"""The HTTP interface of a model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import torchrec_mtl
from torchrec_mtl.serving.server import answers, documents, shapes
from torchrec_mtl.serving.server.hosts import Hosts
from torchrec_mtl.serving.server.middleware import Watched
from torchrec_mtl.serving.server.model import Model
from torchrec_mtl.serving.server.pool import Pool
from torchrec_mtl.serving.server.problems import RequestError
from torchrec_mtl.serving.server.reading import read_body
from torchrec_mtl.serving.server.reloads import add_reload
from torchrec_mtl.serving.server.serving import Serving

LOG = logging.getLogger("torchrec_mtl.serve")

_ABOUT = """Scores of several tasks for one user and many candidates, and searches of an item index.

There is no authentication: put the server behind your gateway. Sizes, types and limits are in `/schema`."""
_PATHS = frozenset({"/score", "/retrieve", "/schema", "/health", "/metrics", "/reload", "/docs", "/openapi.json"})


def make_app(
    serving: Serving,
    pool: Pool,
    *,
    allow_reload: bool = False,
    access_log: bool = False,
    hosts: Collection[str] | None = None,
) -> ASGIApp:
    """Make the app.

    Args:
        serving: the model, and its reloads.
        pool: where requests are worked on.
        allow_reload: offer POST /reload.
        access_log: write a line of JSON a request.
        hosts: names that requests may give besides those of loopback; None: any.
    """
    app = FastAPIOffline(title="torchrec_mtl", version=torchrec_mtl.__version__, description=_ABOUT, redoc_url=None)
    _add_handlers(app)
    _add_questions(app, serving, pool)
    _add_looks(app, serving, pool)
    if allow_reload:
        add_reload(app, serving)
    _document(app, serving)
    served = app if hosts is None else Hosts(app, hosts)
    return Watched(served, serving.monitor, _PATHS, access_log=access_log)


def _add_questions(app: FastAPI, serving: Serving, pool: Pool) -> None:
    monitor = serving.monitor

    async def answer(request: Request, function: Callable[[Model, bytes], tuple[bytes, int]], counted: Any) -> Response:  # noqa: ANN401
        body: bytes | None = None
        try:
            async with asyncio.timeout(serving.limits.timeout_s):
                # Who sends no body must not take the place of who does.
                with monitor.reading.track_inprogress():
                    body = await read_body(request, serving.limits.max_body_bytes)
                with pool.slot() as slot:
                    content, count = await slot.run(partial(function, serving.model, body))
        except TimeoutError as error:
            took = f"took longer than {serving.limits.timeout_s:g} s"
            status, what = (408, "the body") if body is None else (504, "scoring")
            raise RequestError(status, f"{what} {took}") from error
        counted.inc(count)
        return _json(content)

    @app.post(
        "/score",
        tags=["Scores"],
        summary="Score candidates for one user",
        responses=shapes.errors(400, 408, 413, 415, 422, 503, 504),
    )
    async def score(request: Request) -> Response:
        """Return for each output (the tasks, then further predictions of the head) a list: a score a candidate.

        What belongs to the user is read, looked up, and encoded once, however many candidates there are.
        """
        return await answer(request, answers.score, monitor.rows)

    @app.post(
        "/retrieve",
        tags=["Scores"],
        summary="Find the best items of the index for one user",
        responses=shapes.errors(400, 404, 408, 413, 415, 422, 503, 504) | {200: {"model": shapes.Found}},
    )
    async def retrieve(request: Request) -> Response:
        """Return ids and scores of at most k items, the best first, without those in `seen`.

        An item's score is the sum over tasks of weight x score of the task, as the index sees it.
        """
        return await answer(request, answers.retrieve, monitor.found)


def _add_looks(app: FastAPI, serving: Serving, pool: Pool) -> None:
    monitor = serving.monitor

    @app.get(
        "/schema",
        tags=["Server"],
        summary="Columns, outputs, limits",
        responses=shapes.errors(400) | {200: {"model": shapes.SchemaShape}},
    )
    async def schema() -> Response:
        """Return what requests may hold, and what answers will."""
        return _json(orjson.dumps(shapes.json_of(shapes.describe(serving.model, serving.limits))))

    @app.get(
        "/health",
        tags=["Server"],
        summary="Whether the server is ready",
        responses=shapes.errors(400)
        | {200: {"model": shapes.Health}, 503: {"model": shapes.Health, "description": "The server stops."}},
    )
    async def health() -> Response:
        """Answer 200 while requests are welcome, and 503 once the server was told to stop."""
        about = serving.model.predictor.about
        found = shapes.Health(
            status="stopping" if serving.stopping else "ready",
            run=about.run,
            step=about.step,
            uptime_s=round(time.monotonic() - serving.started, 3),
            reload_refused=serving.refused,
        )
        return _json(orjson.dumps(shapes.json_of(found)), 503 if serving.stopping else 200)

    @app.get(
        "/metrics",
        tags=["Server"],
        summary="Counts and times, for Prometheus",
        responses=shapes.errors(400) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
    )
    async def metrics() -> Response:
        """Return metrics in the text format of Prometheus."""
        monitor.inside.set(pool.inside)
        return Response(monitor.text(), media_type="text/plain; version=0.0.4")


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        problems = [{"at": problem.at, "message": problem.message} for problem in error.problems]
        return _error(error.status, str(error), problems, error.headers)

    @app.exception_handler(HTTPException)
    async def of_starlette(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail), [], dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, __: Exception) -> Response:
        return _error(500, "the server failed; its log says how", [], {})


def _document(app: FastAPI, serving: Serving) -> None:
    """Describe bodies by the columns of the model that is served, also after a reload."""
    made: tuple[Model, dict[str, Any]] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal made
        model, limits = serving.model, serving.limits
        if made is None or made[0] is not model:
            whole = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            paths = whole["paths"]
            paths["/score"]["post"]["requestBody"] = documents.score_body(model, limits)
            paths["/retrieve"]["post"]["requestBody"] = documents.retrieve_body(model, limits)
            paths["/score"]["post"]["responses"]["200"]["content"] = {
                "application/json": {"schema": documents.score_answer(model)}
            }
            made = (model, whole)
        return made[1]

    app.openapi = openapi  # type: ignore[method-assign]


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


def _error(status: int, message: str, problems: list[dict[str, str]], headers: dict[str, str]) -> Response:
    content = orjson.dumps({"error": message, "problems": problems})
    return Response(content, status, headers, media_type="application/json")
