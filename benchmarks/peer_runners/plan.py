"""Which runs there are, in which order, and which of them are done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer_runners.spec import Spec

Record = dict[str, Any]
"""One line of the results: a `Run`, ``versions``, ``spec``, what was measured or ``error``."""


@dataclass(frozen=True)
class Run:
    """One process: a contender on a job.

    Attributes:
        data: name of the data set; generated data is named by its size.
        model: see `benchmarks.peer_runners.spec.MODELS`.
        repeat: also the seed of the model and of the order of rows.
        contender: "ours" or a peer.
    """

    data: str
    model: str
    repeat: int
    contender: str


def plan(
    contenders: Sequence[str],
    data: Sequence[str],
    models: Sequence[str],
    repeats: int,
    fewer: Mapping[str, int] | None = None,
) -> Iterator[Run]:
    """Yield all runs, interleaved: within a repeat of a job one contender after the other, another one first each time.

    Args:
        contenders: in the order of the first repeat.
        data: names of data sets.
        models: names of models.
        repeats: of each job.
        fewer: contender -> its own, smaller number of repeats.
    """
    for repeat in range(repeats):
        for name in data:
            for model in models:
                for contender in rotated(contenders, repeat):
                    if repeat < (fewer or {}).get(contender, repeats):
                        yield Run(name, model, repeat, contender)


def rotated(contenders: Sequence[str], repeat: int) -> list[str]:
    """Return the contenders, the one that starts moved on by one each repeat."""
    start = repeat % len(contenders)
    return [*contenders[start:], *contenders[:start]]


def make_spec(run: Run, folder: Path, columns: Mapping[str, Any], changes: Mapping[str, Any], scratch: str) -> Spec:
    """Return the job of a run.

    Args:
        run: which.
        folder: of the data, with train.parquet and test.parquet.
        columns: sparse, dense, tasks: what columns.json has.
        changes: settings of `Spec` other than its defaults.
        scratch: folder for what the contender writes.
    """
    return Spec(
        model=run.model,
        train=str(folder / "train.parquet"),
        test=str(folder / "test.parquet"),
        sparse=columns["sparse"],
        dense=tuple(columns["dense"]),
        tasks=tuple(columns["tasks"]),
        folder=scratch,
        seed=run.repeat,
        **changes,
    )


def key(record: Record) -> str:
    """Return what makes two lines the same measurement: the run, the versions, and all that was asked for."""
    named = ("contender", "model", "data", "repeat", "versions", "spec", "cores")
    return json.dumps([record[name] for name in named], sort_keys=True)


def load(path: Path) -> list[Record]:
    """Return the results so far: the last line of each measurement."""
    if not path.exists():
        return []
    records: dict[str, Record] = {}
    for line in path.read_text().splitlines():
        record: Record = json.loads(line)
        records.pop(key(record), None)
        records[key(record)] = record
    return list(records.values())
