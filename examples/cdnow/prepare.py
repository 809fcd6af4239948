"""Make training files of CDNOW, a real log of CD purchases: one row per purchase occasion, three tasks ahead of it.

An occasion is a customer's day with a purchase. Its features use that day and earlier ones of the customer. Its labels
look at the 90 days after it, without the day itself: does the customer buy again, at least twice, and for how many
dollars? The log ends on 30 June 1998, so occasions after 1 April 1998 have no whole window and are left out (earlier
windows still count them).

The split is by time: train before 1 October 1997, validation to 31 December 1997, test from 1 January to 1 April 1998.
Windows of train rows end before the first test day. Windows of validation rows reach into test days, so use validation
to choose the epoch only, and the test rows to report.
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

PACKAGE = "lifetimes==0.11.3"
WHEEL_SHA256 = "261e3dc89977c2b60767ca6728aaa29d429de0c814635070a749c36555895da8"
MEMBER = "lifetimes/datasets/CDNOW_master.txt"
LOG_COLUMNS = ("customer_id", "date", "number_of_cds", "dollar_value")

LOG_END = date(1998, 6, 30)
WINDOW_DAYS = 90
VALIDATION_START = date(1997, 10, 1)
TEST_START = date(1998, 1, 1)

MAX_HISTORY = 50
ROWS_PER_GROUP = 4096
SPLITS = ("train", "validation", "test")
LABELS = ("buys_again", "buys_twice", "spend")

# Lower edges of the buckets, fixed once and not taken from the data.
# Ids: 0 is kept free (padding), 1 is "no value", then one a bucket.
DAYS = (4, 8, 15, 22, 31, 46, 61, 91, 121, 181, 271, 366)
COUNT = (1, 2, 3, 4, 6, 8, 11, 16, 26)
DOLLARS = (0.005, 10, 13, 16, 20, 25, 30, 40, 50, 65, 80, 100, 150, 250)
CDS = (2, 3, 4, 5, 7, 10, 20)
RATIO = (0.1, 0.25, 0.5, 0.75, 1.0, 1.01, 1.5, 2.0, 3.0)
BUCKETS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "recency_bucket": ("recency_days", DAYS),
    "frequency_bucket": ("frequency", COUNT),
    "tenure_bucket": ("tenure_days", DAYS),
    "mean_gap_bucket": ("mean_gap_days", DAYS),
    "gap_ratio_bucket": ("gap_ratio", RATIO),
    "recent_count_bucket": ("recent_count", COUNT),
    "amount_bucket": ("amount", DOLLARS),
    "mean_amount_bucket": ("mean_amount", DOLLARS),
    "cds_bucket": ("cds", CDS),
}
# Numbers with a long tail, also written as log1p and with 0 for null, which suits networks.
LOGS: Mapping[str, str] = {
    "log_recency": "recency_days",
    "log_frequency": "frequency",
    "log_tenure": "tenure_days",
    "log_mean_gap": "mean_gap_days",
    "log_recent_count": "recent_count",
    "log_recent_amount": "recent_amount",
    "log_amount": "amount",
    "log_mean_amount": "mean_amount",
    "log_max_amount": "max_amount",
    "log_total_amount": "total_amount",
    "log_cds": "cds",
}

Ints = npt.NDArray[np.int64]


def main(argv: Sequence[str] | None = None) -> int:
    """Writes train.parquet, validation.parquet, and test.parquet.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where the data could not be had.
    """
    parser = argparse.ArgumentParser(description="Make training files of the CDNOW purchase log.")
    parser.add_argument("--out", type=Path, default=Path("data/cdnow"), help="folder to write to [%(default)s]")
    parser.add_argument("--wheel", type=Path, help=f"a local copy of the wheel of {PACKAGE} [pip downloads one]")
    args = parser.parse_args(argv)
    try:
        samples = build_samples(read_log(read_wheel(args.wheel)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    splits = split_by_time(samples)
    write_splits(splits, out=args.out)
    print(describe(splits))
    print("table sizes:", ", ".join(f"{name} {size:,}" for name, size in table_sizes().items()))
    print(f"written to {args.out}")
    return 0


def read_wheel(path: Path | None) -> bytes:
    """Reads the wheel that holds the log, and verifies its checksum.

    Args:
        path: A local copy. pip downloads one where it is None.

    Returns:
        The bytes of the wheel.

    Raises:
        ValueError: If the wheel is missing, cannot be downloaded, or is another file.
    """
    if path is None:
        wheel = _download_wheel()
    elif path.is_file():
        wheel = path.read_bytes()
    else:
        raise ValueError(f"--wheel: no file {path}; give the wheel of {PACKAGE}, or leave --wheel out to download it")
    found = hashlib.sha256(wheel).hexdigest()
    if found != WHEEL_SHA256:
        raise ValueError(
            f"the wheel is not the one of {PACKAGE}: its SHA-256 is {found}, expected {WHEEL_SHA256}; "
            f"fetch it again with `pip download --no-deps {PACKAGE}` and pass it with --wheel FILE"
        )
    return wheel


def _download_wheel() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download"]
        command = [*pip, "--no-deps", "--only-binary", ":all:", "-d", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode == 0 and len(wheels) == 1:
            return wheels[0].read_bytes()
    reason = (done.stderr or done.stdout).strip()[-500:]
    raise ValueError(
        f"could not download {PACKAGE}: pip ended with status {done.returncode}: {reason}\n"
        f"Fetch the wheel elsewhere with `pip download --no-deps {PACKAGE}` and pass it with --wheel FILE."
    )


def read_log(wheel: bytes) -> pd.DataFrame:
    """Takes the purchase log out of the wheel.

    Args:
        wheel: The bytes of the wheel.

    Returns:
        One row per line of the log: customer, date (datetime64), cds, cents.

    Raises:
        ValueError: If the wheel has no such file, or the file has other columns.
    """
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        if MEMBER not in archive.namelist():
            raise ValueError(f"the wheel has no file {MEMBER}; use the wheel of {PACKAGE}")
        raw = pd.read_csv(io.BytesIO(archive.read(MEMBER)), sep=r"\s+")
    if tuple(raw.columns) != LOG_COLUMNS:
        raise ValueError(
            f"{MEMBER}: columns are {list(raw.columns)}, expected {list(LOG_COLUMNS)}; use the wheel of {PACKAGE}"
        )
    return pd.DataFrame(
        {
            "customer": raw["customer_id"].astype(np.int64),
            "date": pd.to_datetime(raw["date"].astype(str), format="%Y%m%d"),
            "cds": raw["number_of_cds"].astype(np.int64),
            "cents": np.rint(raw["dollar_value"].to_numpy(np.float64) * 100).astype(np.int64),
        }
    )


def build_samples(log: pd.DataFrame) -> pd.DataFrame:
    """Makes one row per purchase occasion whose label window lies inside the log.

    Args:
        log: Lines of purchases: customer, date, cds, cents.

    Returns:
        Keys, features, labels, and the two sequences as NumPy arrays, sorted by date and customer.
    """
    occasions = log.groupby(["customer", "date"], as_index=False, sort=True)[["cds", "cents"]].sum()
    samples = occasions[["customer", "date"]].copy()
    days = occasions["date"].to_numpy().astype("datetime64[D]").astype(np.int64)
    _add_numbers(samples, occasions, days=days)
    _add_calendar(samples)
    for name, (source, edges) in BUCKETS.items():
        samples[name] = bucket(samples[source].to_numpy(np.float64), edges)
    for name, source in LOGS.items():
        samples[name] = np.log1p(samples[source].fillna(0.0)).astype(np.float32)
    num_earlier = samples["frequency"].to_numpy(np.int64)
    samples["past_amounts"] = past_values(samples["amount_bucket"].to_numpy(np.int64), num_earlier=num_earlier)
    samples["past_gaps"] = past_values(samples["recency_bucket"].to_numpy(np.int64), num_earlier=num_earlier)
    _add_labels(samples, occasions, days=days)
    last_day = pd.Timestamp(LOG_END) - pd.Timedelta(days=WINDOW_DAYS)
    return samples[samples["date"] <= last_day].sort_values(["date", "customer"], ignore_index=True)


def _add_numbers(samples: pd.DataFrame, occasions: pd.DataFrame, *, days: Ints) -> None:
    by_customer = occasions.groupby("customer")
    position = np.arange(len(occasions))
    earlier = by_customer.cumcount().to_numpy(np.int64)
    first = position - earlier
    seen = earlier + 1
    recency = np.where(earlier > 0, days - np.roll(days, 1), np.nan)
    tenure = days - days[first]
    mean_gap = np.where(earlier > 0, tenure / np.maximum(earlier, 1), np.nan)
    total = by_customer["cents"].cumsum().to_numpy() / 100
    window_start = _first_position(occasions, days=days, from_days=days - WINDOW_DAYS + 1)
    cents_before = np.concatenate([[0], occasions["cents"].to_numpy().cumsum()])
    columns = {
        "recency_days": recency,
        "frequency": earlier,
        "tenure_days": tenure,
        "mean_gap_days": mean_gap,
        "gap_ratio": recency / mean_gap,
        "recent_count": position + 1 - window_start,
        "recent_amount": (cents_before[position + 1] - cents_before[window_start]) / 100,
        "amount": occasions["cents"].to_numpy() / 100,
        "mean_amount": total / seen,
        "max_amount": by_customer["cents"].cummax().to_numpy() / 100,
        "total_amount": total,
        "cds": occasions["cds"].to_numpy(),
        "mean_cds": by_customer["cds"].cumsum().to_numpy() / seen,
    }
    for name, values in columns.items():
        samples[name] = values if name == "frequency" else values.astype(np.float32)


def _add_calendar(samples: pd.DataFrame) -> None:
    when = samples["date"].dt
    angle = 2 * np.pi * (when.day_of_year - 1) / 365.25
    samples["day_of_year"] = when.day_of_year.astype(np.int64)
    samples["year_sin"] = np.sin(angle).astype(np.float32)
    samples["year_cos"] = np.cos(angle).astype(np.float32)
    samples["month"] = when.month.astype(np.int64)
    samples["day_of_week"] = when.day_of_week.astype(np.int64)


def _add_labels(samples: pd.DataFrame, occasions: pd.DataFrame, *, days: Ints) -> None:
    after = np.arange(len(occasions)) + 1
    end = _first_position(occasions, days=days, from_days=days + WINDOW_DAYS + 1)
    cents_before = np.concatenate([[0], occasions["cents"].to_numpy().cumsum()])
    samples["buys_again"] = (end - after >= 1).astype(np.int64)
    samples["buys_twice"] = (end - after >= 2).astype(np.int64)
    samples["spend"] = ((cents_before[end] - cents_before[after]) / 100).astype(np.float32)


def _first_position(occasions: pd.DataFrame, *, days: Ints, from_days: Ints) -> Ints:
    """Position of the first occasion of the row's customer on or after `from_days`, or one past the customer's last."""
    rank = np.unique(occasions["customer"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    span = int(days.max() - days.min()) + 4 * WINDOW_DAYS  # so that a customer's days never reach the next customer's
    offset = rank * span - int(days.min()) + 2 * WINDOW_DAYS
    return np.searchsorted(offset + days, offset + from_days, side="left").astype(np.int64)


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


def past_values(values: Ints, *, num_earlier: Ints) -> "pd.Series[Any]":
    """Collects, for every row, the values of the rows before it of the same customer.

    Args:
        values: One value a row, rows of a customer adjacent and in the order of time.
        num_earlier: How many rows of the same customer stand before each row.

    Returns:
        One array a row, oldest first, at most the last `MAX_HISTORY`, without the row itself.
    """
    lengths = np.minimum(num_earlier, MAX_HISTORY)
    return pd.Series([values[row - length : row] for row, length in enumerate(lengths)], dtype=object)


def split_by_time(samples: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Splits the rows by the day of the occasion.

    Args:
        samples: What `build_samples` returns.

    Returns:
        The rows of train, validation, and test.
    """
    starts = [np.datetime64(VALIDATION_START), np.datetime64(TEST_START)]
    split = np.searchsorted(starts, samples["date"].to_numpy(), side="right")
    return {name: samples[split == index].reset_index(drop=True) for index, name in enumerate(SPLITS)}


