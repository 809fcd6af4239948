"""Online Retail's samples: what counts as a purchase, what features may see, label windows, the split, the refusals."""

import importlib.util
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

LABELS = ["buys_again", "buys_twice", "spend"]
CUT = date(2011, 3, 1)
LAST_LINE = ("581587", "22138", 3, "2011-12-09 12:50", 4.95, 12680.0, "France")


def load_script(name: str) -> ModuleType:
    path = Path(__file__).parents[3] / "examples" / "online_retail" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"online_retail_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script("prepare")


def make_raw(*lines: tuple) -> pd.DataFrame:
    """Lines of the published columns without Description, which is not used."""
    raw = pd.DataFrame(list(lines), columns=list(prepare.COLUMNS))
    return raw.assign(InvoiceDate=pd.to_datetime(raw["InvoiceDate"]), CustomerID=raw["CustomerID"].astype(float))


def line(
    when: str,
    pounds: float = 10.0,
    *,
    customer: float = 1,
    code: str = "22752",
    units: int = 1,
    invoice: str | None = None,
) -> tuple:
    """A line of `units` goods that cost `pounds` in all."""
    number = invoice or "5" + "".join(c for c in when if c.isdigit())[2:]
    return (number, code, units, when, pounds / abs(units), customer, "United Kingdom")


def samples_of(*lines: tuple, cut: date = CUT) -> pd.DataFrame:
    return prepare.build_samples(prepare.clean_lines(make_raw(*lines))[0], cuts=[cut])


def random_lines(*, seed: int, first: str, last: str, count: int = 300) -> list[tuple]:
    """Purchases with one return in ten, over customers 1 to 8."""
    generator = np.random.default_rng(seed)
    days = pd.date_range(first, last).astype(str).to_numpy()
    lines = []
    for index in range(count):
        returned = generator.random() < 0.1
        lines.append(
            line(
                f"{generator.choice(days)} {generator.integers(8, 18):02d}:00",
                float(generator.integers(1, 900)),
                customer=float(generator.integers(1, 9)),
                code=f"{generator.integers(20000, 20020)}",
                units=-1 if returned else int(generator.integers(1, 60)),
                invoice=f"{'C' if returned else ''}{540000 + index}",
            )
        )
    return lines


@pytest.mark.parametrize(
    ("day", "buys_again"),
    [("2011-03-01 00:00", 1), ("2011-03-30 23:59", 1), ("2011-03-31 00:00", 0), ("2011-02-28 23:59", 0)],
)
def test_label_window_is_the_30_days_from_the_cut(day: str, buys_again: int) -> None:
    samples = samples_of(line("2011-01-10 09:00"), line(day, 5.5))
    assert samples.loc[0, LABELS].tolist() == [buys_again, 0, 5.5 * buys_again]


def test_twice_means_on_two_days() -> None:
    known = line("2011-01-10 09:00")
    one_day = samples_of(known, line("2011-03-02 09:00", 3), line("2011-03-02 15:00", 4))
    two_days = samples_of(known, line("2011-03-02 09:00", 3), line("2011-03-03 15:00", 4))
    assert one_day.loc[0, LABELS].tolist() == [1, 0, 7]
    assert two_days.loc[0, LABELS].tolist() == [1, 1, 7]


def test_only_customers_with_a_purchase_before_the_cut_have_a_row() -> None:
    samples = samples_of(
        line("2011-02-28 09:00", customer=1),
        line("2011-03-01 09:00", customer=2),
        line("2011-02-01 09:00", customer=3, units=-1, invoice="C540001"),
    )
    assert samples["customer"].tolist() == [1]


def test_funnel_holds_on_every_row() -> None:
    lines = prepare.clean_lines(make_raw(*random_lines(seed=1, first="2010-12-01", last="2011-06-30")))[0]
    samples = prepare.build_samples(lines, cuts=prepare.CUTS["train"][:12])
    assert samples["buys_again"].nunique() == samples["buys_twice"].nunique() == 2
    assert ((samples["spend"] > 0) == (samples["buys_again"] == 1)).all()
    assert (samples["buys_twice"] <= samples["buys_again"]).all()


def test_lines_from_the_cut_on_change_no_feature() -> None:
    before = random_lines(seed=2, first="2010-12-01", last="2011-02-28")
    first, second = (
        samples_of(*before, *random_lines(seed=seed, first="2011-03-01", last="2011-05-31")) for seed in (3, 4)
    )
    pd.testing.assert_frame_equal(first.drop(columns=LABELS), second.drop(columns=LABELS))
    assert not first[LABELS].equals(second[LABELS])


