"""One feature of ids in one split: nulls, ids outside the table, cardinality, cold ids, lengths, moments."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from torchrec_mtl.checking.distinct import Distinct, make_distinct
from torchrec_mtl.checking.findings import FILES_NAMED, Finding, Level, of_problems, percent, share
from torchrec_mtl.checking.lengths import Counts
from torchrec_mtl.checking.report import AgeFigures, IdFigures, LengthFigures
from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import SequenceConfig, SparseConfig, TableConfig
from torchrec_mtl.data.arrow import get_array, is_list, is_string, list_bounds, split_lists
from torchrec_mtl.data.ids import IdEncoder
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Ints, Jagged

_COLD_NOTE, _COLD_WARNING = 0.05, 0.5
_NULLS_WARNING = 0.5
_CUT_NOTE = 0.5
_FEW = 0.001  # so few bad ids are wrong values rather than a table too small


class IdScan:
    """Figures of one feature, added table by table."""

    def __init__(self, feature: SparseConfig | SequenceConfig, table: TableConfig, split: str, seen: Distinct) -> None:
        """Begin.

        Args:
            feature: its config.
            table: that it looks up.
            split: "train", "eval", or "test".
            seen: rows of the table that train looks up; a scan of train adds to it.
        """
        self._feature, self._table, self._split, self._seen = feature, table, split, seen
        # "drop", whatever the config says: bad ids are counted here, and the encoder is to go on.
        self._encoder = IdEncoder(feature, table.rows, "drop")
        self._distinct = make_distinct(table.rows)
        self._lengths, self._ages = Counts(), Counts()
        self._rows, self._nulls, self._null_ids, self._empty, self._lookups = 0, 0, 0, 0, 0
        self._cut_rows, self._cut_ids, self._judged, self._cold = 0, 0, 0, 0
        self._smallest: int | None = None
        self._largest: int | None = None
        self._hashed, self._lists = False, False
        self._negative: collections.Counter[str] = collections.Counter()  # by file
        self._too_large: collections.Counter[str] = collections.Counter()
        self._times = Problems()

    def add(self, table: pa.Table, file: str) -> None:
        """Add the feature of N rows."""
        array = get_array(table, self._feature.source)
        self._rows += len(array)
        self._nulls += array.null_count
        if isinstance(self._feature, SequenceConfig) or is_list(array.type):
            ids = self._list_ids(array)
        else:
            ids = self._encoder.integers(array)
            ids = ids[array.is_valid().to_numpy(zero_copy_only=False)] if array.null_count else ids
            self._empty += len(array) - len(ids)
            self._hashed |= self._is_hashed(array.type)
        self._add_ids(ids, file)
        if isinstance(self._feature, SequenceConfig) and self._feature.times is not None:
            self._add_times(table, file)

    def _list_ids(self, array: pa.Array) -> Ints:
        """Count the lengths of lists, and return the ids that ``max_length`` keeps."""
        self._lists = True
        self._null_ids += int(list_bounds(array)[1].sum())
        starts, lengths, elements = split_lists(array)
        self._null_ids -= int(lengths.sum())
        self._lengths.add(lengths)
        self._empty += int((lengths == 0).sum())
        self._hashed |= self._is_hashed(elements.type)
        ids = self._encoder.integers(elements)
        longest = self._feature.max_length
        kept = lengths if longest is None else np.minimum(lengths, longest)
        self._cut_rows += int((kept < lengths).sum())
        self._cut_ids += int((lengths - kept).sum())
        return ids if kept.sum() == len(ids) else Jagged.from_ranges(ids, starts + lengths - kept, kept).values

    def _is_hashed(self, kind: pa.DataType) -> bool:
        return self._feature.encode == "hash" or is_string(kind.value_type if pa.types.is_dictionary(kind) else kind)

    def _add_ids(self, ids: Ints, file: str) -> None:
        self._lookups += len(ids)
        if not len(ids):
            return
        low, high = int(ids.min()), int(ids.max())
        self._smallest = low if self._smallest is None else min(low, self._smallest)
        self._largest = high if self._largest is None else max(high, self._largest)
        if low < 0 or high >= self._table.rows:
            negative, too_large = int((ids < 0).sum()), int((ids >= self._table.rows).sum())
            self._negative[file] += negative
            self._too_large[file] += too_large
            ids = ids[(ids >= 0) & (ids < self._table.rows)]
        self._distinct.add(ids)
        if self._split == "train":
            self._seen.add(ids)
        else:
            judged, cold = self._seen.missing(ids)
            self._judged += judged
            self._cold += cold

    def _add_times(self, table: pa.Table, file: str) -> None:
        self._times.file = file
        encoded = self._encoder.encode(table, self._times)
        assert isinstance(encoded, Jagged)
        if encoded.gaps is not None:
            self._ages.add(encoded.gaps)

    def figures(self, *, trained: bool) -> IdFigures:
        """Return all figures; ``trained`` says whether train was read, so that cold ids can be told."""
        return IdFigures(
            feature=self._feature.name,
            column=self._feature.source,
            table=self._table.name,
            kind="sequence" if isinstance(self._feature, SequenceConfig) else "sparse",
            encode="hash" if self._hashed else "id",
            split=self._split,
            rows=self._rows,
            nulls=self._nulls,
            null_ids=self._null_ids,
            empty=self._empty,
            lookups=self._lookups,
            negative=self._negative.total(),
            too_large=self._too_large.total(),
            smallest=None if self._hashed else self._smallest,
            largest=None if self._hashed else self._largest,
            distinct=self._distinct.count,
            exact=self._distinct.exact,
            cold=share(self._cold, self._judged) if trained and self._split != "train" and self._judged else None,
            lengths=self._length_figures() if self._lists else None,
            ages=self._age_figures() if self._ages.total else None,
        )

    def _length_figures(self) -> LengthFigures:
        counts = self._lengths
        quantiles = counts.quantile(0.5), counts.quantile(0.95)
        return LengthFigures(counts.mean, *quantiles, counts.largest, self._cut_rows, self._cut_ids)

    def _age_figures(self) -> AgeFigures:
        median = (1 << self._ages.quantile(0.5)) - 1
        return AgeFigures(self._ages.total, median, share(self._ages.zeros, self._ages.total))

    def findings(self, data: DataConfig, suggested: int | None, *, trained: bool) -> Iterator[Finding]:
        """Judge the figures; ``suggested`` rows would hold the ids of all splits."""
        yield from self._outside(data, suggested)
        yield from of_problems(self._times, self._split, "times", getattr(self._feature, "times", None) or "")
        if self._rows and self._empty == self._rows:
            nothing = "null in every row" if self._nulls == self._rows else "without an id in every row"
            yield self._finding("warning", "no_values", f"{nothing}", "The model learns nothing of it; leave it out.")
            return
        if self._nulls > _NULLS_WARNING * self._rows:
            what = f"null in {percent(share(self._nulls, self._rows))} of the rows"
            yield self._finding(
                "warning", "nulls", what, "Such rows have no id; see whether a join failed.", self._nulls
            )
        cold = self.figures(trained=trained).cold or 0.0
        if cold > _COLD_NOTE:
            what = f"{percent(cold)} of the lookups are of rows of table '{self._table.name}' that train never looks up"
            advice = "They score with rows as they were initialised; expect less of what the model learned by id."
            yield self._finding("warning" if cold > _COLD_WARNING else "note", "cold_ids", what, advice)
        if self._split == "train" and self._cut_rows > _CUT_NOTE * self._rows:
            what = (
                f"max_length {self._feature.max_length} cuts {percent(share(self._cut_rows, self._rows))} of the lists"
            )
            advice = (
                f"The last ids are kept; a list has {self._lengths.mean:.3g} on the average. Raise it if that is dear."
            )
            yield self._finding("note", "cut", what, advice, self._cut_rows)

    def _outside(self, data: DataConfig, suggested: int | None) -> Iterator[Finding]:
        level: Level = "error" if data.bad_ids == "error" else "note"
        done = {
            "error": "",
            "drop": " (left out, as data.bad_ids says)",
            "clamp": " (put on row 0, as data.bad_ids says)",
        }
        if self._negative.total():
            what = f"{self._negative.total():,} negative ids, the smallest {self._smallest:,}{done[data.bad_ids]}"
            advice = "Write null where there is no id (often -1), or use encode: hash."
            yield self._finding(level, "ids_negative", what, advice, self._negative.total(), self._negative)
        if self._too_large.total():
            many, name, rows = self._too_large.total(), self._table.name, self._table.rows
            of = percent(share(many, self._lookups))
            what = (
                f"{many:,} ids ({of} of the lookups) outside table '{name}' of {rows:,} rows, the largest "
                f"{self._largest:,}{done[data.bad_ids]}"
            )
            assert self._largest is not None
            advice = f"Give table '{name}' {suggested:,} rows (all ids and a tenth more), or use encode: hash."
            if share(many, self._lookups) < _FEW and self._largest > 10 * rows:
                advice = "So few and so far away: see whether these values are ids. Else use encode: hash."
            yield self._finding(level, "ids_too_large", what, advice, many, self._too_large)

    def _finding(
        self,
        level: Level,
        kind: str,
        what: str,
        advice: str,
        count: int | None = None,
        files: dict[str, int] | None = None,
    ) -> Finding:
        named = tuple(file for file, bad in (files or {}).items() if bad)[:FILES_NAMED]
        subject = "sequence" if isinstance(self._feature, SequenceConfig) else "feature"
        what = f"{subject} '{self._feature.name}': {what}"
        return Finding(level, kind, self._split, self._feature.source, what, advice, count, named)
