"""The page of one run: what was trained, how it went, how good it is, and what its head found. Without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from torchrec_mtl.atomic import whole_file
from torchrec_mtl.bench.report import Table
from torchrec_mtl.config.text import read_plain
from torchrec_mtl.report_page.curves import curves_of, read_lines
from torchrec_mtl.report_page.findings import cell, findings_of
from torchrec_mtl.report_page.html import document, folded, table_of
from torchrec_mtl.training import findings

Config = Mapping[str, Any]


def write_page(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run; return where it lies, by default ``report.html`` in the run.

    Raises:
        ValueError: it is no run, one of its files is damaged, or the page cannot be written.
    """
    page = page_of(run)
    out = out or run / "report.html"
    with whole_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


def page_of(run: Path) -> str:
    """Return the page of a run.

    Raises:
        ValueError: it is no run, or one of its files is damaged.
    """
    config = _read_config(run)
    try:
        return _page_of(run, config)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:  # JSON and YAML of another shape
        raise ValueError(f"{run} does not hold what a training writes: {error!r}. Train it again") from error


def _page_of(run: Path, config: Config) -> str:
    sections = {
        "Metrics": _metrics(run / "metrics.json", config),
        "Training": _curves(run / "metrics.jsonl", config),
        "Head": _findings(run / findings.FILE, config),
        "Config": _config(run, config),
    }
    body = "\n".join(f"<section class=short><h2>{title}</h2>{section}</section>" for title, section in sections.items())
    return document(f"Run {run.resolve().name}", list(_head(run, config)), body)


def _read_config(run: Path) -> Config:
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} is not a run: config.yaml is missing. Give the run_dir of a training")
    config = read_plain(path)
    if not isinstance(config, dict) or not {"data", "head", "tasks"} <= config.keys():
        raise ValueError(f"{run} is not a run: its config.yaml is of something else. Give the run_dir of a training")
    return config


def _head(run: Path, config: Config) -> Iterator[str]:
    plugged = [f"{part} {config[part]['type']}" for part in ("head", "bottom", "gradient") if part in config]
    yield ", ".join(plugged)
    train = config.get("train", {})
    yield ", ".join(f"{key} {train[key]}" for key in ("epochs", "seed") if key in train)
    yield f"from {run}"


def _metrics(path: Path, config: Config) -> str:
    if not path.is_file():
        return _missing(path, "the run did not end yet, or it has no data to evaluate on")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        step, tasks = found["step"], found["tasks"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold the metrics of a run: {error!r}") from error
    if not tasks:
        return "<p class=soft>There were no data to evaluate on.</p>"
    kinds = {task["name"]: task.get("kind", "") for task in config["tasks"]}
    split = "test" if config["data"].get("test") else "eval"
    tables = [
        _metrics_table(f"{kind} tasks, {split} data, step {step:,}", {t: tasks[t] for t in of_kind})
        for kind in dict.fromkeys(kinds.values())
        if (of_kind := [t for t in kinds if t in tasks and kinds[t] == kind])
    ]
    return "".join(tables)


def _metrics_table(title: str, tasks: Mapping[str, Mapping[str, float | None]]) -> str:
    names = list(dict.fromkeys(name for metrics in tasks.values() for name in metrics))
    rows = tuple((cell(task), *(cell(_whole(metrics.get(name))) for name in names)) for task, metrics in tasks.items())
    return table_of(Table(title, ("task", *names), rows))


def _whole(value: float | None) -> float | None:
    """Write counts as counts."""
    return int(value) if isinstance(value, float) and value.is_integer() and value >= 1000 else value


def _findings(path: Path, config: Config) -> str:
    if not path.is_file():
        return _missing(path, f"the head {config['head']['type']} tells nothing beyond its metrics, or is in training")
    return findings_of(findings.load_findings(path)) or "<p class=soft>The head found nothing to tell.</p>"


def _curves(path: Path, config: Config) -> str:
    if not path.is_file():
        return _missing(path, "nothing was logged yet")
    lines = read_lines(path)
    if not lines:
        return f"<p class=soft>{path.name} is empty: nothing was logged yet.</p>"
    return curves_of(lines, [task["name"] for task in config["tasks"]])


def _config(run: Path, config: Config) -> str:
    tasks = [
        tuple(cell(str(value)) for value in (t["name"], t.get("kind"), t.get("label"), t.get("space") or "all rows"))
        for t in config["tasks"]
    ]
    text = (run / "config.yaml").read_text(encoding="utf-8")
    whole = folded("config.yaml", f"<pre class=wide>{escape(text)}</pre>")
    return table_of(Table("Tasks", ("task", "kind", "label", "space"), tuple(tasks))) + whole


def _missing(path: Path, why: str) -> str:
    return f"<p class=soft>There is no {escape(path.name)}: {escape(why)}.</p>"
