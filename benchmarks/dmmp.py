r"""Does the student find what is liked better than other towers, and better than counting?

    python benchmarks/dmmp.py [quality] [--suite FILE] [--out DIR] [--models DMMP ...] [--report-only]
    python benchmarks/dmmp.py baselines [--config examples/movielens/dmmp.yaml] [--split test]

``quality`` runs the suite, or what is missing of it, and prints every model's recall, and differences
paired by seed.
``baselines`` counts: what is popular, what is rated by the same users as the query's history (cosine of items), and
what is rated right after its last item. Ties go by popularity, then by the order of the items file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from scipy import sparse

from torchrec_mtl.bench.command import InterruptedBenchError, Options, bench
from torchrec_mtl.bench.machine import machine, versions
from torchrec_mtl.bench.markdown import to_markdown
from torchrec_mtl.bench.pairs import check_pairs
from torchrec_mtl.bench.report import Cell, Report, Section, Table
from torchrec_mtl.bench.rows import Log
from torchrec_mtl.bench.statistics import estimate, holm, paired_difference
from torchrec_mtl.bench.suite import Suite, load_suite
from torchrec_mtl.bench.tables import by_seed
from torchrec_mtl.bench.tuning import Outcome, replay
from torchrec_mtl.config.explain import ConfigError
from torchrec_mtl.config.load import load_config
from torchrec_mtl.retrieval.metrics import Pairs, retrieval_metrics

SUITE, CONFIG = Path("benchmarks/dmmp_movielens.yaml"), Path("examples/movielens/dmmp.yaml")
OURS = "DMMP"
NO_SOFTMAX = "no in-batch negatives"  # the losses that the paper has
# What the teacher is worth, with the paper's losses alone, and through which of its two ways.
PAIRS = (
    (NO_SOFTMAX, f"three towers, {NO_SOFTMAX}"),
    (NO_SOFTMAX, f"{NO_SOFTMAX}, nothing distilled"),
    (f"{NO_SOFTMAX}, nothing distilled", f"three towers, {NO_SOFTMAX}"),
    (f"GradNorm, {NO_SOFTMAX}", NO_SOFTMAX),
)
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Counted:
    """A scorer whose rows are made when they are asked for.

    Attributes:
        rows: [B, N] sparse, or [1, N] where all queries score alike.
        ties: [N] below 1, added to each; counts are whole numbers, or their sums of cosines.
        num_queries: B.
    """

    rows: Any
    ties: Floats
    num_queries: int

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.ties)

    def scores(self, queries: slice, items: slice) -> Floats:
        """Return [b, n]."""
        some = self.rows if self.rows.shape[0] == 1 else self.rows[queries]
        block = np.asarray(some[:, items].todense(), np.float32) + self.ties[items]
        return np.broadcast_to(block, (queries.stop - queries.start, block.shape[1]))


def baselines(config: Path, split: str, last: str) -> Table:
    """Return what counting finds.

    Args:
        config: a run with a section ``retrieval`` that names what was seen.
        split: eval or test.
        last: column with the item before the row's own.
    """
    run = load_config(config)
    retrieval, tasks = run.retrieval, run.task_names
    if retrieval is None or retrieval.seen is None:
        raise ValueError(f"{config}: no section retrieval with a column `seen`; name both")
    labels = {task.name: task.label for task in run.tasks}
    names = [retrieval.query, retrieval.item]
    items = pd.concat(pd.read_parquet(f, columns=[retrieval.item]) for f in retrieval.items)[retrieval.item]
    place = pd.Series(np.arange(len(items)), index=items.to_numpy())
    train = pd.concat(pd.read_parquet(f, columns=[*names, last, labels[tasks[0]]]) for f in run.data.train)
    train = train[train[labels[tasks[0]]] > 0]
    files = run.data.test if split == "test" else run.data.eval
    rows = pd.concat(pd.read_parquet(f, columns=[*names, retrieval.seen, *labels.values()]) for f in files or ())
    queries = rows.groupby(retrieval.query, sort=False)[retrieval.seen].first()
    asked = pd.Series(np.arange(len(queries)), index=queries.index)
    owners = np.repeat(np.arange(len(queries)), [len(ids) for ids in queries])
    history = place[np.concatenate(queries.to_list())].to_numpy()
    count, shape = len(items), (len(queries), len(items))
    bag = sparse.csr_matrix((np.ones(len(history)), (owners, history)), shape)
    bag.data[:] = 1
    ends = np.array([place.get(ids[-1], -1) if len(ids) else -1 for ids in queries])
    final = sparse.csr_matrix((np.ones((ends >= 0).sum()), (np.flatnonzero(ends >= 0), ends[ends >= 0])), shape)
    popular = np.bincount(place[train[retrieval.item]], minlength=count)
    scorers = {
        "popularity": sparse.csr_matrix(popular[None].astype(float)),
        "item cosine": bag @ cosines(train[retrieval.query].to_numpy(), place[train[retrieval.item]].to_numpy(), count),
        "last-item transition": final @ transitions(train[[last, retrieval.item]], place),
    }
    ties = (popular / (popular.max() + 1) * 1e-3).astype(np.float32)
    seen = Pairs(owners, history)
    relevant = {t: _pairs(rows[rows[label] > 0], names, asked, place) for t, label in labels.items()}
    table = []
    for name, counts in scorers.items():
        found = retrieval_metrics(Counted(counts.tocsr(), ties, len(queries)), relevant, retrieval.ks, seen=seen)
        for task in tasks:
            values = [f"{found.tasks[task][f'{m}@{k}']:.4f}" for k in retrieval.ks for m in ("recall", "ndcg")]
            table.append((Cell(name, number=False), Cell(task, number=False), *map(Cell, values)))
    columns = ("model", "task", *(f"{m}@{k}" for k in retrieval.ks for m in ("recall", "ndcg")))
    return Table(f"Counting, {split}", columns, tuple(table), ("Whole corpus; nothing is drawn at random.",))


def cosines(users: npt.NDArray[Any], items: npt.NDArray[np.int64], count: int) -> Any:  # noqa: ANN401
    """Return the cosine of every pair of items, as sets of users, [N, N] sparse; 0 of an item with itself."""
    codes = np.unique(users, return_inverse=True)[1]
    bag = sparse.csr_matrix((np.ones(len(items)), (codes, items)), (codes.max() + 1, count))
    bag.data[:] = 1
    norms = np.sqrt(np.asarray(bag.sum(axis=0)).ravel()).clip(1)
    scaled = bag @ sparse.diags(1 / norms)
    found = (scaled.T @ scaled).tolil()
    found.setdiag(0)
    return found.tocsr()


def transitions(pairs: pd.DataFrame, place: pd.Series[Any]) -> Any:  # noqa: ANN401
    """Return how often each item came right after each, [N, N] sparse.

    Args:
        pairs: an item and the next, names of items.
        place: name -> place in the corpus.
    """
    known = pairs[pairs.iloc[:, 0].isin(place.index)]
    before, after = (place[known.iloc[:, i]].to_numpy() for i in (0, 1))
    return sparse.csr_matrix((np.ones(len(before)), (before, after)), (len(place), len(place)))


def _pairs(rows: pd.DataFrame, names: Sequence[str], asked: pd.Series[Any], place: pd.Series[Any]) -> Pairs:
    query, item = names
    return Pairs(asked[rows[query]].to_numpy(), place[rows[item]].to_numpy())


def models(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> Table:
    """Return every model's metrics of each task, means over seeds with intervals."""
    tasks = _tasks(outcomes)
    rows = []
    for outcome in outcomes:
        found = [by_seed(outcome, (task, metric)) for task in tasks for metric in metrics]
        cells = (estimate(list(values.values())) if values else None for values in found)
        texts = ["-" if cell is None else _said(cell.mean, cell.half, "") for cell in cells]
        rows.append((Cell(outcome.pair.model.name, number=False), *map(Cell, texts)))
    notes = ("Test rows, mean ± 95 % interval over seeds.",)
    return Table("Models", ("model", *(f"{task} {metric}" for task in tasks for metric in metrics)), tuple(rows), notes)


