"""Make training files of UCI Online Retail, the invoices of one shop: one row per customer and cut date, three tasks.

A cut is a midnight. A row's features use the days before it, its labels the 30 days from it on: does the customer buy,
on at least two days, and for how many pounds? Every customer with a purchase before the cut has a row.

The split is by time: weekly cuts from 1 February to 2 August 2011 for train, 1 September for validation, 1 October and
1 November for test. No label window of one split reaches into a window of another: 2 August + 30 days = 1 September.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ("InvoiceNo", "StockCode", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
CSV_TIMES = ("ISO8601", "%m/%d/%Y %H:%M")  # the second is how the spreadsheet's times come out as text
PRODUCT = r"\d{5}"  # how codes of goods begin; POST, DOT, C2, M, D, BANK CHARGES, CRUK, PADS, gift_... are others

WINDOW_DAYS = 30
FIRST_CUT, LAST_TRAIN_CUT = date(2011, 2, 1), date(2011, 8, 2)
CUTS: Mapping[str, tuple[date, ...]] = {
    "train": tuple(FIRST_CUT + timedelta(days=d) for d in range(0, (LAST_TRAIN_CUT - FIRST_CUT).days + 1, 7)),
    "validation": (date(2011, 9, 1),),
    "test": (date(2011, 10, 1), date(2011, 11, 1)),
}

MAX_HISTORY = 50
ROWS_PER_GROUP = 4096
LABELS = ("buys_again", "buys_twice", "spend")
LISTS: Mapping[str, pa.DataType] = {"past_amounts": pa.int64(), "past_gaps": pa.int64(), "last_items": pa.string()}

# A customer whose purchases average this many units a line, or this many pounds a day, counts as wholesale.
WHOLESALE_UNITS, WHOLESALE_POUNDS = 48, 1000

# Lower edges of the buckets, fixed once and not taken from the data.
# Ids: 0 is kept free (padding), 1 is "no value", then one a bucket. The last edge of days is one that train reaches.
DAYS = (4, 8, 15, 22, 31, 46, 61, 76, 91, 121, 151, 181)
COUNT = (1, 2, 3, 4, 5, 6, 8, 11, 16, 26)
POUNDS = (0.005, 50, 100, 150, 200, 250, 300, 350, 400, 500, 650, 900, 1300, 2000, 4000)
UNITS = (2, 4, 6, 9, 12, 16, 24, 48, 96, 240)
RATIO = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
SHARE = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
BUCKETS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "recency_bucket": ("recency_days", DAYS),
    "tenure_bucket": ("tenure_days", DAYS),
    "mean_gap_bucket": ("mean_gap_days", DAYS),
    "gap_ratio_bucket": ("gap_ratio", RATIO),
    "frequency_bucket": ("frequency", COUNT),
    "count_30_bucket": ("count_30", COUNT),
    "count_90_bucket": ("count_90", COUNT),
    "last_amount_bucket": ("last_amount", POUNDS),
    "mean_amount_bucket": ("mean_amount", POUNDS),
    "mean_units_bucket": ("mean_units", UNITS),
    "return_rate_bucket": ("return_rate", SHARE),
    "repeat_share_bucket": ("repeat_share", SHARE),
}
# Numbers with a long tail, also written as log1p and with 0 for null, which suits networks.
LOGS: Mapping[str, str] = {
    "log_recency": "recency_days",
    "log_tenure": "tenure_days",
    "log_mean_gap": "mean_gap_days",
    "log_gap_ratio": "gap_ratio",
    "log_frequency": "frequency",
    "log_count_30": "count_30",
    "log_count_90": "count_90",
    "log_last_amount": "last_amount",
    "log_mean_amount": "mean_amount",
    "log_max_amount": "max_amount",
    "log_total_amount": "total_amount",
    "log_amount_30": "amount_30",
    "log_amount_90": "amount_90",
    "log_mean_lines": "mean_lines",
    "log_num_items": "num_items",
    "log_mean_units": "mean_units",
    "log_mean_price": "mean_price",
}

Ints = npt.NDArray[np.int64]


def main(argv: Sequence[str] | None = None) -> int:
    """Writes train.parquet, validation.parquet, and test.parquet.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where the data could not be had.
    """
    parser = argparse.ArgumentParser(description="Make training files of the UCI Online Retail invoices.")
    parser.add_argument("--source", type=Path, required=True, help="the invoice lines: .parquet, .csv, or .xlsx")
    parser.add_argument("--out", type=Path, default=Path("data/online_retail"), help="folder to write to [%(default)s]")
    args = parser.parse_args(argv)
    try:
        lines, counts = clean_lines(read_source(args.source))
        check_end(lines)
        splits = {name: build_samples(lines, cuts=cuts) for name, cuts in CUTS.items()}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_splits(splits, out=args.out)
    print("\n".join(f"{count:>9,}  {what}" for what, count in counts.items()))
    print(describe(splits))
    print("table sizes:", ", ".join(f"{name} {size:,}" for name, size in table_sizes().items()))
    print(f"written to {args.out}")
    return 0


def read_source(path: Path) -> pd.DataFrame:
    """Reads the invoice lines.

    Args:
        path: A Parquet file, a CSV file, or the published spreadsheet.

    Returns:
        The columns `COLUMNS`: InvoiceNo, StockCode, and Country as text, InvoiceDate as time, CustomerID as float.

    Raises:
        ValueError: If the file is missing, cannot be read, lacks a column, or holds values of another kind.
    """
    if not path.is_file():
        raise ValueError(f"--source: no file {path}; give the invoice lines as .parquet, .csv, or .xlsx")
    raw = _read_table(path)
    missing = [name for name in COLUMNS if name not in raw.columns]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(map(str, raw.columns))}; "
            f"give the file with the published column names"
        )
    lines = raw[list(COLUMNS)].copy()
    empty = [name for name in COLUMNS if name != "CustomerID" and lines[name].isna().any()]
    if empty:
        raise ValueError(f"{path}: column {empty[0]} has empty values; only CustomerID may have them")
    for name in ("InvoiceNo", "StockCode", "Country"):
        lines[name] = lines[name].astype(str).str.strip()
    for name in ("Quantity", "UnitPrice", "CustomerID"):
        lines[name] = _numbers(lines[name], where=f"{path}: column {name}")
    lines["InvoiceDate"] = _times(lines["InvoiceDate"], where=f"{path}: column InvoiceDate")
    return lines


def _read_table(path: Path) -> pd.DataFrame:
    text: dict[str, type[str]] = {
        "InvoiceNo": str,
        "StockCode": str,
    }  # codes such as 536365 and C536379, 22752 and 85123A
    kind = path.suffix.lower()
    if kind == ".xlsx" and importlib.util.find_spec("openpyxl") is None:
        raise ValueError(f"{path}: reading .xlsx needs openpyxl; install it with `pip install openpyxl`, or give a CSV")
    try:
        if kind == ".parquet":
            return pd.read_parquet(path)
        if kind == ".csv":  # descriptions, which are not used, are not always UTF-8
            return pd.read_csv(path, dtype=text, encoding="utf-8-sig", encoding_errors="replace", low_memory=False)
        if kind == ".xlsx":
            return pd.read_excel(path, dtype=text)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as {kind[1:]}: {error}; fetch it again") from error
    raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; give .parquet, .csv, or .xlsx")


def _numbers(values: "pd.Series[Any]", *, where: str) -> "pd.Series[Any]":
    numbers = pd.to_numeric(values, errors="coerce")
    bad = values[numbers.isna() & values.notna()]
    if len(bad):
        raise ValueError(f"{where}: {bad.iloc[0]!r} is not a number; give the published file")
    return numbers.astype(np.float64)


def _times(values: "pd.Series[Any]", *, where: str) -> "pd.Series[Any]":
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return values
    for form in CSV_TIMES:
        times = pd.to_datetime(values.astype(str), format=form, errors="coerce")
        if times.notna().all():
            return times
    raise ValueError(f"{where}: {values.iloc[0]!r} is no time; write times as 2010-12-01 08:26:00 or 12/1/2010 8:26")


def clean_lines(raw: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Keeps the lines of goods that a known customer bought or sent back.

    Args:
        raw: What `read_source` returns.

    Returns:
        The lines (customer, day, time, item, units, pence, is_return, country), sorted by customer and time, with
        positive units and pence; and how many lines each step removed.
    """
    counts = {"lines": len(raw)}
    lines = raw[raw["CustomerID"].notna()]
    counts["without a customer, left out"] = len(raw) - len(lines)
    unique = lines.drop_duplicates()
    counts["exact repeats, left out"] = len(lines) - len(unique)
    goods = unique[unique["StockCode"].str.match(PRODUCT)]
    counts["not goods (postage, manual entries, discounts, fees), left out"] = len(unique) - len(goods)
    is_return = goods["InvoiceNo"].str.upper().str.startswith("C") | (goods["Quantity"] < 0)
    table = pd.DataFrame(
        {
            "customer": goods["CustomerID"].astype(np.int64),
            "day": goods["InvoiceDate"].dt.floor("D"),
            "time": goods["InvoiceDate"],
            "item": goods["StockCode"].str.upper(),
            "units": goods["Quantity"].abs().astype(np.int64),
            "pence": np.rint(goods["Quantity"].abs() * goods["UnitPrice"] * 100).astype(np.int64),
            "is_return": is_return,
            "country": goods["Country"],
        }
    )
    table = table.sort_values(["customer", "time", "item", "pence", "units", "is_return", "country"], ignore_index=True)
    paid = table[table["pence"] > 0]
    counts["free of charge, left out"] = len(table) - len(paid)
    reversed_rows = _reversed_on_the_day(paid)
    kept = paid.drop(index=reversed_rows).reset_index(drop=True)
    counts["purchases cancelled on the same day, left out with their cancellations"] = len(reversed_rows) // 2
    counts["purchase lines"] = int((~kept["is_return"]).sum())
    counts["other cancellation lines"] = int(kept["is_return"].sum())
    counts["customers with a purchase"] = kept.loc[~kept["is_return"], "customer"].nunique()
    return kept, counts


