"""Make training files of KuaiRand-Pure, a log of short videos shown to people: click, long view, like, and play time.

SOURCE holds either the public release's CSV files (samples: the second log; histories: the first log) or a slice of it
as Parquet with ready histories. Samples are split by time: 80 % train, 10 % validation, 10 % test, and rows of one
moment stay together. What a row may know lies before it: the user and video files, and counts and sequences of the
histories, which end before the first sample. `video_features_statistic` is never read: its counts are of the future.

OUT also keeps vocabulary.json, users.parquet, and videos.parquet. They are all that `--log FILE` needs to turn a later
log into OUT/<stem of FILE>.parquet with the same ids, so SOURCE can then be left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Vocabulary = dict[str, list[int | str]]

PARQUET_LOG = "log_standard_*.parquet"
PARQUET_HISTORIES = "user_histories_to_*.parquet"
CSV_HISTORY_LOG = "log_standard_4_08_to_4_21_pure.csv"
CSV_LOG = "log_standard_4_22_to_5_08_pure.csv"
USERS, VIDEOS = "user_features_pure", "video_features_basic_pure"

SPLITS = {"train": 0.0, "validation": 0.8, "test": 0.9}  # where each begins, as a share of the rows
LABELS = ("is_click", "long_view", "is_like", "play_time_s", "play_ratio", "played")
LOG_COLUMNS = (
    "user_id",
    "video_id",
    "time_ms",
    "tab",
    "duration_ms",
    "is_click",
    "long_view",
    "is_like",
    "play_time_ms",
)
MAX_HISTORY = 50
MAX_PLAY_SECONDS = 120.0
HOURS_EAST = 8  # the log's clock is that of Beijing
ROWS_PER_GROUP = 16_384
PRIOR_VIEWS = 20.0  # a rate starts from the overall mean, with the weight of this many views

HISTORIES = {"watched": "watch_seq", "liked": "like_seq", "long_watched": "long_watch_seq"}
USER_CATEGORIES = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{index}" for index in range(18)),
)
USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
VIDEO_CATEGORIES = {
    "author": "author_id",
    "music": "music_id",
    "music_type": "music_type",
    "video_type": "video_type",
    "upload_type": "upload_type",
}
VIDEO_COLUMNS = ("video_id", *VIDEO_CATEGORIES.values(), "tag", "video_duration")

# Lower edges of the buckets, fixed once and not taken from the data. Ids: 0 is "not known", then one a bucket.
COUNT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
RATE = tuple(round(0.05 * step, 2) for step in range(1, 18))
LIKE_RATE = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08)
SECONDS = (5, 7, 9, 11, 13, 15, 17, 20, 25, 30, 40, 50, 60, 75, 90, 120, 150, 180, 240, 300, 600)
BUCKETS: Mapping[str, tuple[float, ...]] = {
    "duration_bucket": SECONDS,
    "user_history_bucket": COUNT,
    "user_liked_bucket": COUNT,
    "user_long_watch_bucket": RATE,
    "video_popularity_bucket": COUNT,
    "video_long_watch_bucket": RATE,
    "video_like_bucket": LIKE_RATE,
    "author_popularity_bucket": COUNT,
    "author_long_watch_bucket": RATE,
}


@dataclass(frozen=True)
class Source:
    """The raw tables.

    Attributes:
        log: Impressions, the samples.
        users: One row a user.
        videos: One row a video.
        histories: One row a user: user_id, history_len, last_time_ms, and the three sequences of raw video ids.
    """

    log: pd.DataFrame
    users: pd.DataFrame
    videos: pd.DataFrame
    histories: pd.DataFrame


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the splits of SOURCE, or converts a further log, or both.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where the data is missing or malformed.
    """
    parser = argparse.ArgumentParser(description="Make training files of KuaiRand-Pure.")
    parser.add_argument("--source", type=Path, help="folder of the release; may be left out where --log is given")
    parser.add_argument("--out", type=Path, default=Path("data/kuairand"), help="folder to write to [%(default)s]")
    parser.add_argument("--log", type=Path, help="a later log, CSV or Parquet, to convert with the ids saved in OUT")
    parser.add_argument("--min-count", type=int, default=5, help="rarer values share id 0 [%(default)s]")
    args = parser.parse_args(argv)
    try:
        if args.source is None and args.log is None:
            raise ValueError("nothing to do: give --source DIR (prepare), --log FILE (convert a later log), or both")
        if args.source is not None:
            prepare(args.source, out=args.out, min_count=args.min_count)
        if args.log is not None:
            convert_log(args.log, out=args.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(source: Path, *, out: Path, min_count: int) -> None:
    """Writes train, validation, and test, and what a later log needs.

    Args:
        source: Folder of the release or of the slice.
        out: The folder to write to, made if it is missing.
        min_count: Values that fewer rows have share id 0.

    Raises:
        ValueError: If a file or a column is missing.
    """
    raw = read_source(source)
    history_end = int(raw.histories["last_time_ms"].max())
    splits = split_by_time(drop_before(raw.log, history_end=history_end))
    vocabulary = build_vocabulary(splits["train"], raw, min_count=min_count)
    users, videos = encode_users(raw, vocabulary), encode_videos(raw, vocabulary)
    encoded = {
        name: encode_log(rows, users=users, videos=videos, vocabulary=vocabulary) for name, rows in splits.items()
    }
    saved = {"min_count": min_count, "history_end_ms": history_end, "vocabulary": vocabulary}
    write_files(encoded | {"users": users, "videos": videos}, out=out, vocabulary=saved)
    print(describe(encoded))
    print("table sizes:", ", ".join(f"{name} {size:,}" for name, size in table_sizes(vocabulary).items()))
    print(f"written to {out}")


def convert_log(path: Path, *, out: Path) -> None:
    """Writes OUT/<stem of the log>.parquet with the ids and counts that `prepare` saved.

    Args:
        path: A log with the columns of the release, CSV or Parquet.
        out: Where `prepare` wrote.

    Raises:
        ValueError: If OUT is not prepared, a column is missing, or no row lies after the histories.
    """
    names = ("vocabulary.json", "users.parquet", "videos.parquet")
    missing = [name for name in names if not (out / name).is_file()]
    if missing:
        raise ValueError(f"{out} has no {', '.join(missing)}: prepare it first, with --source DIR --out {out}")
    if path.stem in {*SPLITS, "users", "videos"}:
        raise ValueError(f"--log: {path.name} would overwrite {path.stem}.parquet in {out}; rename the log")
    saved = json.loads((out / "vocabulary.json").read_text(encoding="utf-8"))
    log = drop_before(_read_table(path, LOG_COLUMNS), history_end=saved["history_end_ms"])
    users, videos = pq.read_table(out / "users.parquet"), pq.read_table(out / "videos.parquet")
    encoded = {path.stem: encode_log(log, users=users, videos=videos, vocabulary=saved["vocabulary"])}
    write_files(encoded, out=out, vocabulary=None)
    print(describe(encoded))
    print(f"written to {out / path.stem}.parquet")


def read_source(source: Path) -> Source:
    """Reads the Parquet slice or the CSV release, in SOURCE or in its folder `data`.

    Args:
        source: The folder.

    Returns:
        The raw tables.

    Raises:
        ValueError: If a file or a column is missing.
    """
    for folder in (source, source / "data"):
        if any(folder.glob(PARQUET_LOG)):
            return _read_parquet_slice(folder)
        if (folder / CSV_LOG).is_file():
            return _read_csv_release(folder)
    raise ValueError(
        f"no log in {source} or {source / 'data'}: looked for {PARQUET_LOG} (Parquet slice) and {CSV_LOG} (public "
        "release); give the folder that holds KuaiRand-Pure"
    )


def _read_parquet_slice(folder: Path) -> Source:
    files = sorted(folder.glob(PARQUET_HISTORIES))
    if len(files) != 1:
        raise ValueError(f"{folder}: looked for one file {PARQUET_HISTORIES}, found {[file.name for file in files]}")
    logs = [_read_table(path, LOG_COLUMNS) for path in sorted(folder.glob(PARQUET_LOG))]
    return Source(
        log=pd.concat(logs, ignore_index=True),
        users=_read_table(folder / f"{USERS}.parquet", ("user_id", *USER_CATEGORIES, *USER_NUMBERS)),
        videos=_read_table(folder / f"{VIDEOS}.parquet", VIDEO_COLUMNS),
        histories=_read_table(files[0], ("user_id", "history_len", "last_time_ms", *HISTORIES.values())),
    )


def _read_csv_release(folder: Path) -> Source:
    return Source(
        log=_read_table(folder / CSV_LOG, LOG_COLUMNS),
        users=_read_table(folder / f"{USERS}.csv", ("user_id", *USER_CATEGORIES, *USER_NUMBERS)),
        videos=_read_table(folder / f"{VIDEOS}.csv", VIDEO_COLUMNS),
        histories=build_histories(_read_table(folder / CSV_HISTORY_LOG, LOG_COLUMNS)),
    )


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"no file {path}; it is part of KuaiRand-Pure, put it there")
    is_csv = path.suffix == ".csv"
    header = pd.read_csv(path, nrows=0).columns if is_csv else pq.read_schema(path).names
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; found {list(header)}; use the official file")
    if is_csv:
        return pd.read_csv(path, usecols=list(columns), dtype={"tag": str}, low_memory=False)[list(columns)]
    return pd.read_parquet(path, columns=list(columns))


