"""The one pass over all rows: train first, then what is to judge the model, row group by row group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from torchrec_mtl.checking.days import DayColumn
from torchrec_mtl.checking.dense import DenseScan
from torchrec_mtl.checking.distinct import Distinct, make_distinct
from torchrec_mtl.checking.findings import Finding
from torchrec_mtl.checking.ids import IdScan
from torchrec_mtl.checking.labels import LabelScan
from torchrec_mtl.checking.overlap import Overlap
from torchrec_mtl.checking.report import SplitFigures
from torchrec_mtl.checking.sample import Sample
from torchrec_mtl.config.features import DenseConfig, SequenceConfig, SparseConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.columns import config_columns, schema_problems
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.splits import SPLITS


@dataclass(frozen=True)
class SplitScan:
    """What was added of one split."""

    ids: Mapping[str, IdScan]
    dense: Mapping[str, DenseScan]
    labels: LabelScan


class Scan:
    """Reads every row once and hands it to whatever counts.

    Attributes:
        config: of the run.
        day: column that says the day.
        wanted: columns that the run reads.
        splits: what was added, by split.
        seen: rows of each table that train looks up.
        sample: of train.
        keys: overlap by ``data.keys``; None where there are none, or not in all files.
        columns: overlap by all columns that are read.
        figures: of the splits.
        findings: files that cannot be read.
    """

    def __init__(
        self, run: RunConfig, files: Mapping[str, Sequence[DataFile]], day: DayColumn | None, sample_rows: int
    ) -> None:
        self.config, self.day, self._files = run, day, files
        self._tables = {table.name: table for table in run.features.tables}
        self.wanted = config_columns(run.data, run.features, run.tasks)
        train_rows = sum(file.metadata.num_rows for file in files.get("train", ()))
        self.seen: dict[str, Distinct] = {table.name: make_distinct(table.rows) for table in run.features.tables}
        self.sample = Sample(run, train_rows, sample_rows)
        # The keys are in all files, once, or these are refused; rows are then told apart by what else is read.
        schemas = [file.schema for file in self._all_files()]
        keyed = all(len(schema.get_all_field_indices(key)) == 1 for schema in schemas for key in run.data.keys)
        keys = run.data.keys if keyed else ()
        self.keys = Overlap("keys", keys, train_rows) if keys else None
        names = dict.fromkeys((*keys, *(column.name for column in self.wanted)))
        self.columns = Overlap("columns", sorted(names), train_rows)
        self.splits: dict[str, SplitScan] = {}
        self.figures: list[SplitFigures] = []
        self.findings: list[Finding] = []

    def _all_files(self) -> Iterator[DataFile]:
        return (file for split in SPLITS for file in self._files.get(split, ()))

    def read(self, say: Callable[[str], None]) -> None:
        """Read everything; ``say`` is told what is read next."""
        for split in SPLITS:
            if split in self._files:
                rows = sum(file.metadata.num_rows for file in self._files[split])
                files = len(self._files[split])
                say(f"reading {split}: {rows:,} rows of {files:,} file{'' if files == 1 else 's'}")
                self._split(split, self._files[split], rows)

    def _split(self, split: str, files: Sequence[DataFile], rows: int) -> None:
        run = self.config
        ids = {
            f.name: IdScan(f, self._tables[f.table], split, self.seen[f.table])
            for f in (*run.features.pooled, *run.features.unpooled)
        }
        dense = {f.name: DenseScan(f, split) for f in run.features.dense}
        scan = SplitScan(ids, dense, LabelScan(run.tasks, run.data, split, self.day))
        self.splits[split] = scan
        first, read = 0, 0
        for file in files:
            reader = _FileReader(file, self)
            for group, group_rows in enumerate(file.row_groups):
                try:
                    table = file.read_row_group(group, reader.columns) if group_rows else None
                except ValueError as error:
                    self.findings.append(Finding("error", "damaged", split, "", str(error), "", None, (file.path,)))
                    break
                if table is not None:
                    reader.add(table, split, scan, first)
                    read += group_rows
                first += group_rows
            else:
                continue
            first += sum(file.row_groups[group:])  # of what could not be read: numbers of rows stay those of the data
        groups = sum(len(file.row_groups) for file in files)
        self.figures.append(SplitFigures(split, len(files), groups, rows, read, sum(file.size for file in files)))


class _FileReader:
    """What of the run can be read of one file: a column that is missing or mistyped takes its features along."""

    def __init__(self, file: DataFile, scan: Scan) -> None:
        self._file, self._scan = file, scan
        run, wanted = scan.config, scan.wanted
        fits = [c for c in wanted if not schema_problems([(file.path, file.schema)], [c])]
        self._bad = {c.name for c in wanted if c not in fits}
        labels = [n for task in run.tasks for n in (task.label, task.space, task.sample_weight) if n is not None]
        self._labels = not self._bad.intersection(labels)
        extra = {*(scan.keys.columns if scan.keys is not None else ()), *((scan.day.name,) if scan.day else ())}
        self.columns = sorted({c.name for c in fits} - self._bad | extra & set(file.schema.names))

    def _fits(self, feature: SparseConfig | SequenceConfig | DenseConfig) -> bool:
        names = {feature.source}
        if isinstance(feature, SequenceConfig):
            names |= {name for name in (feature.times, feature.now) if name is not None}
        return not names & self._bad

    def add(self, table: pa.Table, split: str, scan: SplitScan, first: int) -> None:
        """Add one row group, whose first row is number ``first`` of the split."""
        features, path = self._scan.config.features, self._file.path
        for feature in (*features.pooled, *features.unpooled):
            if self._fits(feature):
                scan.ids[feature.name].add(table, path)
        for dense in features.dense:
            if self._fits(dense):
                scan.dense[dense.name].add(table, path)
        if self._labels:
            scan.labels.add(table, path)
        if self._scan.keys is not None:
            self._scan.keys.add(table, split)
        if not self._bad:
            self._scan.columns.add(table, split)
            if split == "train":
                self._scan.sample.add(table, first)