def differences(outcomes: Sequence[Outcome], metrics: Sequence[str]) -> Table:
    """Return what each model has more than DMMP, and what `PAIRS` has more than one another, paired by seed."""
    named, tasks = {o.pair.model.name: o for o in outcomes}, _tasks(outcomes)
    pairs = [*((name, OURS) for name in named if name != OURS), *PAIRS]
    found = {
        (pair, task, metric): paired_difference([a[s] for s in a if s in b], [b[s] for s in a if s in b])
        for pair in pairs
        if set(pair) <= set(named)
        for task in tasks
        for metric in metrics
        for a, b in [[by_seed(named[name], (task, metric)) for name in pair]]
        if set(a) & set(b)
    }
    corrected = dict(zip(found, holm([d.p for d in found.values()]), strict=True))
    rows = []
    for pair in dict.fromkeys(pair for pair, _, _ in found):
        keys = [(pair, task, metric) for task in tasks for metric in metrics]
        cells = (Cell(*_difference(found[key], corrected[key])) if key in found else Cell("-") for key in keys)
        rows.append((Cell(" minus ".join(pair), number=False), *cells))
    notes = ("Paired by seed, ± 95 % interval; p of the paired t-test, corrected for all cells of this table (Holm).",)
    columns = ("what", *(f"{task} {metric}" for task in tasks for metric in metrics))
    return Table("Differences", columns, tuple(rows), notes)


