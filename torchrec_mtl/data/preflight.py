"""Does the data fit the config? Answered from the Parquet footers alone, before anything is built (no torch needed)."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.columns import (
    config_columns,
    found_column,
    item_column,
    query_column,
    retrieval_columns,
    schema_problems,
)
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.one_side import one_sided


def check_schema(files: Sequence[DataFile], config: RunConfig, *, labels: bool = True) -> list[str]:
    """Compare the files' columns with those the config names.

    Args:
        files: opened files.
        config: of the run.
        labels: False for data to predict on, which needs no labels.

    Returns:
        One message a problem: a missing column, a type that does not fit, files that disagree. Empty where all is well.
    """
    columns = config_columns(config.data, config.features, config.tasks, labels=labels)
    if labels and config.retrieval is not None and config.head.needs_candidates:
        columns += (item_column(config.retrieval.item),)
    return schema_problems([(file.path, file.schema) for file in files], columns)


def check_retrieval(rows: Sequence[DataFile], items: Sequence[DataFile], config: RunConfig) -> list[str]:
    """Return what is wrong with the columns of a search of a corpus, in the rows that judge it and in the corpus.

    Args:
        rows: opened files of ``data.eval`` or ``data.test``.
        items: opened files of ``retrieval.items``.
        config: of the run, with a section ``retrieval``.
    """
    assert config.retrieval is not None
    found = schema_problems([(file.path, file.schema) for file in rows], retrieval_columns(config.retrieval))
    return list(dict.fromkeys([*found, *_corpus_problems(rows, items, config)]))


def check_negatives(
    train: Sequence[DataFile], items: Sequence[DataFile], found: Sequence[DataFile], config: RunConfig
) -> list[str]:
    """Return what is wrong with the columns that negatives are drawn by.

    Args:
        train: opened files of ``data.train``.
        items: of ``retrieval.items``.
        found: of ``retrieval.negatives.found``.
        config: of the run, with a section ``retrieval``.
    """
    assert config.retrieval is not None
    problems = _corpus_problems(train, items, config)
    if found:
        asked = [(file.path, file.schema) for file in (*train, *found)]
        problems += schema_problems(asked, [query_column(config.retrieval.query)])
        problems += schema_problems([(file.path, file.schema) for file in found], [found_column()])
    return list(dict.fromkeys(problems))


def _corpus_problems(rows: Sequence[DataFile], items: Sequence[DataFile], config: RunConfig) -> list[str]:
    """Return what is wrong with a corpus, and where rows name items in another way than it does."""
    assert config.retrieval is not None
    corpus = [(file.path, file.schema) for file in one_sided(items, config.features, "item")]
    found = schema_problems(corpus, config_columns(config.data, config.features, config.tasks, labels=False))
    both = [(file.path, file.schema) for file in (*rows, *items)]
    return [*found, *schema_problems(both, [item_column(config.retrieval.item)])]


def check_keys(files: Sequence[DataFile], config: RunConfig) -> list[str]:
    """Return one message for each column of ``data.keys`` that a file lacks."""
    return [
        f"{file.path}: no column '{key}' of data.keys.{did_you_mean(key, file.schema.names)}"
        for file in files
        for key in config.data.keys
        if key not in file.schema.names
    ]
