"""The day of a row, however it is written, and days that stand out."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.checking.planted import EVAL, TRAIN, changed, numbers, report
from torchrec_mtl.checking.command import Options
from torchrec_mtl.checking.days import name_day, read_days

DAY = datetime.date(2022, 4, 8)
NOON = datetime.datetime(2022, 4, 8, 12)
SECONDS = 1_649_419_200


@pytest.mark.parametrize(
    "array",
    [
        pa.array([DAY, None]),
        pa.array([DAY, None], pa.date64()),
        pa.array([NOON, None], pa.timestamp("ms")),
        pa.array([NOON, None], pa.timestamp("ns", "UTC")),
        pa.array(["2022-04-08", None]),
        pa.array(["2022-04-08 12:00:00", None]).dictionary_encode(),
        pa.array([20220408, None]),
        pa.array([SECONDS, None]),
        pa.array([float(SECONDS), None]),
        pa.array([SECONDS * 10**3, None]),
        pa.array([SECONDS * 10**6, None]),
        pa.array([SECONDS * 10**9, None]),
    ],
)
def test_days_of_every_type(array: pa.Array) -> None:
    assert [name_day(day) for day in read_days(array).tolist()] == ["2022-04-08", "none"]


def test_a_unit_of_the_config_counts() -> None:
    assert name_day(int(read_days(pa.array([19_090 * 24]), "h")[0])) == "2022-04-08"


def test_types_without_days_are_refused() -> None:
    with pytest.raises(ValueError, match="holds bool, wanted: dates"):
        read_days(pa.array([True]))


def dated(table: pa.Table, first: int, days: int) -> pa.Table:
    return changed(table, date=20220400 + first + np.arange(len(table)) % days)


def test_labels_by_day(tmp_path: Path) -> None:
    found = report(tmp_path, dated(TRAIN, 1, 10), dated(EVAL, 11, 2), options=Options(day="date"))
    assert found.day_column == "date"
    first = found.days[0]
    assert (first.split, first.day, first.rows) == ("train", "2022-04-01", 200)
    assert first.means["click"] == pytest.approx(numbers(TRAIN, "click")[::10].mean())
    assert [day.day for day in found.days if day.split == "eval"] == ["2022-04-11", "2022-04-12"]
    assert "day_outliers" not in {f.kind for f in found.findings}


def test_a_day_without_labels_stands_out(tmp_path: Path) -> None:
    train = dated(TRAIN, 1, 10)
    click = np.where(numbers(train, "date") == 20220404, 0, numbers(train, "click"))
    found = report(tmp_path, changed(train, click=click), dated(EVAL, 11, 2), options=Options(day="date"))
    (finding,) = [f for f in found.findings if f.kind == "day_outliers"]
    assert (finding.level, finding.column) == ("warning", "click")
    assert "0 on 2022-04-04" in finding.what


def test_dates_among_the_keys_are_taken(tmp_path: Path) -> None:
    def with_dates(table: pa.Table) -> Any:
        return changed(table, day=pa.array([DAY] * len(table)))

    found = report(tmp_path, with_dates(TRAIN), with_dates(EVAL), data={"keys": ["user_id", "day"]})
    assert found.day_column == "day"


def test_a_column_of_no_days(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--day: column 'dat' of .* does not exist\. Did you mean 'date'\?"):
        report(tmp_path, dated(TRAIN, 1, 10), dated(EVAL, 1, 2), options=Options(day="dat"))
    rows = changed(TRAIN, number=np.arange(len(TRAIN)) * 86_400)
    many = pa.concat_tables([changed(rows, number=numbers(rows, "number") + shift * 10**9) for shift in (1, 2, 3)])
    found = report(tmp_path, many, rows, options=Options(day="number"))
    assert {day.split for day in found.days} == {"eval"}
    assert [f.kind for f in found.findings].count("day") == 1