def _tasks(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(task for o in outcomes for task in o.pair.run.task_names))


def quality(arguments: Sequence[str]) -> int:
    """Run the suite, or only report, and print the comparison."""
    parser = argparse.ArgumentParser(prog="dmmp.py quality", description="Run the suite and print the comparison.")
    parser.add_argument("--out", type=Path, help="folder of the results [runs/bench-NAME]")
    parser.add_argument("--suite", type=Path, default=SUITE, help="[%(default)s]")
    parser.add_argument("--models", nargs="+", default=[], help="names of the suite; by default all")
    parser.add_argument("--processes", type=int, help="runs at once, one thread each; by default one a core")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    args = parser.parse_args(arguments)
    try:
        suite = load_suite(args.suite)
        out = args.out or Path(f"runs/bench-{suite.name}")
        options = Options(args.suite, out, models=args.models, processes=args.processes, report_only=args.report_only)
        bench(options, Console(stderr=True))
        outcomes = _outcomes(suite, out)
    except (ConfigError, InterruptedBenchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ks = outcomes[0].pair.run.retrieval.ks if outcomes and outcomes[0].pair.run.retrieval else ()
    judged = dict.fromkeys(["auc", *(f"recall@{k}" for k in ks[:1]), suite.score.rpartition("/")[2]])
    tables = models(outcomes, ["auc", *(f"recall@{k}" for k in ks)]), differences(outcomes, list(judged))
    seeds = ", ".join(map(str, suite.seeds))
    trained = (
        f"{suite.trials} trials a model by `{suite.score}` on validation; then seeds {seeds}.",
        f"{machine()}; {versions()}.",
    )
    report = to_markdown(Report(f"Suite {suite.name}", trained, (Section("Test", tables, (), ()),)))
    (out / "questions.md").write_text(report, encoding="utf-8")
    print(report)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run one part."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    part, *rest = arguments if arguments and arguments[0] in ("quality", "baselines") else ("quality", *arguments)
    if part == "quality":
        return quality(rest)
    parser = argparse.ArgumentParser(prog="dmmp.py baselines", description="What counting finds.")
    parser.add_argument("--config", type=Path, default=CONFIG, help="[%(default)s]")
    parser.add_argument("--split", choices=("eval", "test"), default="test")
    parser.add_argument("--last", default="last_movie", help="column with the item before the row's own [%(default)s]")
    args = parser.parse_args(rest)
    table = baselines(args.config, args.split, args.last)
    print(to_markdown(Report("DMMP", (), (Section(str(args.config), (table,), (), ()),))))
    return 0


def _outcomes(suite: Suite, out: Path) -> list[Outcome]:
    log, found = Log(out / "runs.jsonl"), []
    for pair in check_pairs(suite, Console(stderr=True), prepare=False).pairs:
        outcome = Outcome(pair)
        replay(suite, outcome, log)
        found.append(outcome)
    return found


def _difference(found: Any, p: float) -> tuple[str, str]:  # noqa: ANN401
    said = "" if np.isnan(p) else "p < 0.001" if p < 0.001 else f"p {p:.3f}"
    return _said(found.mean, found.half, "+"), said


def _said(mean: float, half: float, sign: str) -> str:
    return f"{mean:{sign}.4f}" if np.isnan(half) else f"{mean:{sign}.4f} ± {half:.4f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
