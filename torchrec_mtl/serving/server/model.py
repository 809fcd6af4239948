"""What a server serves: a bundle, an item index where there is one, and the checks that they go together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from torchrec_mtl.data.arrow import is_string
from torchrec_mtl.serving.predictor import Predictor
from torchrec_mtl.serving.server.bodies import kind_of
from torchrec_mtl.serving.server.columns import ServedColumn, served_columns
from torchrec_mtl.serving.server.examples import example_candidates, example_user
from torchrec_mtl.serving.server.limits import Limits
from torchrec_mtl.serving.server.problems import Problem, refuse
from torchrec_mtl.serving.server.questions import Reader

if TYPE_CHECKING:
    from torchrec_mtl.retrieval.index import ItemIndex

_WARM = (1, 2, 100)
"""Candidates of the requests that a model answers before it serves: the first ones take longer."""


@dataclass(frozen=True)
class Sources:
    """Where a model comes from, as the user named it: links are followed anew at each reload.

    Attributes:
        bundle: folder of an export.
        index: folder of an item index, or None.
        compiled: run the bundle's native code.
    """

    bundle: Path
    index: Path | None = None
    compiled: bool = False


@dataclass(frozen=True)
class Model:
    """A bundle that is loaded, warm, and fits its index.

    Attributes:
        predictor: of the bundle.
        columns: that requests may have.
        index: None where nothing can be searched.
        folder: of the bundle, links followed.
        reader: of requests to it.
        loaded: when, in seconds since 1970.
    """

    predictor: Predictor
    columns: tuple[ServedColumn, ...]
    index: ItemIndex | None
    folder: Path
    reader: Reader
    loaded: float = field(default_factory=time.time)

    @property
    def step(self) -> int:
        """Of the training run."""
        return self.predictor.about.step

    def ids_of(self, seen: Sequence[Any]) -> pa.Array:
        """Return ids as the index has them; those that it cannot have are left out.

        Raises:
            RequestError: 422: they are no ids of such an index.
        """
        assert self.index is not None, "there is something to search"
        kind = self.index.ids.type
        wanted = str if is_string(kind) else int
        for place, value in enumerate(seen):
            if type(value) is not wanted:
                message = f"expected {_NAMES[wanted]}, as the index has, found {kind_of(value)} {value!r:.40}"
                refuse([Problem(f"seen[{place}]", message)])
        if wanted is int:
            # An unsigned type reaches further up than a signed one, and not below 0.
            low, high = _reach(kind)
            seen = [value for value in seen if low <= value <= high]
        return pa.array(seen, kind)


_NAMES = {str: "a string", int: "an integer"}


def load_model(sources: Sources, limits: Limits) -> Model:
    """Load a bundle and its index, and try them.

    Args:
        sources: where they lie.
        limits: of requests.

    Raises:
        ValueError: either cannot be read, they do not go together, or the bundle does not score its own example.
        ImportError: faiss is missing.
    """
    folder = _followed(sources.bundle)
    predictor = Predictor.load(folder, compiled=sources.compiled)
    columns = served_columns(predictor)
    index = None if sources.index is None else load_index(sources.index, predictor)
    model = Model(predictor, columns, index, folder, Reader(columns, predictor.tasks, limits))
    try:
        _warm_up(model, limits)
    except Exception as error:
        raise ValueError(f"the bundle in {folder} does not score its own example: {error}; export it again") from error
    return model


def _followed(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links is either, by version of Python
        raise ValueError(f"cannot follow {path}: {error}; name the folder of an export") from error


def load_index(folder: Path, predictor: Predictor) -> ItemIndex:
    """Load an index that goes with a predictor.

    Raises:
        ValueError: it cannot be read, or was made of another training.
        ImportError: faiss is missing.
    """
    from torchrec_mtl.retrieval.index import ItemIndex

    about = predictor.about
    if "users" not in about.programs:
        raise ValueError(f"the head {about.head} retrieves nothing, so there is no use for an index; leave out --index")
    index = ItemIndex.load(folder)
    if index.tasks != predictor.tasks:
        raise ValueError(
            f"{folder} is an index of the tasks {', '.join(index.tasks)}, and the bundle has "
            f"{', '.join(predictor.tasks)}; make both of one run"
        )
    if not (is_string(index.ids.type) or pa.types.is_integer(index.ids.type)) or pa.types.is_binary(index.ids.type):
        raise ValueError(f"{folder} has ids of type {index.ids.type}; JSON tells integers and strings alone")
    _check_origin(folder, index, predictor)
    return index


def _check_origin(folder: Path, index: ItemIndex, predictor: Predictor) -> None:
    """Refuse vectors of another training: their scores would be no scores, and nobody would see it."""
    about, notes = predictor.about, index.notes
    if about.checkpoint and notes.get("checkpoint"):  # older ones say the run and its step alone
        if about.checkpoint != notes["checkpoint"]:
            its = f"step {notes.get('step', 'unknown')} of {notes.get('run', 'a run')}"
            raise ValueError(
                f"{folder} was made of another checkpoint ({its}) than the bundle (step {about.step} of {about.run}): "
                "their vectors do not belong together; make the index again of the run that the bundle was exported "
                "from"
            )
        return
    for what, mine, its in (
        ("run", Path(about.run).name, Path(notes.get("run", "")).name),
        ("step", str(about.step), notes.get("step", "")),
    ):
        if its and mine != its:
            raise ValueError(
                f"{folder} was made with {what} {its}, and the bundle with {what} {mine}: their vectors do not belong "
                "together; make the index again of the run that the bundle was exported from"
            )


def _warm_up(model: Model, limits: Limits) -> None:
    predictor = model.predictor
    user = example_user(model.columns)
    for count in _WARM:
        rows = min(count, limits.max_candidates)
        scores = predictor.score(user, example_candidates(model.columns, rows))
        assert all(len(values) == rows for values in scores.values()), "a score a candidate"
    if model.index is not None:
        vectors = predictor.query_vectors({name: [value] for name, value in user.items()} or {"": [None]})
        model.index.search(vectors, 1)


def _reach(kind: pa.DataType) -> tuple[int, int]:
    info = np.iinfo(kind.to_pandas_dtype())
    return int(info.min), int(info.max)
