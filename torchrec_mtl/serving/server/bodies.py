"""Bytes of a body to a document."""

from __future__ import annotations

import json
import math
from collections import deque
from typing import Any

import orjson

from torchrec_mtl.serving.server.problems import Problem, RequestError, refuse


def parse(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds.

    Raises:
        RequestError: 422: it is no JSON object. NaN and Infinity, which JSON lacks, are named with their places.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        refuse(_not_finite(body))
        raise RequestError(422, "the body is not JSON", [Problem("", f"{error}; send a JSON object")]) from error
    if not isinstance(document, dict):
        raise RequestError(
            422, "the body is no object", [Problem("", f"expected a JSON object, found {kind_of(document)}")]
        )
    return document


def kind_of(value: object) -> str:
    """Say what JSON calls a value.

    Example:
        >>> kind_of([1])
        'a list'
    """
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _not_finite(body: bytes) -> list[Problem]:
    """Find numbers that Python writes and JSON lacks; nothing where the body is no JSON for another reason."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return []
    return _walk(document, "")[:20]


def _walk(value: object, at: str) -> list[Problem]:
    # A loop, and not a recursion: depth is the sender's choice.
    found, todo = list[Problem](), deque([(value, at)])
    while todo:
        value, at = todo.popleft()
        if isinstance(value, float) and not math.isfinite(value):
            found.append(Problem(at, f"{value} is no JSON number; leave the value out, or send a finite one"))
        elif isinstance(value, dict):
            todo += [(inner, f"{at}.{name}" if at else str(name)) for name, inner in value.items()]
        elif isinstance(value, list):
            todo += [(inner, f"{at}[{place}]") for place, inner in enumerate(value)]
    return found
