"""Checks of tasks, their losses and metrics, and of the plug-ins that serve them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from torchrec_mtl.config.base import did_you_mean
from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.draft import DEFAULT_LOSS, Draft
from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.registry import resolve

METRICS = {
    "binary": ("auc", "logloss", "ne", "calibration", "ece", "gauc", "loss"),
    "regression": ("rmse", "mae", "nrmse", "nmae", "spearman", "gini", "calibration", "loss"),
}
_SUM = "use gradient: {type: sum}"


def check_tasks(draft: Draft) -> Iterator[str]:
    """Yield what is wrong with tasks, losses, the monitored metric, head, bottom, and gradient rule."""
    return chain(
        _tasks(draft),
        _gates(draft),
        _orders(draft),
        _losses(draft),
        _monitor(draft),
        _plugins(draft),
        _features(draft),
        _sides(draft),
        _gradient(draft),
    )


def _tasks(draft: Draft) -> Iterator[str]:
    labels = {i: t.label for i, t in draft.tasks.items()}
    for i, task in draft.tasks.items():
        owners = {k: draft.tasks[k] for k, label in labels.items() if label == task.space and k != i}
        later = next((t for k, t in owners.items() if k > i), None)
        if task.space == task.label:
            yield f"tasks.{i}.space: '{task.space}' is the task's own label, which would always be 1; remove it"
        elif any(owner.kind == "regression" for owner in owners.values()):
            yield f"tasks.{i}.space: '{task.space}' is the label of a regression; a space is a column of 0 and 1"
        elif later is not None and not any(k < i for k in owners):
            yield (
                f"tasks.{i}.space: '{task.name}' is defined inside '{task.space}', the label of '{later.name}', which "
                "comes after it; list tasks in causal order"
            )
    whole = 0 < draft.num_tasks == len(draft.tasks)
    alone = draft.head is not None and draft.head.trains_alone
    if whole and not alone and all(t.weight == 0 for t in draft.tasks.values()):
        yield "tasks: the weight of every task is 0, so that nothing is trained; give one a positive weight"


def _gates(draft: Draft) -> Iterator[str]:
    """A gate is an earlier binary task over the same rows, and what it gates is a number."""
    for i, task in draft.tasks.items():
        if task.gate is None:
            continue
        path = f"tasks.{i}.gate"
        if task.kind != "regression":
            yield f"{path}: '{task.name}' is a binary task; a gate says whether a number is above 0. Remove it"
            continue
        yield from _earlier_binary(draft, i, path, task.gate)
        gate = next((t for t in draft.tasks.values() if t.name == task.gate), None)
        if i in draft.losses and resolve("loss", draft.losses[i].type).models_zeros:
            yield (
                f"{path}: loss '{draft.losses[i].type}' models zeros itself, and the gate leaves it none; use "
                "lognormal, or drop gate"
            )
        if gate is not None and gate.space != task.space:
            yield (
                f"{path}: '{task.gate}' and '{task.name}' are defined on other rows (space: {gate.space} and "
                f"{task.space}), so that P(gate) E[y | y > 0] is no mean of '{task.name}'; give both the same space"
            )


def _orders(draft: Draft) -> Iterator[str]:
    for i, task in draft.tasks.items():
        if task.order is None:
            continue
        path = f"tasks.{i}.order"
        if task.kind != "binary":
            yield f"{path}: '{task.name}' is a regression; only probabilities can be ordered. Remove it"
            continue
        yield from _earlier_binary(draft, i, f"{path}.below", task.order.below)


def _earlier_binary(draft: Draft, i: int, path: str, name: str) -> Iterator[str]:
    """Say what is wrong where ``name`` is no binary task before task ``i``."""
    if draft.task_names is not None and name not in draft.task_names:
        yield f"{path}: no task is called '{name}'.{did_you_mean(name, draft.task_names)}"
        return
    for k, other in draft.tasks.items():
        if other.name != name:
            continue
        if other.kind != "binary":
            yield f"{path}: '{name}' is a regression; name a binary task"
        elif other.weight == 0:
            yield f"{path}: '{name}' has weight 0 and would never be trained; give it a weight"
        elif k >= i:
            yield f"{path}: '{name}' must come before '{draft.tasks[i].name}'; list tasks in causal order"


def _losses(draft: Draft) -> Iterator[str]:
    for i, loss in draft.losses.items():
        task, kinds = draft.tasks[i], resolve("loss", loss.type).kinds
        if task.kind not in kinds:
            yield (
                f"tasks.{i}.loss: '{loss.type}' is a loss of {' and '.join(kinds)} tasks, but '{task.name}' is "
                f"{task.kind}; use {DEFAULT_LOSS[task.kind]}"
            )


def _plugins(draft: Draft) -> Iterator[str]:
    """Ask bottom, head, and rule themselves; they see whole lists of tasks only."""
    tasks = tuple(draft.tasks.values())
    if not tasks or len(tasks) != draft.num_tasks:
        return
    plugins = {"bottom": draft.bottom, "head": draft.head}
    if draft.gradient is not None and len(tasks) > 1:
        plugins["gradient"] = draft.gradient
    for path, plugin in plugins.items():
        yield from _placed(path, plugin.problems(tasks) if plugin is not None else ())


def _placed(path: str, texts: Iterable[str]) -> Iterator[str]:
    """Put the section before a plug-in's messages, of which some name an option."""
    return (f"{path}.{text}" if re.match(r"[\w.]+: ", text) else f"{path}: {text}" for text in texts)