def _reversed_on_the_day(lines: pd.DataFrame) -> list[int]:
    """Index of the purchases whose whole line is cancelled later on the same day, and of their cancellations."""
    same = ["customer", "day", "item", "units", "pence"]
    numbered = lines.assign(row=lines.index, position=lines.groupby([*same, "is_return"]).cumcount())
    bought, returned = numbered[~numbered["is_return"]], numbered[numbered["is_return"]]
    pairs = bought.merge(returned, on=[*same, "position"], suffixes=("", "_returned"))
    pairs = pairs[pairs["time_returned"] >= pairs["time"]]
    return [*pairs["row"].tolist(), *pairs["row_returned"].tolist()]


def check_end(lines: pd.DataFrame) -> None:
    """Refuses lines that end before the last label window does: labels would silently be 0.

    Args:
        lines: What `clean_lines` returns.

    Raises:
        ValueError: If the last day of the lines is before the last day of a window.
    """
    needed = max(cut for cuts in CUTS.values() for cut in cuts) + timedelta(days=WINDOW_DAYS - 1)
    if lines.empty:
        raise ValueError("no line of goods with a customer and a price is left; give the published file")
    found = lines["day"].max().date()
    if found < needed:
        raise ValueError(f"the lines end on {found}, but the last label window ends on {needed}; give the whole file")


