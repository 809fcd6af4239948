"""Checks across sections, before anything is built and without reading data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from torchrec_mtl.config.base import PluginConfig, did_you_mean
from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.config.training import OptimConfig, TrainConfig
from torchrec_mtl.registry import resolve

_RESERVED = frozenset("@/. ")


def check(sections: Mapping[str, Any]) -> list[str]:
    """Return all problems between the sections that are valid in themselves, each with its path and the fix."""
    data: DataConfig | None = sections.get("data")
    features: FeaturesConfig | None = sections.get("features")
    tasks: tuple[TaskConfig, ...] | None = sections.get("tasks")
    train: TrainConfig = sections.get("train", TrainConfig())
    problems: list[Iterable[str]] = []
    if features is not None:
        problems += [_names(features), _tables(features)]
    if tasks is not None:
        problems += [_tasks(tasks), _losses(tasks), _monitor(train, tasks)]
    if data is not None:
        problems.append(_batches(data))
    if features is not None and tasks is not None:
        problems.append(_leaks(features, tasks, data))
    if tasks is not None and sections.get("head") is not None:
        problems.append(f"head: {text}" for text in sections["head"].problems(tasks))
    if tasks is not None and sections.get("gradient") is not None:
        problems.append(f"gradient.{text}" for text in sections["gradient"].problems(tasks))
        if sections.get("head") is not None and sections.get("bottom") is not None:
            problems.append(_boundary(sections["gradient"], sections["head"], sections["bottom"]))
    problems.append(_device(sections.get("optim", OptimConfig()), train))
    return list(chain.from_iterable(problems))


def _duplicates(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _names(features: FeaturesConfig) -> Iterable[str]:
    named = [*features.sparse, *features.sequences, *features.dense]
    for name in _duplicates(f.name for f in named):
        yield f"features: two features are called '{name}'; rename one and give it a 'column'"
    for name in _duplicates(t.name for t in features.tables):
        yield f"features.tables: two tables are called '{name}'; rename one"
    for thing in (*named, *features.tables):
        if bad := _RESERVED & set(thing.name):
            yield f"features: the name '{thing.name}' holds {sorted(bad)}, which are reserved; rename it"


def _tables(features: FeaturesConfig) -> Iterable[str]:
    tables = {t.name: t for t in features.tables}
    fed = {f.table for f in (*features.sparse, *features.sequences)}
    for section, items in (("sparse", features.sparse), ("sequences", features.sequences)):
        for i, f in enumerate(items):
            if f.table not in tables:
                yield f"features.{section}.{i}: '{f.name}' reads table '{f.table}', which is not in features.tables." + did_you_mean(
                    f.table, tables
                )
    for name in tables.keys() - fed:
        yield f"features.tables: no feature reads table '{name}'; remove it or name it as a feature's 'table'"
    widths = {name: tables[name].dim for name in features.sequence_tables if name in tables}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name} {dim}" for name, dim in sorted(widths.items()))
        yield (
            f"features.tables: tables read by sequences live in one EmbeddingCollection, which wants one dim; found {shown}; "
            "give them the same dim"
        )
    fields = {f.name for f in features.sparse}
    for i, s in enumerate(features.sequences):
        if s.target is not None and s.target not in fields:
            yield f"features.sequences.{i}.target: no sparse feature '{s.target}'.{did_you_mean(s.target, fields)}"


def _tasks(tasks: Sequence[TaskConfig]) -> Iterable[str]:
    for name in _duplicates(t.name for t in tasks):
        yield f"tasks: two tasks are called '{name}'; rename one"
    for t in tasks:
        if bad := _RESERVED & set(t.name):
            yield f"tasks: the name '{t.name}' holds {sorted(bad)}, which are reserved; rename it"
    labels = [t.label for t in tasks]
    for i, t in enumerate(tasks):
        if t.space is not None and t.space in labels[i + 1 :]:
            later = tasks[labels.index(t.space, i + 1)].name
            yield (
                f"tasks: '{t.name}' is defined inside '{t.space}', the label of '{later}', which is listed after it; "
                "list tasks in causal order"
            )
        if t.space == t.label:
            yield f"tasks.{i}.space: '{t.space}' is the task's own label, so that the label would always be 1; remove it"


def _losses(tasks: Sequence[TaskConfig]) -> Iterable[str]:
    for i, t in enumerate(tasks):
        kinds = resolve("loss", t.loss.type).kinds
        if t.kind not in kinds:
            yield f"tasks.{i}.loss: '{t.loss.type}' is a loss for {' and '.join(kinds)} tasks, but '{t.name}' is {t.kind}"


def _monitor(train: TrainConfig, tasks: Sequence[TaskConfig]) -> Iterable[str]:
    metric = train.monitor.metric
    task, separator, name = metric.partition("/")
    if metric == "loss":
        return
    if not separator:
        yield f"train.monitor.metric: expected 'loss' or 'task/metric', such as '{tasks[0].name}/auc' (found '{metric}')"
        return
    kinds = {t.name: t.kind for t in tasks}
    if task not in kinds:
        yield f"train.monitor.metric: no task '{task}'.{did_you_mean(task, kinds)}"
    elif name not in METRICS[kinds[task]]:
        known = did_you_mean(name, METRICS[kinds[task]])
        yield f"train.monitor.metric: a {kinds[task]} task has no metric '{name}'.{known}"


METRICS = {
    "binary": ("auc", "logloss", "ne", "calibration", "ece", "gauc", "loss"),
    "regression": ("rmse", "mae", "nrmse", "nmae", "spearman", "gini", "calibration", "loss"),
}


def _batches(data: DataConfig) -> Iterable[str]:
    for key, size in (("batch_size", data.batch_size), ("eval_batch_size", data.eval_batch_size)):
        if size is not None and size % data.streams:
            near = max(size // data.streams, 1) * data.streams
            yield (
                f"data.{key}: {size} is not a multiple of data.streams = {data.streams}; "
                f"take {near} or set data.streams to a divisor of {size}"
            )


def _leaks(features: FeaturesConfig, tasks: Sequence[TaskConfig], data: DataConfig | None) -> Iterable[str]:
    secret = {t.label: f"the label of task '{t.name}'" for t in tasks}
    if data is not None:
        secret.update({column: "declared in data.outcomes" for column in data.outcomes})
    for t in tasks:
        if t.space is not None:
            secret.setdefault(t.space, f"the space of task '{t.name}', known only after the fact")
    for section in ("sparse", "sequences", "dense"):
        for i, f in enumerate(getattr(features, section)):
            if f.source in secret:
                yield (
                    f"features.{section}.{i}: '{f.name}' reads column '{f.source}', which is {secret[f.source]}: "
                    "an input that is not known when predicting; remove it"
                )


def _boundary(gradient: PluginConfig, head: PluginConfig, bottom: PluginConfig) -> Iterable[str]:
    rule_class = resolve("rule", gradient.type)
    if rule_class.needs != "gramian":
        return
    head_class, bottom_class = resolve("head", head.type), resolve("bottom", bottom.type)
    if head_class.tables == "own":
        yield (
            f"gradient: '{gradient.type}' cannot act under head '{head.type}': its tables belong to one task each, so the tasks' "
            "gradients never meet; use gradient: {type: sum}"
        )
    if getattr(gradient, "at", "embeddings") != "representation":
        return
    if bottom_class.per_task:
        yield (
            f"gradient.at: the bottom '{bottom.type}' makes one representation a task, where all inner products would be 0; "
            "use at: embeddings"
        )
    if head_class.reads_features:
        yield f"gradient.at: head '{head.type}' reads the features past the representation; use at: embeddings"


def _device(optim: OptimConfig, train: TrainConfig) -> Iterable[str]:
    if optim.sparse.type != "adam" or train.device == "cuda":
        return
    import torch  # only this check needs it

    if train.device == "cpu" or not torch.cuda.is_available():
        yield (
            "optim.sparse.type: FBGEMM has no fused adam on CPU; use rowwise_adagrad, adagrad, or sgd, "
            "or train.device=cuda on a machine with one"
        )
