r"""Does DTRN help the head above it, which of its modules does, and what does it cost?

    python benchmarks/dtrn.py [quality] [--out runs/bench-dtrn] [--models "mmoe, DTRN" ...] [--report-only]
    python benchmarks/dtrn.py --suite benchmarks/dtrn_movielens.yaml --lightgbm runs/movielens-lightgbm.json
    python benchmarks/dtrn.py cost [--batch 1024] [--repeats 7]

``quality`` runs benchmarks/dtrn.yaml, or what is missing of it (stop and start it at will), then prints each question
as differences paired by seed, and the model best on the validation rows beside LightGBM on the same files, whose
figures come from `python examples/kuairand/lightgbm_reference.py --out runs/kuairand-lightgbm.json`. The same is
written to OUT/questions.md; OUT/table.md has all metrics. ``cost`` is benchmarks/dtrn_cost.py.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy.stats import t as student

from torchrec_mtl.bench.command import InterruptedBenchError, Options, bench
from torchrec_mtl.bench.markdown import to_markdown
from torchrec_mtl.bench.pairs import check_pairs
from torchrec_mtl.bench.report import Cell, Mark, Report, Section, Table
from torchrec_mtl.bench.rows import Log
from torchrec_mtl.bench.statistics import Difference, Estimate, estimate, holm, paired_difference
from torchrec_mtl.bench.suite import Suite, load_suite
from torchrec_mtl.bench.tables import by_seed, tasks_of
from torchrec_mtl.bench.tuning import Outcome, replay
from torchrec_mtl.config.explain import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SUITE, LIGHTGBM = Path("benchmarks/dtrn.yaml"), Path("runs/kuairand-lightgbm.json")
# The first minus the second, under each head that has both.
QUESTIONS = (
    ("DTRN", "pooled histories"),
    ("DTRN", "DIN"),
    ("DTRN", "plain transformer"),
    ("interest alone", "pooled histories"),
    ("refinement alone", "pooled histories"),
    ("DIN", "pooled histories"),
    ("pooled histories", "no histories"),
)
MEAN = "mean of tasks"
TUNED, UNTUNED = "tuned", "200 trees, not tuned"
_ALPHA = 0.05

Values = Mapping[str, Mapping[int, float]]  # task -> seed -> AUC on the test rows
References = Mapping[str, Mapping[str, Sequence[float]]]  # how LightGBM was trained -> task -> AUC, one a seed


@dataclass(frozen=True)
class Measured:
    """What is known of one model.

    Attributes:
        score: of its tuning, on the validation rows; None while that goes on.
        values: task -> seed -> AUC on the test rows.
    """

    score: float | None
    values: Values


@dataclass(frozen=True)
class Answer:
    """One question under one head.

    Attributes:
        head: the head.
        first: what is asked about.
        second: what it is compared with.
        differences: task (and the mean of all) -> first minus second.
    """

    head: str
    first: str
    second: str
    differences: Mapping[str, Difference]


def measured(suite: Suite, out: Path, metric: str = "auc") -> dict[str, Measured]:
    """Return model -> what the log in ``out`` has of it; models without a run are left out."""
    log, found = Log(out / "runs.jsonl"), {}
    for pair in check_pairs(suite, Console(stderr=True), prepare=False).pairs:
        outcome = Outcome(pair)
        replay(suite, outcome, log)
        values = {task.name: by_seed(outcome, (task.name, metric)) for task in tasks_of([outcome])}
        if outcome.trials:
            found[pair.model.name] = Measured(None if outcome.best is None else outcome.best.score, values)
    return found


def questions(models: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return head, first, second of all that can be asked of models named ``head, bottom``; question by question."""
    heads = list(dict.fromkeys(name.partition(", ")[0] for name in models))
    return [
        (head, first, second)
        for first, second in QUESTIONS
        for head in heads
        if f"{head}, {first}" in models and f"{head}, {second}" in models
    ]


def with_mean(values: Values) -> dict[str, Mapping[int, float]]:
    """Add the mean of the tasks, of the seeds that all tasks have."""
    seeds = [s for s in next(iter(values.values())) if all(s in found for found in values.values())]
    return {**values, MEAN: {s: float(np.mean([found[s] for found in values.values()])) for s in seeds}}