def build_histories(log: pd.DataFrame) -> pd.DataFrame:
    """Collects what every user was shown, liked, and watched long in a log.

    Args:
        log: Impressions, in any order.

    Returns:
        One row a user, as in `Source.histories`; sequences hold the last `MAX_HISTORY` videos, oldest first.
    """
    ordered = log.sort_values("time_ms", kind="stable")
    by_user = ordered.groupby("user_id")["time_ms"]
    histories = pd.DataFrame({"history_len": by_user.size(), "last_time_ms": by_user.max()})
    shown = pd.Series(True, index=ordered.index)
    chosen = {"watch_seq": shown, "like_seq": ordered["is_like"] == 1, "long_watch_seq": ordered["long_view"] == 1}
    for name, rows in chosen.items():
        last = ordered[rows].groupby("user_id").tail(MAX_HISTORY)
        histories[name] = last.groupby("user_id")["video_id"].agg(list).reindex(histories.index)
        histories[name] = histories[name].map(lambda videos: videos if isinstance(videos, list) else [])
    return histories.reset_index()


def drop_before(log: pd.DataFrame, *, history_end: int) -> pd.DataFrame:
    """Drops rows that are not later than the histories, whose counts would tell them of the future.

    Args:
        log: Impressions.
        history_end: Time of the last event in any history, in milliseconds.

    Returns:
        The later rows.

    Raises:
        ValueError: If there are none.
    """
    later = log[log["time_ms"] > history_end]
    if later.empty:
        raise ValueError(
            f"none of the log's {len(log):,} rows is later than the histories, which end at time_ms {history_end}; "
            "give a log of a later time"
        )
    if len(later) < len(log):
        print(f"left out {len(log) - len(later):,} rows that are not later than the histories (time_ms {history_end})")
    return later


