"""One pass, row group by row group; how the rows lie in files does not matter."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.checking.planted import EVAL, TRAIN, changed, config, write
from torchrec_mtl.checking.command import Options, check
from torchrec_mtl.checking.distinct import Marks, Sketch
from torchrec_mtl.checking.report import Report
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.synthetic import make_table

DATED = changed(make_table(1500, seed=5, nulls=True), date=20220401 + np.arange(1500) // 100, number=np.arange(1500))


def laid(folder: Path, *sizes: list[int]) -> Report:
    """Check the same rows in files of these row groups."""
    start = 0
    for i, groups in enumerate(sizes):
        rows = sum(groups)
        write(folder / "train" / f"{i}.parquet", DATED.slice(start, rows), groups)
        start += rows
    assert start == len(DATED)
    write(folder / "eval.parquet", DATED.slice(0, 200), [200])
    data = {"train": str(folder / "train"), "keys": ["number"]}
    return check(config(folder, data=data), (), Options(day="date", leak_rows=700))


def figures(report: Report) -> dict[str, Any]:
    """Everything but how the rows lie in files."""
    found = dataclasses.asdict(report)
    splits = [split["rows_read"] for split in found.pop("splits")]
    findings = [
        {key: value for key, value in f.items() if key != "files"}
        for f in found.pop("findings")
        if f["kind"] != "row_groups_tiny"
    ]
    found.pop("config")
    return {**found, "splits": splits, "findings": findings}


def approximately(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(approximately(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(approximately, one, other))
    return one == pytest.approx(other, rel=1e-9) if isinstance(one, float) else one == other


@pytest.mark.parametrize("sizes", [([500, 500, 500],), ([1], [1400, 99]), ([137] * 10, [130]), ([750], [750])])
def test_files_and_row_groups_do_not_change_the_report(tmp_path: Path, sizes: tuple[list[int], ...]) -> None:
    whole, cut = (figures(laid(tmp_path / name, *how)) for name, how in (("a", ([1500],)), ("b", sizes)))
    assert [key for key in whole if not approximately(whole[key], cut[key])] == []


def test_every_row_group_is_read_once_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    plain = DataFile.read_row_group

    def noted(self: DataFile, index: int, columns: Any) -> pa.Table:
        read.append((Path(self.path).name, index))
        assert len(columns) == len(set(columns))
        return plain(self, index, columns)

    monkeypatch.setattr(DataFile, "read_row_group", noted)
    laid(tmp_path, [500, 500], [500])
    assert read == [("0.parquet", 0), ("0.parquet", 1), ("1.parquet", 0), ("eval.parquet", 0)]


def test_a_sketch_is_exact_while_ids_are_few_and_close_when_they_are_many() -> None:
    rng = np.random.default_rng(0)
    marks, sketch, small = Marks(200_000), Sketch(), Sketch(size=1024)
    for _ in range(20):
        ids = rng.integers(0, 50_000, 10_000)
        for kept in (marks, sketch, small):
            kept.add(ids)
    assert (sketch.count, sketch.exact, small.exact) == (marks.count, True, False)
    assert small.count == pytest.approx(marks.count, rel=4 / 1024**0.5)
    later = np.arange(40_000, 60_000)
    judged, cold = small.missing(later)
    assert judged < 1000
    assert cold / judged == pytest.approx(marks.missing(later)[1] / len(later), abs=0.08)
    assert sketch.missing(later) == marks.missing(later)


def test_an_empty_sketch_knows_no_id() -> None:
    assert Sketch().missing(np.array([1, 2])) == (2, 2)


def test_the_memory_of_what_is_kept_is_bounded() -> None:
    sketch = Sketch(size=100)
    for start in range(0, 100_000, 10_000):
        sketch.add(np.arange(start, start + 10_000))
    assert len(sketch._hashes) == 100


def test_no_torchrec_is_imported(tmp_path: Path) -> None:
    for name, table in (("train", TRAIN.slice(0, 100)), ("eval", EVAL.slice(0, 50))):
        write(tmp_path / f"{name}.parquet", table)
    code = (
        "import sys; from torchrec_mtl import cli, cli_check; assert 'torch' not in sys.modules;"
        "from pathlib import Path; from torchrec_mtl.checking.command import check;"
        f"check(Path({str(config(tmp_path))!r}));"
        "assert 'torchrec' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
