"""Whether a bundle scores as the trainer does: the same rows through both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import torch

from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import open_files, read_tables
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.model import MultiTaskModel
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.serving.bundle import Change, Parity
from torchrec_mtl.serving.predictor import Floats, Predictor
from torchrec_mtl.training.metrics import task_metrics

if TYPE_CHECKING:
    from torchrec_mtl.serving.export import Options

TOLERANCE = 1e-5
"""Largest difference of a prediction, over the trainer's where that is above 1."""

_USERS = 20  # who are scored as one user with many candidates, too
_SIZES = (1, 2, 3, 100, 1000)  # of the batches, over and over: a bundle is for any number of rows
_METRIC = {"binary": "auc", "regression": "nrmse"}


class ParityError(ValueError):
    """A bundle does not score as the trainer does."""


def measure(model: MultiTaskModel, config: RunConfig, statistics: Statistics, folder: Path, options: Options) -> Parity:
    """Compare what a bundle says with what the trainer's model does.

    Args:
        model: of the trainer, in evaluation mode.
        config: the run.
        statistics: of its training data.
        folder: of the bundle.
        options: which rows; how much a quantised bundle may lose.

    Raises:
        ParityError: they differ by more than ``TOLERANCE``, or lose more than the options allow.
        ValueError: there are no rows.
    """
    patterns = files_to_compare(config, options.data)
    encoder = Encoder(config.data, config.features, config.tasks, statistics, labels=options.quantise is not None)
    trainer = Trainer(model, encoder)
    tables = list(_tables(patterns, encoder, options.rows))
    if not tables:
        raise ValueError(
            f"there are no rows in {', '.join(patterns)} to compare the bundle with; name others with --data"
        )
    # Their checksums were taken a moment ago.
    predictors = [Predictor.load(folder, compiled=c, check_tables=False) for c in (False, True)[: 1 + options.compile]]
    outputs = predictors[0].outputs
    before = np.concatenate([trainer.predict(table, outputs) for table in tables])
    after = [np.concatenate([_stacked(predictor(table)) for table in tables]) for predictor in predictors]
    largest: dict[str, float] = {}
    for predictor, found_rows in zip(predictors, after):
        pairs = itertools.chain(zip(outputs, before.T, found_rows.T), _further_pairs(trainer, predictor, tables))
        for name, wanted, found in pairs:
            _check_finite(name, wanted, found)
            largest[name] = max(largest.get(name, 0.0), _difference(wanted, found))
    parity = Parity(rows=len(before), data=tuple(patterns), largest=largest)
    if options.quantise is None:
        _check_equal(parity)
        return parity
    metrics = _metrics(config, np.concatenate([trainer.targets(table) for table in tables]), before, after[0])
    _check_loss(metrics, options)
    return parity.model_copy(update={"metrics": metrics})


def files_to_compare(config: RunConfig, data: Sequence[str]) -> tuple[str, ...]:
    """Return the files of the rows to compare: those that were asked for, or else the run's."""
    return tuple(data) or config.data.test or config.data.eval or config.data.train


class Trainer:
    """The trainer's model on Arrow tables."""

    def __init__(self, model: MultiTaskModel, encoder: Encoder) -> None:
        """Take an unsharded model in evaluation mode, and what encodes for it."""
        self._model, self._encoder = model, encoder

    def predict(self, table: pa.Table, names: Sequence[str]) -> Floats:
        """Return [n, O], the named outputs."""
        output = self._run(table)
        known = {**dict(zip(self._model.objective.tasks, output.predictions.unbind(1))), **output.further}
        return np.stack([known[name].float().numpy() for name in names], axis=1)

    def vectors(self, table: pa.Table, name: str) -> Floats:
        """Return a retrieval head's vectors."""
        return np.asarray(self._run(table).vectors[name].float().numpy())

    def targets(self, table: pa.Table) -> Floats:
        """Return [n, 2 K], labels and weights."""
        rows = self._encoder.encode(table, "the rows to compare")
        return np.concatenate([rows.labels, rows.weights], axis=1)

    def _run(self, table: pa.Table) -> StepOutput:
        rows = self._encoder.encode(table, "the rows to compare")
        batch = self._encoder.batch(rows, slots=np.arange(len(rows)), step=0, global_size=len(rows))
        with torch.no_grad():
            _, output = self._model(batch)
        return cast(StepOutput, output)