def build_samples(lines: pd.DataFrame, *, cuts: Sequence[date]) -> pd.DataFrame:
    """Makes one row per cut and customer with a purchase before it.

    Args:
        lines: What `clean_lines` returns.
        cuts: Midnights; a row's features use the days before, its labels the days from it on.

    Returns:
        Keys, features, labels, and the lists as NumPy arrays, sorted by cut and customer.
    """
    blocks = []
    for cut in map(pd.Timestamp, cuts):
        past = _features(lines[lines["day"] < cut], cut=cut)
        window = lines[(lines["day"] >= cut) & (lines["day"] < cut + pd.Timedelta(days=WINDOW_DAYS))]
        blocks.append(past.join(_labels(window, customers=past.index)))
    return pd.concat(blocks).reset_index()


def _features(past: pd.DataFrame, *, cut: pd.Timestamp) -> pd.DataFrame:
    """One row a customer, from lines before the cut."""
    bought = past[~past["is_return"]]
    orders = bought.groupby(["customer", "day"], as_index=False).agg(pence=("pence", "sum"))
    rows = _order_numbers(orders, cut=cut).join(_line_numbers(past))
    for name in rows.columns:
        rows[name] = rows[name].astype(np.int64 if name == "frequency" else np.float32)
    rows["is_wholesale"] = _is_wholesale(rows).astype(np.int64)
    for name, (source, edges) in BUCKETS.items():
        rows[name] = bucket(rows[source].to_numpy(np.float64), edges)
    for name, source in LOGS.items():
        rows[name] = np.log1p(rows[source].fillna(0.0)).astype(np.float32)
    rows["month"] = cut.month
    rows["country"] = bought.groupby("customer")["country"].last()
    gaps = orders.groupby("customer")["day"].diff().dt.days.to_numpy(np.float64)
    rows["past_amounts"] = last_values(orders["customer"], bucket(orders["pence"].to_numpy() / 100, POUNDS))
    rows["past_gaps"] = last_values(orders["customer"], bucket(gaps, DAYS))
    items = bought.drop_duplicates(["customer", "item"], keep="last")
    rows["last_items"] = last_values(items["customer"], items["item"].to_numpy(object))
    rows.insert(0, "date", cut)
    return rows


