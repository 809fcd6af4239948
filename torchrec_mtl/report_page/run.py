"""The page of one run: what was trained, how it went, how good it is, and what its head found. Without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from torchrec_mtl.bench.report import Table
from torchrec_mtl.report_page.curves import curves_of, gradients_of
from torchrec_mtl.report_page.findings import cell, findings_of
from torchrec_mtl.report_page.groups import group_runs
from torchrec_mtl.report_page.html import document, folded, said, sections, table_of
from torchrec_mtl.report_page.memory import HOW_TO_READ, memory_of
from torchrec_mtl.report_page.read import Run, read_run
from torchrec_mtl.report_page.reliability import reliability_of
from torchrec_mtl.training import calibration, findings, ranks_file

_OLD = "the run did not end yet, has no data to evaluate on, or is of before this was written"


def page_of(folder: Path) -> str:
    """Return the page of a run.

    Raises:
        ValueError: it is no run, or one of its files is damaged.
    """
    run = read_run(folder)
    try:
        return _page_of(run)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:  # of another shape
        raise ValueError(f"{folder} does not hold what a training writes: {error!r}. Train it again") from error


def _page_of(run: Run) -> str:
    parts = {
        "Metrics": _metrics(run),
        "Calibration and lift": _reliability(run),
        "Training": _curves(run),
        "Gradients": _gradients(run),
        "Head": _findings(run),
        "Sharding and memory": _memory(run),
        "Config": _config(run),
    }
    return document(f"Run {run.name}", list(_head(run)), sections(parts))


def _head(run: Run) -> Iterator[str]:
    yield plugged(run)
    train = run.config.get("train") or {}
    yield ", ".join(f"{key} {train[key]}" for key in ("epochs", "seed") if key in train)
    yield f"from {run.folder}"


def plugged(run: Run) -> str:
    """Return the classes that the run's config names."""
    named = [(part, run.config[part]) for part in ("head", "bottom", "gradient") if part in run.config]
    return ", ".join(f"{part} {section['type']}" for part, section in named)


def _metrics(run: Run) -> str:
    if run.step is None:
        return _missing("metrics.json", "the run did not end yet, or it has no data to evaluate on")
    if not run.metrics:
        return said("There were no data to evaluate on.")
    kinds = run.tasks
    tables = [
        _metrics_table(f"{kind} tasks, {run.split} data, step {run.step:,}", {t: run.metrics[t] for t in of_kind})
        for kind in dict.fromkeys(kinds.values())
        if (of_kind := [t for t in kinds if t in run.metrics and kinds[t] == kind])
    ]
    return "".join(tables)


def _metrics_table(title: str, tasks: Mapping[str, Mapping[str, float | None]]) -> str:
    names = list(dict.fromkeys(name for metrics in tasks.values() for name in metrics))
    rows = tuple((cell(task), *(cell(_whole(metrics.get(name))) for name in names)) for task, metrics in tasks.items())
    return table_of(Table(title, ("task", *names), rows))


def _whole(value: float | None) -> float | None:
    """Write counts as counts."""
    return int(value) if isinstance(value, float) and value.is_integer() and value >= 1000 else value


def _reliability(run: Run) -> str:
    if run.calibration is None:
        return _missing(calibration.FILE, _OLD)
    of = said(f"Of the {run.calibration.split} data, step {run.calibration.step:,}.")
    drawn = reliability_of(group_runs([run]))
    return f"{of}{drawn}" if drawn else said("No task has predictions that are all finite.")


def _curves(run: Run) -> str:
    if run.log is None:
        return _missing("metrics.jsonl", "nothing was logged yet")
    if not run.log.series:
        return said("metrics.jsonl is empty: nothing was logged yet.")
    return damaged_of(run) + curves_of(run.log, list(run.tasks))


def damaged_of(run: Run) -> str:
    """Return a line on the lines of the log that cannot be read."""
    if run.log is None or not run.log.damaged:
        return ""
    noun = "line" if run.log.damaged == 1 else "lines"
    return said(f"{run.log.damaged:,} {noun} of {run.folder / 'metrics.jsonl'} cannot be read, and are left out.")


def _gradients(run: Run) -> str:
    drawn = "" if run.log is None else gradients_of(run.log, list(run.tasks))
    return drawn or said(
        "Nothing was logged of the tasks' gradients: the rule does not look at them, or there is one task. A rule such "
        "as gradient: {type: htlnet, core: TASK} logs their cosines and norms."
    )


def _findings(run: Run) -> str:
    if run.findings is None:
        return _missing(findings.FILE, f"the head {run.head} tells nothing beyond its metrics, or is in training")
    return findings_of(run.findings) or said("The head found nothing to tell.")


def _memory(run: Run) -> str:
    if run.ranks is None:
        return _missing(ranks_file.FILE, "training did not end yet, or ended before this was written")
    return said(HOW_TO_READ) + memory_of(run.ranks)


def _config(run: Run) -> str:
    tasks = [
        tuple(cell(str(value)) for value in (t["name"], t.get("kind"), t.get("label"), t.get("space") or "all rows"))
        for t in run.config["tasks"]
    ]
    whole = config_text(run, "config.yaml")
    return table_of(Table("Tasks", ("task", "kind", "label", "space"), tuple(tasks))) + whole


def config_text(run: Run, title: str) -> str:
    """Return the whole config, closed at first."""
    text = (run.folder / "config.yaml").read_text(encoding="utf-8")
    return folded(title, f"<pre class=wide>{escape(text)}</pre>")


def _missing(name: str, why: str) -> str:
    return said(f"There is no {name}: {why}.")