def _further_pairs(
    trainer: Trainer, predictor: Predictor, tables: Sequence[pa.Table]
) -> Iterator[tuple[str, Floats, Floats]]:
    """Yield the name of an output, what the trainer says, and what the bundle says: of one user, and of vectors."""
    outputs = predictor.outputs
    mine, others = _columns(predictor)
    both = {name for name in mine if name in others}
    for number in range(_USERS):
        table = tables[number % len(tables)]
        row = number // len(tables) % table.num_rows
        # A column that both sides read has one value in a row of data, so that the row is its user's alone.
        candidates = table.slice(row, 1) if both else table
        user = {name: table[name][row].as_py() for name in mine}
        found = _stacked(predictor.score(user, candidates.select([n for n in others if n in table.column_names])))
        wanted = trainer.predict(_for_one(candidates, table, row, mine), outputs)
        yield from zip(outputs, wanted.T, found.T)
    if predictor.about.retrieval is not None:
        for table in tables[: len(_SIZES)]:
            yield "query vectors", trainer.vectors(table, "query"), predictor.query_vectors(table.select(mine))
            yield "item vectors", trainer.vectors(table, "item"), predictor.item_vectors(table.select(others))


def _columns(predictor: Predictor) -> tuple[list[str], list[str]]:
    """Return the columns of the user's side, and those of the others."""
    mine = [c.name for c in predictor.columns if "user" in c.sides]
    return mine, [c.name for c in predictor.columns if set(c.sides) != {"user"}]


def _for_one(candidates: pa.Table, table: pa.Table, row: int, names: Sequence[str]) -> pa.Table:
    """Return candidates with the user of one row in each."""
    places = pa.array(np.full(candidates.num_rows, row))
    for name in names:
        candidates = candidates.set_column(candidates.column_names.index(name), name, table[name].take(places))
    return candidates


def _stacked(named: Mapping[str, Floats]) -> Floats:
    return np.stack(list(named.values()), axis=1)


def _tables(patterns: Sequence[str], encoder: Encoder, count: int) -> Iterator[pa.Table]:
    """Yield the first rows of files, in batches of different sizes."""
    files = open_files(patterns)
    for file in files:
        try:
            encoder.check_schema(file.schema, file.path)
        except ValueError as error:
            raise ConfigError(str(error).splitlines(), source="data") from error
    sizes, left = itertools.cycle(_SIZES), count
    for table in read_tables(files, encoder.columns):
        start = 0
        while start < table.num_rows and left > 0:
            part = table.slice(start, min(next(sizes), left))
            start, left = start + part.num_rows, left - part.num_rows
            yield part


def _difference(wanted: Floats, found: Floats) -> float:
    """Return the largest difference, over what is wanted where that is above 1."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(wanted - found) / np.maximum(1.0, np.abs(wanted))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _check_finite(name: str, wanted: Floats, found: Floats) -> None:
    for whose, values in (("the trainer's model", wanted), ("the bundle", found)):
        if count := int((~np.isfinite(values)).sum()):
            raise ParityError(
                f"{whose} says NaN or infinity for {count} of {values.size} values of '{name}': this run is not to be "
                "served. Look at its metrics, and train again with a lower learning rate"
            )


def _metrics(config: RunConfig, targets: Floats, before: Floats, after: Floats) -> dict[str, Change]:
    """Return what became of each task."""
    labels, weights = np.split(targets, 2, axis=1)
    found = {}
    for k, task in enumerate(config.tasks):
        name = _METRIC[task.kind]
        values = [task_metrics(task.kind, labels[:, k], p[:, k], weights[:, k])[name] for p in (before, after)]
        if np.isfinite(values).all():  # not where all labels are alike
            found[task.name] = Change(metric=name, before=values[0], after=values[1])
    if not found:
        raise ValueError(
            "no task has a metric on these rows (are all labels alike?), so that nobody could tell what quantised "
            "tables lose; name other rows with --data"
        )
    return found


def _check_equal(parity: Parity) -> None:
    if worse := {name: value for name, value in parity.largest.items() if value > TOLERANCE}:
        named = ", ".join(f"{name} {value:.2g}" for name, value in worse.items())
        raise ParityError(
            f"the bundle does not score as the trainer does: largest differences over {parity.rows:,} rows {named}, "
            f"allowed {TOLERANCE:.0e}. It was not kept; please report this, with the run's config.yaml"
        )


def _check_loss(metrics: Mapping[str, Change], options: Options) -> None:
    worse = []
    for task, change in metrics.items():
        rise = change.after - change.before
        if (-rise if change.metric == "auc" else rise) > options.max_loss:
            worse.append(f"{task}: {change.metric} {change.before:.5f} -> {change.after:.5f}")
    if worse:
        raise ParityError(
            f"tables of {options.quantise} bits lose more than {options.max_loss:g}: {'; '.join(worse)}. The bundle "
            "was not kept; take more bits, or allow more with --max-loss"
        )
