"""Shapes of answers, and of the body of /reload: for the API page, and for what checks it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from torchrec_mtl.serving.server.limits import Limits
from torchrec_mtl.serving.server.model import Model

_ERRORS = {
    400: "The request ended within its body, or asks for another host.",
    404: "There is no index.",
    408: "The body took too long.",
    409: "Another reload is under way.",
    413: "The body is too large.",
    415: "The body is no JSON by its Content-Type.",
    422: "Something is wrong with the values; `problems` says what, and where.",
    503: "Too many requests are waiting, or the server stops; try again after `Retry-After`.",
    504: "Scoring took too long.",
}


class Shape(BaseModel):
    """What all have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProblemShape(Shape):
    """One thing that is wrong with a request."""

    at: str = Field(description="Where in the body; empty for the body as a whole.", examples=["candidates[3].price"])
    message: str = Field(description="What was found, and what to do.")


class ErrorShape(Shape):
    """Why a request was not answered."""

    error: str
    problems: list[ProblemShape]


class Found(Shape):
    """What a search found, the best first; fewer than k where there are no more."""

    ids: list[int | str]
    scores: list[float]


class Health(Shape):
    """How the server does."""

    status: str = Field(description="ready or stopping.", examples=["ready"])
    run: str = Field(description="Of the bundle.")
    step: int = Field(description="Of the bundle.")
    uptime_s: float
    reload_refused: str | None = Field(description="Why the last reload was refused; null where it was not.")


class ColumnShape(Shape):
    """A column that a bundle reads."""

    name: str
    kind: str = Field(description="id (one, or a list), sequence, number, times, or moment.")
    sides: list[str] = Field(description="user: give it in user; item, context: in candidates; context: or in context.")
    default: str = Field(description="What null, or leaving it out, stands for.")
    elements: str | None = Field(description="Of ids: integers or strings; null for others, and where both are taken.")
    rows: int | None = Field(description="Integer ids are below; null where any is taken.")


class BundleShape(Shape):
    """Where predictions come from."""

    run: str
    step: int
    head: str
    versions: dict[str, str]


class IndexShape(Shape):
    """What /retrieve searches."""

    items: int
    kind: str
    ids: str = Field(description="Type of the ids.", examples=["int64", "string"])


class SchemaShape(Shape):
    """What requests may hold, and what answers will."""

    columns: list[ColumnShape]
    tasks: list[str]
    outputs: list[str] = Field(description="Of /score: the tasks, then further predictions of the head.")
    bundle: BundleShape
    index: IndexShape | None = Field(description="null: /retrieve answers 404.")
    limits: Limits


class ReloadRequest(Shape):
    """Which bundle to serve from now on."""

    bundle: str | None = Field(
        None, description="Name of a folder beside the one that is served; by default that one again.", max_length=255
    )
    index: str | None = Field(
        None, description="Name of a folder beside the index that is searched; by default that one.", max_length=255
    )


class Reloaded(Shape):
    """What is served now."""

    run: str
    step: int


def describe(model: Model, limits: Limits) -> SchemaShape:
    """Return what /schema answers."""
    predictor, index = model.predictor, model.index
    about = predictor.about
    return SchemaShape(
        columns=[
            ColumnShape(
                name=c.name, kind=c.kind, sides=list(c.sides), default=c.default, elements=c.elements, rows=c.rows
            )
            for c in model.columns
        ],
        tasks=list(predictor.tasks),
        outputs=list(predictor.outputs),
        bundle=BundleShape(run=about.run, step=about.step, head=about.head, versions=about.versions),
        index=None if index is None else IndexShape(items=len(index), kind=index.options.kind, ids=str(index.ids.type)),
        limits=limits,
    )


def json_of(shape: BaseModel) -> dict[str, Any]:
    """Return a shape as JSON has it."""
    return shape.model_dump(mode="json")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what an endpoint says of its errors."""
    return {status: {"model": ErrorShape, "description": _ERRORS[status]} for status in statuses}