def test_lines_before_the_cut_change_no_label() -> None:
    after = random_lines(seed=2, first="2011-03-01", last="2011-05-31")
    first, second = (
        samples_of(*random_lines(seed=seed, first="2010-12-01", last="2011-02-28"), *after) for seed in (3, 4)
    )
    pd.testing.assert_frame_equal(first[["customer", *LABELS]], second[["customer", *LABELS]])
    assert not first["total_amount"].equals(second["total_amount"])


def test_a_cancellation_lowers_no_spend_but_raises_the_return_rate() -> None:
    bought = [line("2011-02-10 09:00", 20, units=4), line("2011-03-02 09:00", 30)]
    sent_back = [
        line("2011-02-12 09:00", 5, units=-1, invoice="C540001"),
        line("2011-03-05 09:00", 30, units=-1, invoice="C540002"),
    ]
    kept, net = samples_of(*bought), samples_of(*bought, *sent_back)
    assert kept.loc[0, LABELS].tolist() == net.loc[0, LABELS].tolist() == [1, 0, 30]
    assert (kept.loc[0, "return_rate"], net.loc[0, "return_rate"]) == (0, 1)
    assert kept.loc[0, "total_amount"] == net.loc[0, "total_amount"] == 20


def test_a_purchase_cancelled_on_the_same_day_never_happened() -> None:
    samples = samples_of(
        line("2011-02-10 09:00", 20),
        line("2011-02-18 10:01", 77183.60, code="23166", units=74215),
        line("2011-02-18 10:17", 77183.60, code="23166", units=-74215, invoice="C541433"),
        line("2011-03-18 10:01", 50, units=5),
        line("2011-03-18 10:17", 50, units=-5, invoice="C541434"),
    )
    expected = {"total_amount": 20, "max_units": 1, "return_rate": 0, "buys_again": 0, "spend": 0}
    assert samples.loc[0, list(expected)].to_dict() == expected


@pytest.mark.parametrize(
    "cancellation",
    [
        line("2011-03-18 09:00", 50, units=-5, invoice="C541434"),  # an hour before: of an earlier order
        line("2011-03-19 10:17", 50, units=-5, invoice="C541434"),  # a day later
        line("2011-03-18 10:17", 20, units=-2, invoice="C541434"),  # a part
        line("2011-03-18 10:17", 50, units=-5, invoice="C541434", customer=2),
    ],
)
def test_any_other_cancellation_leaves_the_purchase(cancellation: tuple) -> None:
    samples = samples_of(line("2011-02-10 09:00"), line("2011-03-18 10:01", 50, units=5), cancellation)
    assert samples.loc[0, LABELS].tolist() == [1, 0, 50]


def test_one_cancellation_takes_back_one_of_two_equal_purchases() -> None:
    samples = samples_of(
        line("2011-02-10 09:00"),
        line("2011-03-18 10:00", 50, units=5),
        line("2011-03-18 11:00", 50, units=5),
        line("2011-03-18 12:00", 50, units=-5, invoice="C541434"),
    )
    assert samples.loc[0, LABELS].tolist() == [1, 0, 50]


def test_lines_that_are_no_purchases_are_left_out_and_counted() -> None:
    lines, counts = prepare.clean_lines(
        make_raw(
            line("2011-02-10 09:00", 10),
            line("2011-02-10 09:00", 10),  # an exact repeat
            line("2011-02-10 09:00", 10, customer=np.nan),
            line("2011-02-10 09:00", 18, code="POST"),
            line("2011-02-10 09:00", 500, code="M"),
            line("2011-02-10 09:00", 5, code="D", units=-1, invoice="C540001"),
            line("2011-02-10 09:00", 0, code="20000"),
            line("2011-02-11 09:00", 7, code="85123a"),
            line("2011-02-12 09:00", 7, units=-1, invoice="C540002"),
        )
    )
    assert lines[["item", "pence", "is_return"]].to_numpy().tolist() == [
        ["22752", 1000, False],
        ["85123A", 700, False],
        ["22752", 700, True],
    ]
    assert list(counts.values()) == [9, 1, 1, 3, 1, 0, 2, 1, 1]


def test_features_of_a_known_customer() -> None:
    row = samples_of(
        line("2010-12-11 09:00", 100, code="20001", units=10),
        line("2011-01-10 09:00", 200, code="20002", units=20),
        line("2011-01-10 10:00", 100, code="20001", units=30),
        line("2011-02-09 09:00", 50, code="20003", units=60),
        line("2011-02-10 09:00", 25, code="20003", units=-30, invoice="C540001"),
    ).iloc[0]
    expected = {
        "recency_days": 20,
        "frequency": 3,
        "tenure_days": 80,
        "mean_gap_days": 30,
        "last_amount": 50,
        "mean_amount": 150,
        "max_amount": 300,
        "total_amount": 450,
        "count_30": 1,
        "amount_30": 50,
        "count_90": 3,
        "amount_90": 450,
        "num_items": 3,
        "mean_units": 30,
        "max_units": 60,
        "mean_price": 3.75,
        "return_rate": 0.25,
        "is_wholesale": 0,
        "month": 3,
        "country": "United Kingdom",
    }
    assert row[list(expected)].to_dict() == expected
    assert row[["gap_ratio", "repeat_share", "mean_lines"]].tolist() == pytest.approx([2 / 3, 1 / 3, 4 / 3])
    assert row["past_amounts"].tolist() == prepare.bucket(np.array([100.0, 300, 50]), prepare.POUNDS).tolist()
    assert row["past_gaps"].tolist() == prepare.bucket(np.array([np.nan, 30, 30]), prepare.DAYS).tolist()
    assert row["last_items"].tolist() == ["20002", "20001", "20003"]