def answers(found: Mapping[str, Measured]) -> list[Answer]:
    """Return the answers that the seeds known so far allow."""
    made = []
    for head, first, second in questions(list(found)):
        ours, theirs = (with_mean(found[f"{head}, {bottom}"].values) for bottom in (first, second))
        differences = {}
        for task in ours:
            seeds = [seed for seed in ours[task] if seed in theirs[task]]
            if seeds:
                pairs = [ours[task][s] for s in seeds], [theirs[task][s] for s in seeds]
                differences[task] = paired_difference(*pairs)
        if differences:
            made.append(Answer(head, first, second, differences))
    return made


def questions_table(found: Sequence[Answer], metric: str = "auc") -> Table:
    """Return a row an answer; marked where p, corrected for all cells, is below 0.05."""
    keys = [(i, task) for i, answer in enumerate(found) for task in answer.differences]
    corrected = dict(zip(keys, holm([found[i].differences[task].p for i, task in keys]), strict=True))
    columns = list(dict.fromkeys(task for _, task in keys))
    rows = []
    for i, answer in enumerate(found):
        names = Cell(f"{answer.first} against {answer.second}", number=False), Cell(answer.head, number=False)
        cells = (_compared(answer.differences.get(task), corrected.get((i, task), math.nan)) for task in columns)
        rows.append((*names, *cells, Cell(str(max(d.count for d in answer.differences.values())))))
    notes = (
        f"{metric.upper()} on the test rows, first minus second, paired by seed, ± 95 % interval (Student's t). Second "
        f"line: p of the paired t-test, corrected for all cells (Holm); ▲ better, ▼ worse: p < {_ALPHA:g}.",
    )
    return Table("Questions", ("question", "head", *columns, "seeds"), tuple(rows), notes)


def claim(found: Sequence[Answer]) -> str:
    """Return in how many cells DTRN is above pooled histories, and in how many the interval says so."""
    [ours, theirs] = QUESTIONS[0]
    cells = [
        difference
        for answer in found
        if (answer.first, answer.second) == (ours, theirs)
        for task, difference in answer.differences.items()
        if task != MEAN
    ]
    above, below = (sum(d.low > 0 for d in cells), sum(d.high < 0 for d in cells))
    return (
        f"{ours} against {theirs}, all heads and tasks: {len(cells)} cells; mean above 0 in "
        f"{sum(d.mean > 0 for d in cells)}; the 95 % interval lies above 0 in {above}, below 0 in {below}."
    )


def best_model(found: Mapping[str, Measured]) -> str | None:
    """Return the model with the best score on the validation rows of those with test rows; these have no say."""
    scored = {n: m.score for n, m in found.items() if m.score is not None and any(m.values.values())}
    return max(scored, key=lambda name: scored[name]) if scored else None


def unpaired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return the difference of two means with Welch's 95 % interval; nan where both have one value or no spread."""
    mean, count = float(np.mean(ours) - np.mean(theirs)), len(ours)
    parts = [(float(np.var(v, ddof=1)) / len(v), len(v) - 1) for v in (ours, theirs) if len(v) > 1]
    total = sum(part for part, _ in parts)
    if total == 0:
        return Estimate(mean, math.nan, count)
    freedom = total**2 / sum(part**2 / f for part, f in parts)
    return Estimate(mean, float(student.ppf(0.975, freedom)) * math.sqrt(total), count)


def lightgbm_table(found: Mapping[str, Measured], references: References) -> Table | None:
    """Return the best model beside LightGBM, on each task and on their mean; None while none has seen the test rows.

    Args:
        found: what is known of the models.
        references: how LightGBM was trained -> task -> its AUC on the test rows, one a seed.
    """
    name = best_model(found)
    if name is None:
        return None
    models = [with_mean(m.values) for m in found.values() if all(m.values.values())]
    best, rows = with_mean(found[name].values), []
    for kind, figures in references.items():
        theirs_of = {task: values for task, values in figures.items() if best.get(task)}
        mean = {MEAN: np.mean(list(theirs_of.values()), axis=0)} if len(theirs_of) == len(best) - 1 else {}
        for task, theirs in (theirs_of | mean).items():
            ours = list(best[task].values())
            difference = unpaired_difference(ours, theirs)
            said = {"better": "yes", "worse": "no"}.get(_excludes_0(difference), "cannot be told")
            above = sum(float(np.mean(list(m[task].values()))) > np.mean(theirs) for m in models)
            cells = (_estimated(estimate(ours)), _estimated(estimate(theirs)), _estimated(difference, "+"), said)
            names = Cell(kind, number=False), Cell(task, number=False)
            rows.append((*names, *map(Cell, cells), Cell(f"{above} of {len(models)}")))
    columns = ("LightGBM", "task", name, "LightGBM's", "difference", "beaten", "models with a higher mean")
    notes = (
        f"AUC on the test rows, mean ± 95 % interval over seeds. {name} has the best score on the validation rows, on "
        f"which {TUNED} LightGBM's settings were chosen, too. Difference: Welch's interval; beaten: it lies above 0.",
    )
    return Table("Against LightGBM", columns, tuple(rows), notes)