def split_by_time(log: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Splits a log into train, validation, and test; rows with the same time stay in one split.

    Args:
        log: Impressions, in any order.

    Returns:
        The rows of each split, by time.
    """
    ordered = log.sort_values(["time_ms", "user_id", "video_id"], kind="stable", ignore_index=True)
    times = ordered["time_ms"].to_numpy(np.int64)
    starts = [int(np.searchsorted(times, times[int(share * len(times))])) for share in SPLITS.values()]
    ends = [*starts[1:], len(times)]
    return {name: ordered.iloc[start:end] for name, start, end in zip(SPLITS, starts, ends, strict=True)}


def build_vocabulary(train: pd.DataFrame, source: Source, *, min_count: int) -> Vocabulary:
    """Collects the values that get an id of their own, sorted; value i of a list has id i + 1.

    Args:
        train: The rows of train, the only ones looked at.
        source: For the users and videos of these rows, and for the histories, which count for `video` too.
        min_count: Values that fewer rows have are left out.

    Returns:
        The values of each id column.
    """
    users = source.users.set_index("user_id").reindex(train["user_id"])
    videos = source.videos.set_index("video_id").reindex(train["video_id"])
    watched = pd.Series(np.concatenate([[], *source.histories["watch_seq"]]), dtype="Int64")
    columns = {
        "user": train["user_id"],
        "video": pd.concat([train["video_id"], watched]),
        "tab": train["tab"],
        "tag": videos["tag"].dropna().str.split(",").explode(),
        **{name: videos[column] for name, column in VIDEO_CATEGORIES.items()},
        **{name: users[name] for name in USER_CATEGORIES},
    }
    return {name: _frequent_values(values, min_count=min_count) for name, values in columns.items()}


def _frequent_values(values: pd.Series[Any], *, min_count: int) -> list[int | str]:
    counts = _as_category(values).value_counts()
    return sorted(counts[counts >= min_count].index.tolist())


def _as_category(values: pd.Series[Any]) -> pd.Series[Any]:
    """Whole numbers as Int64, whatever the file's reader made of them, and all else as text."""
    return values.astype("Int64" if pd.api.types.is_numeric_dtype(values) else "string")


def encode(values: pd.Series[Any], vocabulary: Sequence[int | str]) -> Ints:
    """Maps values to ids.

    Args:
        values: Raw values, which may be null.
        vocabulary: The values with an id.

    Returns:
        1 for the first value of the vocabulary and so forth, 0 for null and for values that are not in it.
    """
    ids = {value: index + 1 for index, value in enumerate(vocabulary)}
    return np.asarray(_as_category(values).map(ids).fillna(0), np.int64)


def bucket(values: npt.ArrayLike, edges: Sequence[float]) -> Ints:
    """Maps numbers to ids.

    Args:
        values: Numbers, NaN where not known.
        edges: Lower edges of all buckets but the first, ascending.

    Returns:
        0 for NaN, 1 below the first edge, 2 from it on, and so forth up to 1 + len(edges).
    """
    numbers = np.asarray(values, np.float64)
    ids = np.searchsorted(np.asarray(edges, np.float64), numbers, side="right") + 1
    return np.where(np.isnan(numbers), 0, ids).astype(np.int64)


def encode_users(source: Source, vocabulary: Vocabulary) -> pa.Table:
    """Everything a row takes from its user.

    Args:
        source: The raw tables.
        vocabulary: What `build_vocabulary` returns.

    Returns:
        One row a user: user_id, encoded columns, numbers, and the histories as ids of `video`.
    """
    users = source.users.merge(source.histories, on="user_id", how="outer").sort_values("user_id", ignore_index=True)
    views = _count_views(source.histories).groupby("user_id").sum().reindex(users["user_id"]).fillna(0)
    num_liked = users["like_seq"].map(len, na_action="ignore").fillna(0).to_numpy(np.float64)
    history_length = users["history_len"].fillna(0).to_numpy(np.float64)
    long_rate = _smooth_rate(views["long"], views["watched"])
    columns: dict[str, Any] = {"user_id": users["user_id"].to_numpy(np.int64)}
    columns |= {name: encode(users[name], vocabulary[name]) for name in USER_CATEGORIES}
    columns |= {f"log_{name}": _log(users[name]) for name in USER_NUMBERS}
    columns |= {
        "user_history_bucket": bucket(history_length, COUNT),
        "user_liked_bucket": bucket(num_liked, COUNT),
        "user_long_watch_bucket": bucket(long_rate, RATE),
        "log_user_history": np.log1p(history_length).astype(np.float32),
        "log_user_liked": np.log1p(num_liked).astype(np.float32),
        "user_long_watch_rate": long_rate.astype(np.float32),
    }
    columns |= {name: _encode_lists(users[raw], vocabulary["video"]) for name, raw in HISTORIES.items()}
    return pa.table(columns)


def encode_videos(source: Source, vocabulary: Vocabulary) -> pa.Table:
    """Everything a row takes from its video.

    Args:
        source: The raw tables.
        vocabulary: What `build_vocabulary` returns.

    Returns:
        One row a video: video_id, encoded columns, and numbers.
    """
    videos = source.videos.sort_values("video_id", ignore_index=True)
    views = _count_views(source.histories).groupby("video_id").sum().reindex(videos["video_id"]).fillna(0)
    author = videos["author_id"].to_numpy()
    by_author = views.groupby(author).sum().reindex(author).fillna(0)
    columns: dict[str, Any] = {"video_id": videos["video_id"].to_numpy(np.int64)}
    columns |= {name: encode(videos[raw], vocabulary[name]) for name, raw in VIDEO_CATEGORIES.items()}
    columns["tag"] = _encode_lists(videos["tag"].str.split(","), vocabulary["tag"])
    for name, counts in {"video": views, "author": by_author}.items():
        popularity = counts["watched"].to_numpy(np.float64)
        long_rate = _smooth_rate(counts["long"], counts["watched"])
        columns[f"{name}_popularity_bucket"] = bucket(popularity, COUNT)
        columns[f"{name}_long_watch_bucket"] = bucket(long_rate, RATE)
        columns[f"log_{name}_popularity"] = np.log1p(popularity).astype(np.float32)
        columns[f"{name}_long_watch_rate"] = long_rate.astype(np.float32)
    like_rate = _smooth_rate(views["liked"], views["watched"])
    columns["video_like_bucket"] = bucket(like_rate, LIKE_RATE)
    columns["video_like_rate"] = like_rate.astype(np.float32)
    return pa.table(columns)


def _count_views(histories: pd.DataFrame) -> pd.DataFrame:
    """Views by user and video among the last watched; those that ended in a like or a long watch among them.

    The liked and long watched sequences reach further back than the watched one, so what exceeds the views is cut off.
    """
    counts = {
        name: histories[["user_id", column]].explode(column).dropna().groupby(["user_id", column]).size()
        for name, column in {"watched": "watch_seq", "liked": "like_seq", "long": "long_watch_seq"}.items()
    }
    views = pd.DataFrame({name: count.rename_axis(["user_id", "video_id"]) for name, count in counts.items()})
    views = views[views["watched"].notna()].fillna(0).astype(np.float64)
    return views.assign(**{name: views[[name, "watched"]].min(axis=1) for name in ("liked", "long")})


def _smooth_rate(events: pd.Series[float], views: pd.Series[float]) -> Floats:
    mean = events.sum() / max(views.sum(), 1.0)
    return np.asarray((events + PRIOR_VIEWS * mean) / (views + PRIOR_VIEWS), np.float64)


def _log(values: pd.Series[Any]) -> npt.NDArray[np.float32]:
    return np.log1p(values.astype("Float64").fillna(0).clip(lower=0).to_numpy(np.float64)).astype(np.float32)


def _encode_lists(lists: pd.Series[Any], vocabulary: Sequence[int | str]) -> pa.Array:
    lengths = lists.map(len, na_action="ignore").fillna(0).to_numpy(np.int64)
    values = lists[lengths > 0].explode()
    if vocabulary and isinstance(vocabulary[0], int):
        values = values.astype("Int64")
    offsets = np.concatenate([[0], lengths.cumsum()])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(encode(values, vocabulary), pa.int64()))


