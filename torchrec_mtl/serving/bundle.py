"""A bundle: a folder with everything that scoring needs, and what it was made of. Without torch.

``bundle.json`` describes it and holds the SHA-256 of every other file; ``programs/`` are the dense part, ``tables/``
the embeddings; ``config.yaml``, ``statistics.json`` and ``metrics.json`` are those of the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_serializer

from torchrec_mtl.checksums import damage, sha256
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.later import unknown_before
from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.serving.layout import Layout, Record

FORMAT = 1
"""Raised when an older version could not read what this one writes; all lower formats stay readable."""

ABOUT, TABLES, PROGRAMS, COMPILED = "bundle.json", "tables", "programs", "compiled"


class Task(Record):
    """A task of the run."""

    name: str
    kind: Literal["binary", "regression"]


class Change(Record):
    """What quantised tables do to a task."""

    metric: str
    before: float
    after: float


class Parity(Record):
    """How close a bundle's predictions are to the trainer's."""

    rows: int
    data: tuple[str, ...]
    largest: dict[str, float]
    """Output -> largest difference, over the trainer's value where that is above 1."""
    metrics: dict[str, Change] = Field(default_factory=dict)
    """By task, where the tables are quantised."""


class About(Record):
    """What ``bundle.json`` holds."""

    format: int
    versions: dict[str, str]
    run: str
    step: int
    checkpoint: str
    """Of whose tensors it is: a digest of the checkpoint's checksums; empty where it had none."""
    head: str
    tasks: tuple[Task, ...]
    outputs: tuple[str, ...]
    """Of a score: the tasks, then the head's further predictions."""
    programs: tuple[Literal["rows", "one_user", "users", "items"], ...]
    compiled: bool
    features: FeaturesConfig
    elements: dict[str, Literal["integers", "strings"]]
    """What its columns of ids held in training."""
    bad_ids: Literal["error", "drop", "clamp"]
    keys: tuple[str, ...]
    retrieval: dict[Literal["item", "query", "seen"], str | None] | None
    layout: Layout
    quantised: Literal[8, 4] | None
    parity: Parity | None
    """None only while it is being measured."""
    sha256: dict[str, str]
    digest: str = ""
    """SHA-256 of all the above."""

    @field_serializer("features")
    def _as_first_written(self, features: FeaturesConfig) -> dict[str, Any]:
        """Leave out keys at defaults that earlier versions did not know, so that these can read it."""
        return features.model_dump(mode="json", exclude=unknown_before(features))


def retrieval_names(config: RetrievalConfig | None) -> dict[Literal["item", "query", "seen"], str | None] | None:
    """Return the columns that name items, queries, and what these have seen."""
    return None if config is None else {"item": config.item, "query": config.query, "seen": config.seen}


def files_of(folder: Path) -> list[str]:
    """Return the files of a bundle, but for the one that describes it."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != ABOUT)


def write_about(folder: Path, about: About) -> About:
    """Write ``bundle.json``, with the checksums of the files that are there; return what it says."""
    return describe(folder, about.model_copy(update={"sha256": {n: sha256(folder / n) for n in files_of(folder)}}))


def describe(folder: Path, about: About) -> About:
    """Write ``bundle.json``, where the files are those whose checksums ``about`` has; return what it says."""
    whole = about.model_copy(update={"digest": _digest(json.loads(about.model_dump_json()))})
    (folder / ABOUT).write_text(whole.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return whole


def _digest(content: Mapping[str, Any]) -> str:
    told = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def read_about(folder: Path) -> About:
    """Read ``bundle.json``.

    Raises:
        ValueError: there is no bundle, or one of a later version.
    """
    raw = _read(folder)
    found = raw.get("format")
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        versions = raw.get("versions")
        by = versions.get("torchrec_mtl", "unknown") if isinstance(versions, dict) else "unknown"
        raise ValueError(
            f"the bundle in {folder} has format {found!r} (written by torchrec_mtl {by}), and this version reads "
            f"formats 1 to {FORMAT}; install a later version, or export it again"
        )
    try:
        about = About.model_validate(raw)
        if raw.get("digest") != _digest(raw):
            raise ValueError(f"{folder / ABOUT} is damaged: it is not what was written; export the bundle again")
        return about
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{folder / ABOUT} is damaged: {where}: {first['msg']}; export the bundle again") from None


def _read(folder: Path) -> dict[str, Any]:
    try:
        raw = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"no bundle in {folder}: there is no {ABOUT}; torchrec-mtl export writes one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / ABOUT} cannot be read: {error}; export the bundle again") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{folder / ABOUT} is of something else than a bundle; name the folder of an export")
    return raw


def check_files(folder: Path, about: About, *, tables: bool = True) -> None:
    """Raise ``ValueError`` where a file is missing, is not what was written, or lies elsewhere.

    Args:
        folder: of the bundle.
        about: what it says of itself.
        tables: read these too; they may be large.
    """
    wanted = {f"{PROGRAMS}/{kind}.pt2" for kind in about.programs} | {f"{TABLES}/{f.name}" for f in about.layout.files}
    wanted.add("statistics.json")
    if about.compiled:
        wanted |= {f"{COMPILED}/{kind}.pt2" for kind in about.programs}
    if missing := sorted(wanted - about.sha256.keys()):
        raise ValueError(f"the bundle in {folder} is not whole: it has no {', '.join(missing)}; export it again")
    for name in about.sha256:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"the bundle in {folder} names the file '{name}', which lies elsewhere; it is not opened")
    for name, expected in about.sha256.items():
        large = name.startswith(f"{TABLES}/") and not tables
        if not large and (problem := damage(folder / name, expected)) is not None:
            raise ValueError(f"the bundle in {folder} is damaged: {problem}; export it again")