def _order_numbers(orders: pd.DataFrame, *, cut: pd.Timestamp) -> pd.DataFrame:
    by_customer = orders.groupby("customer")
    recency = (cut - by_customer["day"].max()).dt.days
    tenure = (cut - by_customer["day"].min()).dt.days
    frequency = by_customer.size()
    mean_gap = ((tenure - recency) / (frequency - 1)).where(frequency > 1)
    columns = {
        "recency_days": recency,
        "frequency": frequency,
        "tenure_days": tenure,
        "mean_gap_days": mean_gap,
        "gap_ratio": recency / mean_gap,
        "last_amount": by_customer["pence"].last() / 100,
        "mean_amount": by_customer["pence"].mean() / 100,
        "max_amount": by_customer["pence"].max() / 100,
        "total_amount": by_customer["pence"].sum() / 100,
    }
    for days in (30, 90):
        recent = orders[orders["day"] >= cut - pd.Timedelta(days=days)].groupby("customer")["pence"]
        columns[f"count_{days}"] = recent.size().reindex(frequency.index, fill_value=0)
        columns[f"amount_{days}"] = recent.sum().reindex(frequency.index, fill_value=0) / 100
    return pd.DataFrame(columns)


def _line_numbers(past: pd.DataFrame) -> pd.DataFrame:
    bought = past[~past["is_return"]]
    by_customer = bought.groupby("customer")
    num_lines, units = by_customer.size(), by_customer["units"].sum()
    num_returns = past[past["is_return"]].groupby("customer").size().reindex(num_lines.index, fill_value=0)
    item_days = bought.drop_duplicates(["customer", "item", "day"]).groupby(["customer", "item"]).size()
    return pd.DataFrame(
        {
            "mean_lines": num_lines / by_customer["day"].nunique(),
            "num_items": item_days.groupby("customer").size(),
            "repeat_share": (item_days > 1).groupby("customer").mean(),
            "mean_units": units / num_lines,
            "max_units": by_customer["units"].max(),
            "mean_price": by_customer["pence"].sum() / units / 100,
            "return_rate": num_returns / num_lines,
        }
    )


def _is_wholesale(rows: pd.DataFrame) -> "pd.Series[bool]":
    return (rows["mean_units"] >= WHOLESALE_UNITS) | (rows["mean_amount"] >= WHOLESALE_POUNDS)