def encode_log(log: pd.DataFrame, *, users: pa.Table, videos: pa.Table, vocabulary: Vocabulary) -> pa.Table:
    """Joins impressions with their users and videos.

    Args:
        log: Impressions.
        users: What `encode_users` returns.
        videos: What `encode_videos` returns.
        vocabulary: What `build_vocabulary` returns.

    Returns:
        One row an impression, in the order of the log: raw keys, features, labels. No other outcome of the impression.
    """
    when = pd.to_datetime(log["time_ms"], unit="ms") + pd.Timedelta(hours=HOURS_EAST)
    seconds = log["duration_ms"].to_numpy(np.float64) / 1000
    columns: dict[str, Any] = {name: log[name].to_numpy(np.int64) for name in ("user_id", "video_id", "time_ms")}
    columns |= {
        "user": encode(log["user_id"], vocabulary["user"]),
        "video": encode(log["video_id"], vocabulary["video"]),
        "tab": encode(log["tab"], vocabulary["tab"]),
        "hour": when.dt.hour.to_numpy(np.int64),
        "day_of_week": when.dt.day_of_week.to_numpy(np.int64),
        "duration_bucket": bucket(np.where(seconds > 0, seconds, np.nan), SECONDS),
        "log_duration": np.log1p(seconds).astype(np.float32),
    }
    for table, key in ((users, "user_id"), (videos, "video_id")):
        found = _look_up(table, key=key, values=columns[key])
        columns |= {name: found[name] for name in found.column_names}
    columns |= {name: log[name].to_numpy(np.int64) for name in ("is_click", "long_view", "is_like")}
    play_seconds = log["play_time_ms"].to_numpy(np.float64) / 1000
    columns["play_time_s"] = np.minimum(play_seconds, MAX_PLAY_SECONDS).astype(np.float32)
    # A length of 0 is a length not known, and so is the fraction.
    ratio = np.divide(play_seconds, seconds, out=np.zeros_like(seconds), where=seconds > 0)
    columns["play_ratio"] = np.minimum(ratio, 1.0).astype(np.float32)
    columns["played"] = (columns["play_ratio"] > 0).astype(np.int64)
    return pa.table(columns)