def table_sizes() -> dict[str, int]:
    """The number of rows an embedding table needs for each id column, the past sequences included."""
    sizes = {name: len(edges) + 3 for name, (_, edges) in BUCKETS.items()}
    return sizes | {
        "past_amounts": sizes["amount_bucket"],
        "past_gaps": sizes["recency_bucket"],
        "month": 13,
        "day_of_week": 7,
        "customer": 23_571,
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
        if name in {"past_amounts", "past_gaps"}:
            columns[name] = pa.array(rows[name], type=pa.list_(pa.int64()))
        elif name == "date":
            columns[name] = pa.array(rows[name], type=pa.date32())
        else:
            columns[name] = pa.array(rows[name].to_numpy(), from_pandas=True)  # NaN becomes null
    return pa.table(columns)


def describe(splits: Mapping[str, pd.DataFrame]) -> str:
    """Rows, mean labels, and first and last day of each split.

    Args:
        splits: What `split_by_time` returns.

    Returns:
        A table as text.
    """
    table = pd.DataFrame(
        {
            name: {
                "rows": f"{len(rows):,}",
                **{label: f"{rows[label].mean():.4f}" for label in LABELS},
                "spend > 0": f"{(rows['spend'] > 0).mean():.4f}",
                "first day": str(rows["date"].min())[:10],
                "last day": str(rows["date"].max())[:10],
            }
            for name, rows in splits.items()
        }
    )
    return table.T.to_string()


if __name__ == "__main__":
    sys.exit(main())