def _labels(window: pd.DataFrame, *, customers: "pd.Index[Any]") -> pd.DataFrame:
    bought = window[~window["is_return"]].groupby("customer")
    num_days = bought["day"].nunique().reindex(customers, fill_value=0)
    pence = bought["pence"].sum().reindex(customers, fill_value=0)
    return pd.DataFrame(
        {
            "buys_again": (num_days >= 1).astype(np.int64),
            "buys_twice": (num_days >= 2).astype(np.int64),
            "spend": (pence / 100).astype(np.float32),
        }
    )


def bucket(values: npt.NDArray[np.float64], edges: Sequence[float]) -> Ints:
    """Maps numbers to ids of an embedding table.

    Args:
        values: Numbers, NaN where there is none.
        edges: Lower edges of all buckets but the first, ascending.

    Returns:
        1 for NaN, 2 below the first edge, 3 from it on, and so forth up to 2 + len(edges).
    """
    ids = np.searchsorted(np.asarray(edges, np.float64), values, side="right") + 2
    return np.where(np.isnan(values), 1, ids).astype(np.int64)


def last_values(customers: "pd.Series[Any]", values: npt.NDArray[Any]) -> "pd.Series[Any]":
    """Collects the last values of each customer.

    Args:
        customers: One a value, those of a customer adjacent and in the order of time.
        values: One a value.

    Returns:
        By customer, one array each: oldest first, at most the last `MAX_HISTORY`.
    """
    names, starts = np.unique(customers.to_numpy(), return_index=True)
    ends = np.append(starts[1:], len(values))
    lists = [values[max(start, end - MAX_HISTORY) : end] for start, end in zip(starts, ends, strict=True)]
    return pd.Series(lists, index=names, dtype=object)


def table_sizes() -> dict[str, int]:
    """The number of rows an embedding table needs for each id column, the past sequences included."""
    sizes = {name: len(edges) + 3 for name, (_, edges) in BUCKETS.items()}
    return sizes | {
        "past_amounts": sizes["last_amount_bucket"],
        "past_gaps": sizes["recency_bucket"],
        "is_wholesale": 2,
        "month": 13,
    }


def write_splits(splits: Mapping[str, pd.DataFrame], *, out: Path) -> None:
    """Writes one Parquet file a split. The files appear under their names only once all of them are complete.

    Args:
        splits: Name of the file, without suffix, and its rows.
        out: The folder, made if it is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".prepare-") as staging:
        for name, rows in splits.items():
            pq.write_table(_to_arrow(rows), Path(staging) / f"{name}.parquet", row_group_size=ROWS_PER_GROUP)
        for name in splits:
            os.replace(Path(staging) / f"{name}.parquet", out / f"{name}.parquet")


def _to_arrow(rows: pd.DataFrame) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in rows.columns:
        if name in LISTS:
            columns[name] = pa.array(rows[name], type=pa.list_(LISTS[name]))
        elif name == "date":
            columns[name] = pa.array(rows[name], type=pa.date32())
        elif name == "country":
            columns[name] = pa.array(rows[name], type=pa.string())
        else:
            columns[name] = pa.array(rows[name].to_numpy(), from_pandas=True)  # NaN becomes null
    return pa.table(columns)


def describe(splits: Mapping[str, pd.DataFrame]) -> str:
    """Rows, mean labels, and first and last cut of each split.

    Args:
        splits: Name of the split and its rows.

    Returns:
        A table as text.
    """
    table = pd.DataFrame(
        {
            name: {
                "rows": f"{len(rows):,}",
                **{label: f"{rows[label].mean():.4f}" for label in LABELS},
                "spend > 0": f"{(rows['spend'] > 0).mean():.4f}",
                "cuts": str(rows["date"].nunique()),
                "first cut": str(rows["date"].min())[:10],
                "last cut": str(rows["date"].max())[:10],
            }
            for name, rows in splits.items()
        }
    )
    return table.T.to_string()


if __name__ == "__main__":
    sys.exit(main())