def _features(draft: Draft) -> Iterator[str]:
    """Ask bottom and head whether the features suit them, and whether those that their options name are there."""
    dims = {t.name: t.dim for t in draft.tables.values()}
    fields = {f.name: dims.get(f.table) for f in draft.sparse.values()}
    sequences = {s.name: dims.get(s.table) for s in draft.sequences.values()}
    targets = {s.name: s.target for s in draft.sequences.values() if s.target is not None}
    for path, plugin in {"bottom": draft.bottom, "head": draft.head}.items():
        yield from _placed(path, plugin.feature_problems(fields, sequences, targets) if plugin is not None else ())


def _sides(draft: Draft) -> Iterator[str]:
    """A head that reads one side alone wants features of it."""
    sides: dict[str, str] = {f.name: f.side for f in draft.sparse.values()}
    sides |= {s.name: s.side for s in draft.sequences.values()} | {d.name: d.side for d in draft.dense.values()}
    head = draft.head
    if head is None or not sides:
        return
    for side in head.needs_sides:
        if side not in sides.values():
            found = ", ".join(f"{name} ({whose})" for name, whose in sides.items())
            yield (
                f"head: '{head.type}' has a tower of the {side}'s features, and no feature has side: {side} (found "
                f"{found}); give features their sides, such as {{name: user, table: user, side: user}}"
            )


def _monitor(draft: Draft) -> Iterator[str]:
    metric, tasks = draft.train.monitor.metric, {t.name: t for t in draft.tasks.values()}
    task, separator, name = metric.partition("/")
    path = "train.monitor.metric"
    if metric == "loss" or draft.task_names is None:
        return
    if not separator:
        fitting = [t.name for t in tasks.values() if metric in METRICS[t.kind]]
        example = f"{fitting[0]}/{metric}" if fitting else f"{next(iter(draft.task_names), 'task')}/loss"
        yield f"{path}: expected loss, or task/metric such as {example} (found '{metric}')"
    elif task not in draft.task_names:
        yield f"{path}: no task is called '{task}'.{did_you_mean(task, draft.task_names)}"
    elif task in tasks:
        yield from _metric(path, name, tasks[task], draft.data, draft.retrieval)


def _metric(
    path: str, name: str, task: TaskConfig, data: DataConfig | None, retrieval: RetrievalConfig | None
) -> Iterator[str]:
    if retrieval is not None and name in retrieval.metrics:
        return
    if name not in METRICS[task.kind]:
        yield f"{path}: a {task.kind} task has no metric '{name}'.{did_you_mean(name, METRICS[task.kind])}"
    elif name == "gauc" and data is not None and data.group is None:
        yield f"{path}: gauc needs groups; name their column in data.group"


def _gradient(draft: Draft) -> Iterator[str]:
    rule = draft.gradient
    if rule is None:
        return
    needs = resolve("rule", rule.type).needs
    at, exact = getattr(rule, "at", "embeddings"), getattr(rule, "exact", "boundary")
    if needs != "gramian":
        if at != "embeddings":
            yield f"gradient.at: '{rule.type}' has no boundary to put anywhere; remove this key"
        if exact != "boundary":
            yield f"gradient.exact: '{rule.type}' looks at no gradients; remove this key"
    else:
        yield from _boundary(draft, rule.type, at)
        if at == "representation" and exact != "boundary":
            yield f"gradient.exact: '{exact}' is about rows of tables, which at: representation never sees; remove one"
        if draft.head is not None and draft.head.alternates:
            yield (
                f"gradient: '{rule.type}' compares the tasks' gradients of a step, and head '{draft.head.type}' gives "
                f"each step to one task; {_SUM}"
            )
    active = [t for t in draft.tasks.values() if t.weight > 0]
    if needs != "nothing" and len(draft.tasks) == draft.num_tasks and len(active) == 1:
        only = "there is one" if draft.num_tasks == 1 else f"only '{active[0].name}' has a weight above 0"
        yield f"gradient: '{rule.type}' wants two tasks or more, and {only}; {_SUM}"
    core = getattr(rule, "core", None)
    if core is not None and any(t.name == core and t.weight == 0 for t in draft.tasks.values()):
        yield f"gradient.core: '{core}' has weight 0, so that there is no gradient to compare with; give it a weight"


def _boundary(draft: Draft, rule: str, at: str) -> Iterator[str]:
    """A rule must act where the tasks' gradients meet, or it does nothing in silence."""
    head = resolve("head", draft.head.type) if draft.head is not None else None
    bottom = resolve("bottom", draft.bottom.type) if draft.bottom is not None else None
    if draft.head is not None and head is not None and head.tables == "own":
        yield (
            f"gradient: '{rule}' cannot act under head '{draft.head.type}', whose tables belong to one task each, so "
            f"that gradients never meet; {_SUM}"
        )
        return
    if at == "embeddings" and draft.fed_tables == frozenset():
        yield f"gradient: '{rule}' acts at the embeddings, and no feature has one; {_SUM}"
    if at != "representation":
        return
    if draft.bottom is not None and bottom is not None and bottom.per_task:
        yield (
            f"gradient.at: bottom '{draft.bottom.type}' makes one representation a task, where gradients never meet; "
            "use at: embeddings"
        )
    if draft.head is not None and head is not None and head.reads_features:
        yield f"gradient.at: head '{draft.head.type}' reads features past the representation; use at: embeddings"
