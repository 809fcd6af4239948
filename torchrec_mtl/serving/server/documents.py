"""The bodies of /score and /retrieve as JSON schemas, made of a bundle's columns, with examples that work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrec_mtl.serving.server.columns import ServedColumn
from torchrec_mtl.serving.server.examples import example_candidates, example_user
from torchrec_mtl.serving.server.limits import Limits
from torchrec_mtl.serving.server.model import Model
from torchrec_mtl.serving.server.questions import DEFAULT_K, SIDES, Place
from torchrec_mtl.serving.server.values import LARGEST

Schema = dict[str, Any]

_NUMBER: Schema = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
_STRING: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}
_INT64: Schema = {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}


def score_body(model: Model, limits: Limits) -> Schema:
    """Return the request body of /score."""
    columns = model.columns
    rows = _of(columns, "candidates")
    candidates: Schema = {
        "description": "A list of objects, one a candidate, or an object of columns, each with a value a candidate "
        "(faster). What is left out has its default.",
        "oneOf": [
            {"type": "array", "items": _object(rows), "minItems": 1, "maxItems": limits.max_candidates},
            {
                **_object(rows, lambda schema: {"type": "array", "items": schema, "minItems": 1}),
                "minProperties": 1,
            },
        ],
    }
    schema = _body(
        {
            "user": {**_object(_of(columns, "user")), "description": "Columns of the user."},
            "candidates": candidates,
            "context": {**_object(_of(columns, "context")), "description": "One value for all candidates."},
        },
        ["user", "candidates"],
    )
    two = example_candidates(columns, 2)
    by_row = [dict(zip(two, values)) for values in zip(*two.values())]
    user = example_user(columns)
    examples = {
        "columns": {"summary": "candidates as columns", "value": {"user": user, "candidates": two}},
        "rows": {"summary": "candidates as rows", "value": {"user": user, "candidates": by_row}},
    }
    return _json(schema, examples)


def retrieve_body(model: Model, limits: Limits) -> Schema:
    """Return the request body of /retrieve."""
    columns, tasks = model.columns, model.predictor.tasks
    weight = {"type": "number", "minimum": -1e6, "maximum": 1e6}
    ids: Schema = {"oneOf": [_INT64, {"type": "string"}]}
    if model.index is not None:
        ids = {"type": "integer"} if "int" in str(model.index.ids.type) else {"type": "string"}
    schema = _body(
        {
            "user": {**_object(_of(columns, "user")), "description": "Columns of the user."},
            "k": {"type": "integer", "minimum": 1, "maximum": limits.max_k, "default": min(DEFAULT_K, limits.max_k)},
            "weights": {
                **_object(dict.fromkeys(tasks, weight)),
                "description": "How much a task counts; 1 for those that are left out.",
            },
            "seen": {
                "type": "array",
                "items": ids,
                "maxItems": limits.max_seen,
                "description": "Items that are not to be found again; ids that the index lacks change nothing.",
            },
        },
        ["user"],
    )
    value = {"user": example_user(columns), "k": min(10, limits.max_k), "weights": {tasks[0]: 2.0}}
    return _json(schema, {"user": {"summary": "ten items for a user", "value": value}})


def score_answer(model: Model) -> Schema:
    """Return the schema of an answer of /score."""
    outputs = model.predictor.outputs
    return {
        **_object({name: {"type": "array", "items": {"type": "number"}} for name in outputs}),
        "required": [*outputs],
    }


def _of(columns: Sequence[ServedColumn], place: Place) -> dict[str, Schema]:
    return {column.name: _values(column) for column in columns if {*column.sides} & {*SIDES[place]}}


def _values(column: ServedColumn) -> Schema:
    """Return the schema of one value; null is its default."""
    integer = _INT64 if column.rows is None else {"type": "integer", "minimum": 0, "maximum": column.rows - 1}
    ids: list[Schema] = {"integers": [integer], "strings": [_STRING]}.get(column.elements or "", [integer, _STRING])
    each: Schema = {"anyOf": [*ids, _NULL]}  # left out
    found: dict[str, list[Schema]] = {
        "id": [*ids, {"type": "array", "items": each}],
        "sequence": [{"type": "array", "items": each}],
        "number": [_NUMBER, {"type": "boolean"}],
        "times": [{"type": "array", "items": {"anyOf": [{"type": "number"}, _NULL]}}],
        "moment": [{"type": "number"}],
    }
    return {"anyOf": [*found[column.kind], _NULL], "description": f"Default: {column.default}."}


def _object(properties: dict[str, Schema], wrap: Any = None) -> Schema:  # noqa: ANN401 - of a schema, or None
    wrapped = {name: wrap(schema) for name, schema in properties.items()} if wrap else properties
    return {"type": "object", "properties": wrapped, "additionalProperties": False}


def _body(properties: dict[str, Schema], required: Sequence[str]) -> Schema:
    return {**_object(properties), "required": [*required]}


def _json(schema: Schema, examples: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
