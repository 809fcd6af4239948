"""The files of a run by split: opened, and checked against the config from their footers (no torch needed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrec_mtl.config.explain import ConfigError
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.files import DataFile, find_files, open_files
from torchrec_mtl.data.preflight import check_keys, check_negatives, check_retrieval, check_schema

SPLITS = ("train", "eval", "test")


@dataclass(frozen=True)
class Files:
    """Opened data files."""

    train: tuple[DataFile, ...]
    eval: tuple[DataFile, ...] | None
    test: tuple[DataFile, ...] | None


def missing_files(config: RunConfig) -> list[str]:
    """Return the local files named by the config (globs and URIs aside) that do not exist."""
    data, items = config.data, config.retrieval.items if config.retrieval is not None else ()
    return [p for p in (*data.train, *(data.eval or ()), *(data.test or ()), *items) if _is_missing_file(p)]


def _is_missing_file(pattern: str) -> bool:
    return "://" not in pattern and not any(c in pattern for c in "*?[") and not Path(pattern).exists()


def open_data(config: RunConfig) -> Files:
    """Open all files and check their schemas, all problems at once.

    Raises:
        ConfigError: files are missing or unreadable, or columns do not fit.
    """
    opened, problems = find_data(config)
    if problems:
        raise ConfigError(problems, source="data")
    return Files(opened["train"], opened.get("eval"), opened.get("test"))


def find_data(config: RunConfig) -> tuple[dict[str, tuple[DataFile, ...]], list[str]]:
    """As ``open_data``, but return by split the files that can be opened, and every problem.

    A file whose columns do not fit is among the files, and its problems among the problems.
    """
    problems: list[str] = []
    opened: dict[str, tuple[DataFile, ...]] = {}
    for split in SPLITS:
        patterns: Sequence[str] | None = getattr(config.data, split)
        if patterns is None:
            continue
        files, found = _find(patterns)
        if files:
            opened[split] = files
            found += [*check_schema(files, config), *check_keys(files, config)]
            if config.retrieval is not None and split != "train":
                found += _check_corpus(files, config)
            elif config.retrieval is not None and config.retrieval.negatives is not None:
                found += _check_negatives(files, config)
        problems += [f"data.{split}: {p}" for p in found]
    return opened, problems


def _find(patterns: Sequence[str]) -> tuple[tuple[DataFile, ...], list[str]]:
    try:
        return find_files(patterns)
    except ValueError as error:  # no filesystem opens the URI
        return (), str(error).splitlines()


def _check_corpus(rows: Sequence[DataFile], config: RunConfig) -> list[str]:
    assert config.retrieval is not None
    try:
        return check_retrieval(rows, open_files(config.retrieval.items), config)
    except ValueError as error:
        return [f"retrieval.items: {line}" for line in str(error).splitlines()]


def _check_negatives(train: Sequence[DataFile], config: RunConfig) -> list[str]:
    assert config.retrieval is not None
    assert config.retrieval.negatives is not None
    found = config.retrieval.negatives.found
    try:
        return check_negatives(train, open_files(config.retrieval.items), open_files(found) if found else (), config)
    except ValueError as error:
        return [f"retrieval.negatives: {line}" for line in str(error).splitlines()]
