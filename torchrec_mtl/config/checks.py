"""Checks across sections, before anything is built and without reading data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain

from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.checks_device import check_device
from torchrec_mtl.config.checks_features import check_features
from torchrec_mtl.config.checks_tasks import check_tasks
from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.draft import Draft
from torchrec_mtl.config.retrieval import NegativesConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.registry import resolve


def check(draft: Draft) -> list[str]:
    """Return all problems between the sections, as far as these are valid; each with its path and the fix."""
    checks = (_batches, check_features, check_tasks, _evaluation, _retrieval, check_device, _init_from, _sinks)
    return list(chain.from_iterable(one(draft) for one in checks))


def notes(config: RunConfig) -> list[str]:
    """Return what is allowed but seldom meant, for a command that checks to print.

    Example: evaluation on the files of the training.
    """
    data, found = config.data, []
    for this, other in (("train", "eval"), ("train", "test"), ("eval", "test")):
        same = sorted(set(getattr(data, this) or ()) & set(getattr(data, other) or ()))
        if same:
            found.append(f"data.{other}: reads {', '.join(same)} like data.{this}; its metrics will flatter the model")
    return found


def refused_in_runs(config: RunConfig) -> list[str]:
    """Return what only models with unsharded tables can do, with the remedy."""
    if getattr(config.gradient, "exact", None) != "dense":
        return []
    return [
        "gradient.exact: dense is for tables that are ordinary parameters (build_model(..., tables='cpu')), and a run "
        "shards and fuses them; use exact: rows, which gives the same Gramian"
    ]


def _evaluation(draft: Draft) -> Iterator[str]:
    if draft.data is None or draft.data.eval is not None:
        return
    train = draft.train
    for path, plugin in (("bottom", draft.bottom), ("head", draft.head)):
        if plugin is not None and plugin.needs_evaluation:
            yield f"{path}: {plugin.needs_evaluation}"
    asked = {
        "train.monitor.metric": train.monitor.metric != "loss",
        "train.monitor.patience": train.monitor.patience is not None,
        "train.eval_every": train.eval_every is not None,
    }
    if paths := [path for path, is_set in asked.items() if is_set]:
        yield f"{', '.join(paths)}: nothing is evaluated during training without data.eval; name its files there"


def _retrieval(draft: Draft) -> Iterator[str]:
    if draft.head is not None and draft.retrieval is None and draft.head.needs_candidates:
        yield draft.head.needs_candidates
    if draft.retrieval is None or draft.head is None:
        return
    if draft.retrieval.negatives is not None:
        yield from _negatives(draft.retrieval.negatives, draft.head, draft.data)
    if draft.head.retrieves:
        return
    yield (
        f"retrieval: head '{draft.head.type}' scores rows and has no vectors to search by; use a head that retrieves, "
        "such as dmmp, or remove this section"
    )


def _negatives(negatives: NegativesConfig, head: PluginConfig, data: DataConfig | None) -> Iterator[str]:
    if not head.needs_candidates:
        yield (
            f"retrieval.negatives: head '{head.type}' has no softmax over the items of a batch as it is set; give dmmp "
            "an in_batch_weight, or remove this section"
        )
    for name in ("uniform", "popular", "hard"):
        count = getattr(negatives, name)
        if data is not None and count % data.streams:
            near = max(round(count / data.streams), 1) * data.streams
            yield f"retrieval.negatives.{name}: {count} is not a multiple of data.streams = {data.streams}; take {near}"


def _batches(draft: Draft) -> Iterator[str]:
    data = draft.data
    if data is None:
        return
    for key, size in (("batch_size", data.batch_size), ("eval_batch_size", data.eval_batch_size)):
        if size is not None and size % data.streams:
            near = max(round(size / data.streams), 1) * data.streams
            divisor = max(n for n in range(1, min(size, data.streams) + 1) if size % n == 0)
            yield (
                f"data.{key}: {size} is not a multiple of data.streams = {data.streams}; take {near}, or "
                f"data.streams = {divisor}"
            )


def _init_from(draft: Draft) -> Iterator[str]:
    if draft.init_from is not None and os.path.realpath(draft.init_from.run) == os.path.realpath(draft.run_dir):
        yield (
            f"init_from.run: '{draft.init_from.run}' is this run's own run_dir; give the new run another, such as "
            f"run_dir={draft.run_dir}-2"
        )


def _sinks(draft: Draft) -> Iterator[str]:
    for i, name in enumerate(draft.train.sinks):
        try:
            resolve("sink", name)
        except ValueError as error:
            yield f"train.sinks.{i}: {error}"
    twice = sorted({name for name in draft.train.sinks if draft.train.sinks.count(name) > 1})
    yield from (f"train.sinks: '{name}' is named more than once; name it once" for name in twice)
