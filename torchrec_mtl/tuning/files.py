"""From a result to files: ``front.json``, ``front.md``, ``front.html``, plots, ``best.yaml``, ``study.journal``."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from torchrec_mtl.atomic import whole_file, write_text
from torchrec_mtl.bench.identity import canonical
from torchrec_mtl.bench.markdown import to_markdown
from torchrec_mtl.bench.page import to_html
from torchrec_mtl.bench.report import Report
from torchrec_mtl.config.load import load_config
from torchrec_mtl.config.overrides import apply_overrides
from torchrec_mtl.config.text import read_yaml, write_yaml
from torchrec_mtl.tuning.geometry import hypervolumes
from torchrec_mtl.tuning.report import failures, settings_of
from torchrec_mtl.tuning.results import Point, Result, Split


def write(result: Result, report: Report, study: optuna.Study | None, out: Path) -> str:
    """Write everything; return the JSON.

    Args:
        result: what the study came to.
        report: of it.
        study: optuna's, for its own tools; None: there is none.
        out: folder.
    """
    text = to_json(result)
    write_text(out / "front.json", text)
    write_text(out / "front.md", to_markdown(report))
    write_text(out / "front.html", to_html(report))
    for plot in (plot for section in report.sections for plot in section.plots):
        write_text(out / plot.name, plot.svg)
    if result.chosen is None:
        (out / "best.yaml").unlink(missing_ok=True)  # of an earlier choice
    else:
        write_text(out / "best.yaml", best_yaml(result, result.chosen, out))
    if study is not None:
        _write_journal(study, result, out / "study.journal")
    return text


def best_yaml(result: Result, chosen: Point, out: Path) -> str:
    """Return the config's YAML with the chosen settings and a ``run_dir`` of its own; ``train`` runs it as it is."""
    study = result.study
    raw, _ = read_yaml(study.config.read_text(encoding="utf-8-sig"))
    words = [*study.words, *chosen.trial.words, f"run_dir={json.dumps(str(out / 'best'))}"]
    if study.run.data.prepare is not None:
        words.append(f"data.prepare={json.dumps(os.path.relpath(study.run.data.prepare, out.resolve()))}")
    if problems := apply_overrides(raw, words):  # a config that changed since it was read
        raise ValueError(f"{study.config}: the chosen settings cannot be written into it: {'; '.join(problems)}")
    tried = " ".join(chosen.trial.words) or "as it is"
    lines = [
        f"# {study.config} {' '.join(study.words)}".rstrip() + ",",
        f"# with the settings of {chosen.name}: {tried}",
        f"# ({result.choice.said}; validation rows). Written by torchrec-mtl tune.",
        write_yaml(raw),
    ]
    return "\n".join(lines)


def check_best(result: Result, out: Path) -> None:
    """Make sure that ``best.yaml`` is the config that was trained.

    Raises:
        ValueError: it is not; it is deleted.
    """
    if result.chosen is None:
        return
    written, trained = load_config(out / "best.yaml"), result.study.configure(result.chosen.trial.words)
    if canonical(written) != canonical(trained) or written.data.prepare != trained.data.prepare:
        (out / "best.yaml").unlink()
        raise ValueError(
            f"{out / 'best.yaml'} would not be the config that was trained (was {result.study.config} changed "
            f"meanwhile?) and is not written; trial {result.chosen.trial.number}'s settings are in front.json"
        )


def to_json(result: Result) -> str:
    """Return what ``front.json`` holds; what is not defined is null."""
    study = result.study
    objectives = [
        {
            "task": o.task,
            "metric": o.metric,
            "direction": "maximize" if o.sign > 0 else "minimize",
            **({} if study.weights is None else {"weight": study.weights[i]}),
        }
        for i, o in enumerate(study.objectives)
    ]
    first = result.trials[0].row
    found = {
        "config": str(study.config),
        "overrides": list(study.words),
        "objectives": objectives,
        "seeds": list(study.space.seeds),
        "trials": [_trial(result, i) for i in range(len(result.trials))],
        "points": [_point(result, point) for point in result.points],
        "chosen": None if result.chosen is None else result.chosen.trial.number,
        "rule": result.choice.said,
        "hypervolume": hypervolumes([trial.gains for trial in result.trials]),
        "failures": failures(result),
        "machine": first.machine,
        "versions": first.versions,
    }
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _trial(result: Result, i: int) -> dict[str, Any]:
    trial = result.trials[i]
    return {
        "trial": trial.number,
        "status": "failed" if trial.gains is None else "ok",
        "settings": settings_of(result, trial),
        "validation": {o.name: o.of(trial.row.validation) for o in result.study.objectives},
        "seconds": trial.row.seconds,
    }


def _point(result: Result, point: Point) -> dict[str, Any]:
    splits: list[Split] = ["validation", "test"] if result.split == "test" else ["validation"]
    return {
        "trial": point.trial.number,
        "untuned": not point.trial.words,
        "settings": settings_of(result, point.trial),
        "overrides": list(point.trial.words),
        "complete": point.complete,
        "beaten_by": [other.trial.number for other in result.beaten_by(point)],
        **{split: _figures(result, point, split) for split in splits},
    }


def _figures(result: Result, point: Point, split: Split) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for objective in result.study.objectives:
        estimate = point.estimate(objective, split)
        numbers = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
        found[objective.name] = {
            **{key: value if abs(value) < float("inf") else None for key, value in numbers.items()},
            "by_seed": {str(seed): value for seed, value in point.values(objective, split).items()},
        }
    return found


def _write_journal(study: optuna.Study, result: Result, path: Path) -> None:
    """Copy the trials to where optuna's own tools read them; what is minimised has its sign turned."""
    names = [("-" if o.sign < 0 else "") + o.name for o in result.study.objectives]
    with whole_file(path) as partial:
        partial.unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(partial)))
        copy = optuna.create_study(storage=storage, study_name="tune", directions=study.directions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            copy.set_metric_names(names if result.study.weights is None else ["weighted sum"])
        for trial in study.get_trials(deepcopy=False):
            copy.add_trial(trial)