def test_a_single_purchase_has_no_gap() -> None:
    row = samples_of(line("2011-01-10 09:00")).iloc[0]
    assert row[["mean_gap_days", "gap_ratio"]].isna().all()
    assert row[["mean_gap_bucket", "gap_ratio_bucket"]].tolist() == [1, 1]
    assert row["past_gaps"].tolist() == [1]


@pytest.mark.parametrize(
    ("lines", "is_wholesale"),
    [
        ([line("2011-01-10 09:00", 30, units=47)], 0),
        ([line("2011-01-10 09:00", 30, units=48)], 1),
        ([line("2011-01-10 09:00", 999.99)], 0),
        ([line("2011-01-10 09:00", 400, code="20001"), line("2011-01-10 09:00", 600, code="20002")], 1),
    ],
)
def test_wholesale_is_many_units_a_line_or_many_pounds_a_day(lines: list[tuple], is_wholesale: int) -> None:
    assert samples_of(*lines).loc[0, "is_wholesale"] == is_wholesale


def test_lists_keep_the_last_50_oldest_first() -> None:
    days = [str(day)[:10] for day in pd.date_range("2010-12-01", periods=60)]
    row = samples_of(*[line(f"{day} 09:00", 10.0 * i + 1, code=f"{20000 + i}") for i, day in enumerate(days)]).iloc[0]
    amounts = 10.0 * np.arange(10, 60) + 1
    assert row["past_amounts"].tolist() == prepare.bucket(amounts, prepare.POUNDS).tolist()
    assert row["last_items"].tolist() == [f"{20000 + i}" for i in range(10, 60)]
    assert len(row["past_gaps"]) == 50


def test_lists_never_cross_customers() -> None:
    samples = samples_of(
        line("2011-01-10 09:00", customer=1, code="20001"),
        line("2011-01-05 09:00", customer=2, code="20002"),
        line("2011-01-11 09:00", customer=2, code="20003"),
    )
    assert [items.tolist() for items in samples["last_items"]] == [["20001"], ["20002", "20003"]]


def test_no_label_window_reaches_into_another_split() -> None:
    window = timedelta(days=prepare.WINDOW_DAYS)
    ends = {name: max(cuts) + window for name, cuts in prepare.CUTS.items()}
    assert ends["train"] == date(2011, 9, 1) <= min(prepare.CUTS["validation"])
    assert ends["validation"] == date(2011, 10, 1) <= min(prepare.CUTS["test"])
    assert prepare.CUTS["test"] == (date(2011, 10, 1), date(2011, 11, 1))
    assert len(prepare.CUTS["train"]) == 27
    assert prepare.CUTS["train"][0] == date(2011, 2, 1)


def test_bucket_ids_fit_their_tables() -> None:
    values = np.array([np.nan, -1.0, 0.0, 5.0, 1e9])
    assert prepare.bucket(values, (0.0, 5.0)).tolist() == [1, 2, 3, 4, 4]
    sizes = prepare.table_sizes()
    assert all(prepare.bucket(values, edges).max() == sizes[name] - 1 for name, (_, edges) in prepare.BUCKETS.items())


def whole_log() -> pd.DataFrame:
    return make_raw(*random_lines(seed=0, first="2010-12-01", last="2011-12-08"), LAST_LINE)


