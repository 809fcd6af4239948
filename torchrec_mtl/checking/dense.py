"""One dense feature in one split: nulls, NaN, infinities, moments; and what moved between train and another split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from torchrec_mtl.checking.findings import Finding, of_problems, percent, share
from torchrec_mtl.checking.report import DenseFigures
from torchrec_mtl.config.features import DenseConfig
from torchrec_mtl.data.arrow import get_array, to_doubles
from torchrec_mtl.data.dense import LARGEST, transform
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.statistics import Moments

_FAR = 1.0  # of train's standard deviations
_NULLS_WARNING, _NULLS_OFF = 0.5, 0.2
_NAMED = 5


class DenseScan:
    """Figures of one feature, added table by table."""

    def __init__(self, feature: DenseConfig, split: str) -> None:
        self._feature, self._split = feature, split
        self._rows, self._nulls, self._nans, self._infinite = 0, 0, 0, 0
        self._smallest, self._largest = np.inf, -np.inf
        self._moments, self._problems = Moments(), Problems()

    def add(self, table: pa.Table, file: str) -> None:
        """Add the feature of N rows."""
        array = get_array(table, self._feature.source)
        raw = to_doubles(array)
        self._rows += len(array)
        self._nulls += array.null_count
        self._nans += int(np.isnan(raw).sum()) - array.null_count
        self._infinite += int((np.abs(raw) > LARGEST).sum())
        self._problems.file = file
        values = transform(self._feature, array, self._problems)
        known = values[~np.isnan(values)]
        if len(known):
            self._moments.add(known)
            self._smallest = min(self._smallest, float(known.min()))
            self._largest = max(self._largest, float(known.max()))

    def figures(self, train: DenseFigures | None) -> DenseFigures:
        """Return all figures; ``train`` are those of train, if this is another split."""
        any_value = self._moments.weight > 0
        constant = self._smallest == self._largest
        std = 0.0 if constant else self._moments.std
        drift = None
        if any_value and train is not None and train.mean is not None and train.std:
            drift = (self._moments.mean - train.mean) / train.std
        return DenseFigures(
            feature=self._feature.name,
            column=self._feature.source,
            split=self._split,
            rows=self._rows,
            nulls=self._nulls,
            nans=self._nans,
            infinite=self._infinite,
            smallest=self._smallest if any_value else None,
            largest=self._largest if any_value else None,
            mean=self._moments.mean if any_value else None,
            std=std if any_value else None,
            drift=drift,
        )

    def findings(self, train: DenseFigures | None) -> Iterator[Finding]:
        """Judge the figures."""
        figures = self.figures(train)
        yield from of_problems(self._problems, self._split, "infinite", self._feature.source)
        if figures.rows and figures.mean is None:
            yield self._finding("no_values", "without a value in every row", "The model learns nothing; leave it out.")
            return
        missing = figures.nulls + figures.nans
        if missing > _NULLS_WARNING * figures.rows:
            what = f"null or NaN in {percent(share(missing, figures.rows))} of the rows"
            yield self._finding("nulls", what, "These become the mean; see whether a join failed.")
        if self._split == "train" and figures.std == 0:
            what = f"{figures.smallest:g} in every row that has a value"
            yield self._finding("constant", what, "It tells rows apart by their nulls alone, if at all; leave it out.")

    def _finding(self, kind: str, what: str, advice: str) -> Finding:
        what = f"dense feature '{self._feature.name}': {what}"
        return Finding("warning", kind, self._split, self._feature.source, what, advice)


def drift_finding(split: str, dense: Sequence[DenseFigures], train: Mapping[str, DenseFigures]) -> Iterator[Finding]:
    """Name the features of one split, farthest first, whose means are far from those of train."""
    far = sorted((f for f in dense if f.drift is not None and abs(f.drift) > _FAR), key=lambda f: -abs(f.drift or 0.0))
    if not far:
        return
    told = [
        f"'{f.feature}' by {f.drift:+.1f} standard deviations ({f.mean:.4g}, in train {train[f.feature].mean:.4g})"
        for f in far[:_NAMED]
    ]
    more = f", and {len(far) - _NAMED} more" if len(far) > _NAMED else ""
    what = f"{len(far)} of {len(dense)} dense features moved: {', '.join(told)}{more}"
    advice = "The model hardly trained on such values; look for another unit, a late split, or what grows with time."
    yield Finding("warning", "drift", split, ", ".join(f.column for f in far), what, advice, len(far))


def nulls_finding(split: str, now: Mapping[str, float], train: Mapping[str, float]) -> Iterator[Finding]:
    """Name the columns that are null in one split much more, or less, often than in train."""
    off = {column: now[column] - before for column, before in train.items() if column in now}
    far = sorted((column for column in off if abs(off[column]) > _NULLS_OFF), key=lambda column: -abs(off[column]))
    if far:
        told = [
            f"'{column}' in {percent(now[column])} of the rows, in train {percent(train[column])}" for column in far
        ]
        more = f", and {len(far) - _NAMED} more" if len(far) > _NAMED else ""
        what = f"{len(far)} columns are null more or less often: {', '.join(told[:_NAMED])}{more}"
        advice = "See whether a join failed, or a column was introduced later."
        yield Finding("warning", "nulls_shift", split, ", ".join(far), what, advice, len(far))
