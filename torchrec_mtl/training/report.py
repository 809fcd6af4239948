"""The table at the end of a run: metrics by task, next to two reference models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.training.evaluation import Metrics
from torchrec_mtl.training.findings import show_findings
from torchrec_mtl.training.run import RunResult

_COLUMNS = {
    "binary": ("auc", "gauc", "logloss", "ne", "calibration", "ece"),
    "regression": ("rmse", "mae", "nrmse", "nmae", "spearman", "gini", "calibration"),
}


def show(console: Console, config: RunConfig, result: RunResult) -> None:
    """Print the tables of a finished run."""
    if result.evaluation is None:
        console.print("nothing to evaluate: data.eval and data.test are not set", highlight=False)
    else:
        models = {config.head.type: result.evaluation.tasks, **result.references}
        show_evaluation(console, config, models, f"{result.split} data, step {result.step}")
    show_findings(console, result.findings)


def show_evaluation(console: Console, config: RunConfig, models: Mapping[str, Metrics], title: str) -> None:
    """Print one table a kind of task, a row for each task and model.

    Args:
        console: where to.
        config: of the run.
        models: model -> task -> metric -> value.
        title: what was evaluated.
    """
    # Pipes and files say 80 columns, where the tables would break.
    wide = console if console.is_terminal else Console(file=console.file, width=max(console.width, 120))
    for kind, names in _COLUMNS.items():
        tasks = [t.name for t in config.tasks if t.kind == kind]
        present = [n for n in names if any(n in models[m].get(t, {}) for m in models for t in tasks)]
        if not tasks:
            continue
        table = Table(title=f"{kind} tasks, {title}", title_justify="left")
        for column in ("task", "model", *present):
            table.add_column(column, justify="left" if column in {"task", "model"} else "right")
        for task in tasks:
            for model, metrics in models.items():
                values = [_shown(metrics[task].get(n)) for n in present]
                table.add_row(task, model, *values, end_section=model == list(models)[-1])
        wide.print(table)
    if config.retrieval is not None:
        wide.print(_retrieval_table(config.retrieval.ks, models[config.head.type], title))


def _retrieval_table(ks: Sequence[int], tasks: Metrics, title: str) -> Table:
    """Return what was found in the whole corpus: a row a task and length of the list."""
    names = ("recall", "ndcg", "hit", "coverage")
    table = Table(title=f"retrieval from the whole corpus, {title}", title_justify="left")
    for column in ("task", "queries", "k", *names):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, metrics in tasks.items():
        queries = metrics.get("queries", 0)
        for k in ks:
            values = [_shown(metrics.get(f"{name}@{k}")) for name in names]
            table.add_row(task, f"{queries:,.0f}", str(k), *values, end_section=k == ks[-1])
    return table


def _shown(value: float | None) -> str:
    return "" if value is None else "-" if math.isnan(value) else f"{value:.4f}"
