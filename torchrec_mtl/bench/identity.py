"""What makes two runs the same: hashes of a run's config and of its data files."""

from __future__ import annotations

import hashlib
from typing import Any

from torchrec_mtl.config.later import unknown_before
from torchrec_mtl.config.load import dump
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.fingerprint import Fingerprint
from torchrec_mtl.data.splits import Files


def canonical(run: RunConfig) -> str:
    """Return, as YAML, all that decides a run's result but its seed and data."""
    plain = run.model_copy(
        update={
            "run_dir": "-",
            # How a run saves, and whom it tells, changes nothing of what it finds.
            "train": run.train.model_copy(update={"seed": 0, "references": False, "save": "auto", "sinks": ()}),
            "data": run.data.model_copy(update={"prepare": None}),
        }
    )
    return dump(plain, without=unknown_before(plain))


def fingerprint(run: RunConfig, files_mark: str) -> str:
    """Return a hash of all that decides a run's result but its seed: a changed YAML, or data, is another run."""
    return short_hash(canonical(run) + files_mark)


def files_mark(files: Files) -> str:
    """Return a hash of the names, sizes, and row groups of the data files."""
    splits = (files.train, files.eval, files.test)
    return short_hash("".join(Fingerprint.of(split).model_dump_json() for split in splits if split is not None))


def short_hash(text: str) -> str:
    """Return a hash of 16 letters."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def section(run: RunConfig, path: str) -> Any:  # noqa: ANN401
    """Return the value at ``key.path`` of a config; None where there is none. Items of lists by name or position.

    Example: ``section(run, "tasks.click.weight")``.
    """
    node: Any = run.model_dump(mode="json")
    for key in path.split("."):
        if isinstance(node, list):
            named = [item for item in node if isinstance(item, dict) and item.get("name") == key]
            node = named[0] if named else node[int(key)] if key.isdigit() and int(key) < len(node) else None
        else:
            node = node.get(key) if isinstance(node, dict) else None
    return node