def _look_up(table: pa.Table, *, key: str, values: Ints) -> pa.Table:
    """The table's row for every value, without the key; zeros and empty lists where the table has no such row."""
    positions = pd.Index(table[key].to_numpy()).get_indexer(pd.Index(values))
    rest = table.drop_columns([key])
    blank = pa.table(
        {field.name: pa.array([[] if pa.types.is_list(field.type) else 0], field.type) for field in rest.schema}
    )
    extended = pa.concat_tables([rest, blank]).combine_chunks()
    return extended.take(pa.array(np.where(positions < 0, len(rest), positions)))


def table_sizes(vocabulary: Vocabulary) -> dict[str, int]:
    """The number of rows an embedding table needs for each id column; the histories share the one of `video`."""
    sizes = {name: len(values) + 1 for name, values in vocabulary.items()}
    return sizes | {name: len(edges) + 2 for name, edges in BUCKETS.items()} | {"hour": 24, "day_of_week": 7}


def write_files(tables: Mapping[str, pa.Table], *, out: Path, vocabulary: Mapping[str, Any] | None) -> None:
    """Writes one Parquet file a table. The files appear under their names only once all of them are complete.

    Args:
        tables: Name of the file, without suffix, and its rows.
        out: The folder, made if it is missing.
        vocabulary: What to write into vocabulary.json; None leaves that file as it is.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".prepare-") as staging:
        for name, table in tables.items():
            pq.write_table(table, Path(staging) / f"{name}.parquet", row_group_size=ROWS_PER_GROUP)
        if vocabulary is not None:  # an old one goes first, so that it never stands beside new files
            (out / "vocabulary.json").unlink(missing_ok=True)
            (Path(staging) / "vocabulary.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        for path in sorted(Path(staging).iterdir()):
            os.replace(path, out / path.name)


def describe(tables: Mapping[str, pa.Table]) -> str:
    """Rows, mean labels, share of unknown ids, and first and last moment of each table.

    Args:
        tables: What `encode_log` returns, by name.

    Returns:
        A table as text.
    """
    lines = {}
    for name, table in tables.items():
        times = pd.to_datetime(table["time_ms"].to_pandas(), unit="ms") + pd.Timedelta(hours=HOURS_EAST)
        lines[name] = {
            "rows": f"{len(table):,}",
            **{label: f"{table[label].to_numpy().mean():.4f}" for label in LABELS},
            **{f"unknown {key}": f"{(table[key].to_numpy() == 0).mean():.4f}" for key in ("user", "video")},
            "from": str(times.min())[:16],
            "to": str(times.max())[:16],
        }
    return pd.DataFrame(lines).T.to_string()


if __name__ == "__main__":
    sys.exit(main())