def read_lightgbm(path: Path) -> References:
    """Return how LightGBM was trained -> task -> AUC on the test rows, one a seed; empty where the file is missing."""
    if not path.is_file():
        return {}
    figures = json.loads(path.read_text(encoding="utf-8"))
    by_auc = {task: values for task, values in figures.items() if values["metric"] == "auc"}
    kinds = {TUNED: "test", UNTUNED: "untuned"}
    read = {kind: {t: values[key] for t, values in by_auc.items() if key in values} for kind, key in kinds.items()}
    return {kind: tasks for kind, tasks in read.items() if tasks}


def make_report(name: str, found: Mapping[str, Measured], references: References, metric: str = "auc") -> str:
    """Return both tables of the suite called ``name`` as Markdown."""
    known = answers(found)
    tables = [questions_table(known, metric)] if known else []
    head = [claim(known)] if known else ["No two models that are compared have a seed in common yet."]
    if references:
        tables += [table for table in [lightgbm_table(found, references)] if table is not None]
    else:
        head.append("LightGBM is left out; run lightgbm_reference.py of the example first, and name its --out.")
    return to_markdown(Report("DTRN", tuple(head), (Section(name, tuple(tables), (), ()),)))


def quality(arguments: Sequence[str]) -> int:
    """Run the suite, or only report, and print the questions."""
    parser = argparse.ArgumentParser(prog="dtrn.py quality", description="Run the suite and print the questions.")
    parser.add_argument("--out", type=Path, help="folder of the results [runs/bench-NAME]")
    parser.add_argument("--suite", type=Path, default=SUITE, help="[%(default)s]")
    parser.add_argument("--lightgbm", type=Path, help=f"what its script wrote of these data [{LIGHTGBM} for {SUITE}]")
    parser.add_argument("--models", nargs="+", default=[], help="names of the suite; by default all")
    parser.add_argument("--processes", type=int, help="runs at once, one thread each; by default one a core")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--metric", choices=("auc", "gauc"), default="auc", help="of the questions [%(default)s]")
    parser.add_argument("--retry-failed", action="store_true", help="run again what failed before")
    args = parser.parse_args(arguments)
    try:
        suite = load_suite(args.suite)
        out = args.out or Path(f"runs/bench-{suite.name}")
        options = Options(
            suite=args.suite,
            out=out,
            models=args.models,
            processes=args.processes,
            report_only=args.report_only,
            retry_failed=args.retry_failed,
        )
        bench(options, Console(stderr=True))
    except (ConfigError, InterruptedBenchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    reference = args.lightgbm or (LIGHTGBM if args.suite == SUITE else None)
    references = read_lightgbm(reference) if reference and args.metric == "auc" else {}
    report = make_report(suite.name, measured(suite, out, args.metric), references, args.metric)
    (out / "questions.md").write_text(report, encoding="utf-8")
    print(report)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run one part."""
    part, *rest = arguments if arguments and arguments[0] in ("quality", "cost") else ("quality", *arguments)
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if part == "quality":
        return quality(rest)
    sys.path.insert(0, str(ROOT))  # python benchmarks/dtrn.py sees benchmarks/ only
    from benchmarks.dtrn_cost import main as cost

    cost(rest)
    return 0


def _compared(difference: Difference | None, p: float) -> Cell:
    if difference is None:
        return Cell("-")
    mark: Mark = "" if not p < _ALPHA else "better" if difference.mean > 0 else "worse"
    said = "" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p {p:.3f}"
    return Cell(_estimated(difference, "+"), said, mark)


def _excludes_0(found: Estimate) -> Mark:
    return "better" if found.low > 0 else "worse" if found.high < 0 else ""


def _estimated(found: Estimate, sign: str = "") -> str:
    mean = f"{found.mean:{sign}.4f}"
    return mean if math.isnan(found.half) else f"{mean} ± {found.half:.4f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
