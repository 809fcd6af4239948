"""Questions, answered by a model: what runs in a worker thread."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from torchrec_mtl.retrieval.unseen import search_unseen
from torchrec_mtl.serving.server.bodies import parse
from torchrec_mtl.serving.server.model import Model
from torchrec_mtl.serving.server.problems import Problem, RequestError, refuse
from torchrec_mtl.serving.server.questions import RetrieveQuestion, ScoreQuestion

Floats = npt.NDArray[np.float32]


def score(model: Model, body: bytes) -> tuple[bytes, int]:
    """Return the answer to a body of /score, as JSON, and how many rows were scored.

    Raises:
        RequestError: 422.
    """
    document = parse(body)
    question = model.reader.score(document)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # numbers far out are refused below
            scores = model.predictor.score(question.user, question.candidates)
    except ValueError as error:
        model.reader.score(document, ranges=True)  # tells which values it is
        refuse(_problems(error, question))
        raise
    _check_finite(scores)
    return orjson.dumps(scores, option=orjson.OPT_SERIALIZE_NUMPY), question.rows


def retrieve(model: Model, body: bytes) -> tuple[bytes, int]:
    """Return the answer to a body of /retrieve, as JSON, and how many items it holds.

    Raises:
        RequestError: 422, or 404 where there is no index.
    """
    if model.index is None:
        raise RequestError(404, "there is no index; start the server with --index")
    document = parse(body)
    question = model.reader.retrieve(document)
    user = question.user or {"": None}  # a row of nothing but defaults
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = model.predictor.query_vectors({name: [value] for name, value in user.items()})
        seen = pa.array([model.ids_of(question.seen)], pa.list_(model.index.ids.type)) if question.seen else None
        found, scores = search_unseen(model.index, vectors, question.k, question.weights, seen)
    except ValueError as error:
        model.reader.retrieve(document, ranges=True)
        refuse(_problems(error, question))
        raise
    kept = np.isfinite(scores[0])  # fewer items than k are left
    answer = {"ids": found.filter(pa.array(kept)).to_pylist(), "scores": scores[0][kept]}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), int(kept.sum())


def _check_finite(scores: Mapping[str, Floats]) -> None:
    wrong = [name for name, values in scores.items() if not np.isfinite(values).all()]
    if wrong:
        advice = "numbers are too far from those of the training data"
        refuse([Problem("", f"no finite prediction of {', '.join(wrong)}: {advice}")])


def _problems(error: ValueError, question: ScoreQuestion | RetrieveQuestion) -> list[Problem]:
    """Return what a predictor found, a line each, with the place of the column that it names."""
    found = []
    for line in str(error).splitlines():
        named = re.search(r"column '([^']*)'", line)
        name = named[1] if named else ""
        columns = question.candidates if isinstance(question, ScoreQuestion) else {}
        place = next((at for at, names in (("user", question.user), ("candidates", columns)) if name in names), None)
        found.append(Problem(f"{place}.{name}" if place else "", line))
    return found or [Problem("", "the values do not fit the columns")]