def test_main_writes_the_same_complete_files_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_log().to_parquet(tmp_path / "log.parquet")
    whole_log().sample(frac=1, random_state=0).to_parquet(tmp_path / "shuffled.parquet")
    written = []
    for source in ("log.parquet", "log.parquet", "shuffled.parquet"):
        assert prepare.main(["--source", str(tmp_path / source), "--out", str(tmp_path / "out")]) == 0
        written.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert sorted(written[0]) == ["test.parquet", "train.parquet", "validation.parquet"]
    assert written[0] == written[1] == written[2]
    table = pq.read_table(tmp_path / "out" / "test.parquet")
    assert set(table["date"].to_pylist()) == set(prepare.CUTS["test"])
    assert table["last_items"].to_pylist()[0][0].isdigit()
    printed = capsys.readouterr().out
    assert "301  lines\n" in printed
    assert "purchase lines\n" in printed


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M"])
def test_csv_gives_the_same_lines_as_parquet(tmp_path: Path, form: str) -> None:
    raw = whole_log()
    raw.to_parquet(tmp_path / "log.parquet")
    text = raw.assign(Description="\xa3 SIGN", InvoiceDate=raw["InvoiceDate"].dt.strftime(form))
    text.to_csv(tmp_path / "log.csv", index=False, encoding="latin-1")
    tables = [prepare.clean_lines(prepare.read_source(tmp_path / name))[0] for name in ("log.parquet", "log.csv")]
    pd.testing.assert_frame_equal(
        *[table.assign(time=table["time"].dt.floor("min").astype("datetime64[ns]")) for table in tables],
        check_dtype=False,
    )


def test_killed_run_leaves_no_file_that_looks_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = samples_of(line("2011-01-10 09:00"))
    write_table = pq.write_table

    def die_at_test(table: object, path: Path, **options: int) -> None:
        if path.stem == "test":
            raise KeyboardInterrupt
        write_table(table, path, **options)

    monkeypatch.setattr(prepare.pq, "write_table", die_at_test)
    with pytest.raises(KeyboardInterrupt):
        prepare.write_splits(dict.fromkeys(prepare.CUTS, samples), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_columns_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "log.parquet"
    whole_log().rename(columns={"UnitPrice": "Price", "CustomerID": "Customer ID"}).to_parquet(source)
    assert prepare.main(["--source", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "no column UnitPrice, CustomerID; found InvoiceNo" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, "no file"),
        ("log.parquet", b"not parquet", "cannot be read as parquet"),
        ("log.csv", b"", "cannot be read as csv"),
        ("log.txt", b"InvoiceNo", "unknown kind of file '.txt'"),
    ],
)
def test_an_unreadable_source_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare.read_source(tmp_path / name)


def test_a_spreadsheet_needs_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Online Retail.xlsx").write_bytes(b"")
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs openpyxl; install it with `pip install openpyxl`"):
        prepare.read_source(tmp_path / "Online Retail.xlsx")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Quantity", "six", "column Quantity: 'six' is not a number"),
        ("InvoiceDate", "1st of May", "column InvoiceDate: '1st of May' is no time"),
        ("StockCode", None, "column StockCode has empty values"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, column: str, value: object, message: str) -> None:
    raw = whole_log().astype({column: object})
    raw.loc[0, column] = value
    raw.to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(ValueError, match=message):
        prepare.read_source(tmp_path / "log.csv")


def test_lines_that_end_too_early_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "log.parquet"
    make_raw(line("2011-01-10 09:00"), line("2011-11-29 09:00")).to_parquet(source)
    assert prepare.main(["--source", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "end on 2011-11-29, but the last label window ends on 2011-11-30" in capsys.readouterr().err


def test_help_names_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--source SOURCE" in text
    assert "the invoice lines: .parquet, .csv, or .xlsx" in text
    assert "folder to write to [data/online_retail]" in text


def test_the_config_reads_columns_that_are_written_and_no_label() -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load(Path(prepare.__file__).with_name("htlnet.yaml").read_text(encoding="utf-8"))
    columns = set(samples_of(line("2011-01-10 09:00")).columns)
    features = config["features"]
    names = [feature["name"] for feature in (*features["sparse"], *features["sequences"])]
    assert {*names, *features["dense"], *LABELS} <= columns
    assert not {*names, *features["dense"]} & set(LABELS)
    rows = {table["name"]: table["rows"] for table in features["tables"]}
    sizes = prepare.table_sizes()
    integers = [f for f in (*features["sparse"], *features["sequences"]) if f["name"] in sizes]
    assert all(rows[feature["table"]] >= sizes[feature["name"]] for feature in integers)


def test_reference_metrics_on_known_orders() -> None:
    reference = load_script("lightgbm_reference")
    labels = np.array([0.0, 0.0, 1.0, 1.0])
    assert reference.auc(labels, np.array([1.0, 2.0, 2.0, 3.0])) == 0.875
    spend = np.array([0.0, 3.0, 1.0, 9.0])
    assert reference.gini(spend, spend) == 1.0
    assert reference.gini(spend, -spend) == -1.0


def test_reference_reads_no_label_and_only_columns_that_are_written() -> None:
    reference = load_script("lightgbm_reference")
    columns = samples_of(line("2011-01-10 09:00")).columns
    assert set(reference.FEATURES) <= set(columns) - set(LABELS)


def test_reference_says_what_to_run_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = load_script("lightgbm_reference")
    assert reference.main(["--data", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
