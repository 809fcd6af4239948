"""Make training files of MovieLens 100K, a log of movie ratings: one row per rating, three tasks ahead of it.

A row is a user, a movie, and a moment: will the user like the movie, love it, dislike it? Everything the row knows lies
strictly before its moment: neither the rating itself, nor any other of the same second, is in its histories and counts.

The split is by time over all users: 80 % train, 10 % validation, 10 % test, and rows of one moment stay together.

The data is GroupLens's and keeps their terms of use; it is taken out of a wheel that carries it, and never committed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

PACKAGE = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.{}"
COLUMNS = {
    "inter": ("user_id", "item_id", "rating", "timestamp"),
    "user": ("user_id", "age", "gender", "occupation", "zip_code"),
    "item": ("item_id", "movie_title", "release_year", "class"),
}

MAX_HISTORY = 50
PRIOR_RATINGS = 5.0  # a mean starts from the overall mean so far, with the weight of this many ratings
FIRST_MEAN = 3.0  # what the overall mean itself starts from: the middle of the scale
ROWS_PER_GROUP = 8192
SPLITS = {"train": 0.0, "validation": 0.8, "test": 0.9}  # where each begins, as a share of the rows
LABELS = ("like", "love", "dislike", "rating")
HISTORIES = {"rated": "rated_at", "liked": "liked_at", "disliked": "disliked_at"}  # movies and their moments

# Ids are fixed once and not taken from the data: 0 is "not known", value i of a list has id i + 1.
NUM_USERS, NUM_MOVIES = 943, 1682
GENDERS = ("F", "M")
OCCUPATIONS = (
    "administrator",
    "artist",
    "doctor",
    "educator",
    "engineer",
    "entertainment",
    "executive",
    "healthcare",
    "homemaker",
    "lawyer",
    "librarian",
    "marketing",
    "none",
    "other",
    "programmer",
    "retired",
    "salesman",
    "scientist",
    "student",
    "technician",
    "writer",
)
ZIP_REGIONS = tuple("0123456789")  # the first digit; Canada's codes begin with a letter
GENRES = (
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
# Lower edges of all buckets but the first. Ids: 0 is "not known", then one a bucket.
AGE = (18, 25, 35, 45, 50, 56)
YEAR = (1940, 1950, 1960, 1970, 1980, 1985, 1990, 1992, 1993, 1994, 1995, 1996, 1997, 1998)
COUNT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MEAN = (2.0, 2.5, 2.75, 3.0, 3.125, 3.25, 3.375, 3.5, 3.625, 3.75, 3.875, 4.0, 4.125, 4.25, 4.5)
BUCKETS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "age_bucket": ("age", AGE),
    "year_bucket": ("release_year", YEAR),
    "user_ratings_bucket": ("user_ratings", COUNT),
    "user_mean_bucket": ("user_mean", MEAN),
    "movie_ratings_bucket": ("movie_ratings", COUNT),
    "movie_mean_bucket": ("movie_mean", MEAN),
}

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """The raw tables.

    Attributes:
        ratings: user, movie, rating (whole stars), timestamp (seconds of Unix time).
        users: user, age, and gender, occupation, zip_code as text.
        movies: movie, release_year (NaN where not known), genres (lists of names).
    """

    ratings: pd.DataFrame
    users: pd.DataFrame
    movies: pd.DataFrame


def main(argv: Sequence[str] | None = None) -> int:
    """Writes train.parquet, validation.parquet, and test.parquet.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where the data could not be had.
    """
    parser = argparse.ArgumentParser(description="Make training files of MovieLens 100K.")
    parser.add_argument("--out", type=Path, default=Path("data/movielens"), help="folder to write to [%(default)s]")
    parser.add_argument("--wheel", type=Path, help=f"a local copy of the wheel of {PACKAGE} [pip downloads one]")
    args = parser.parse_args(argv)
    try:
        samples = build_samples(read_source(read_wheel(args.wheel)))
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
    """Reads the wheel that holds the data, and verifies its checksum.

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


def read_source(wheel: bytes) -> Source:
    """Takes ratings, users, and movies out of the wheel.

    Args:
        wheel: The bytes of the wheel.

    Returns:
        The raw tables.

    Raises:
        ValueError: If the wheel lacks one of the files, or a file has other columns.
    """
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        inter, user, item = (_read_table(archive, name) for name in COLUMNS)
    ratings = {"user": inter["user_id"], "movie": inter["item_id"], **inter[["rating", "timestamp"]]}
    return Source(
        ratings=pd.DataFrame(ratings).astype(np.float64).astype(np.int64),
        users=user.rename(columns={"user_id": "user"}).astype({"user": np.int64, "age": np.int64}),
        movies=pd.DataFrame(
            {
                "movie": item["item_id"].astype(np.int64),
                "release_year": pd.to_numeric(item["release_year"], errors="coerce").astype(np.float64),
                "genres": item["class"].str.split(),
            }
        ),
    )


def _read_table(archive: zipfile.ZipFile, name: str) -> pd.DataFrame:
    """The file's fields as text. Its header is `column:type`, by tabs."""
    member = MEMBER.format(name)
    if member not in archive.namelist():
        raise ValueError(f"the wheel has no file {member}; use the wheel of {PACKAGE}")
    # No quoting, and no null: a title may hold a quotation mark, an occupation is "none".
    raw = pd.read_csv(io.BytesIO(archive.read(member)), sep="\t", dtype=str, quoting=3, keep_default_na=False)
    raw.columns = pd.Index([column.split(":")[0] for column in raw.columns])
    if tuple(raw.columns) != COLUMNS[name]:
        raise ValueError(
            f"{member}: columns are {list(raw.columns)}, expected {list(COLUMNS[name])}; use the wheel of {PACKAGE}"
        )
    return raw


def build_samples(source: Source) -> pd.DataFrame:
    """Makes one row per rating.

    Args:
        source: The raw tables.

    Returns:
        Keys, features, labels, and the lists as NumPy arrays, sorted by moment, user, and movie.
    """
    ratings = source.ratings.sort_values(["user", "timestamp", "movie"], ignore_index=True)
    samples = ratings[["user", "movie", "timestamp"]].copy()
    samples = _add_fields(samples, source)
    _add_calendar(samples)
    _add_counts(samples, ratings)
    for name, (column, edges) in BUCKETS.items():
        samples[name] = bucket(samples[column].to_numpy(np.float64), edges)
    samples["log_user_ratings"] = np.log1p(samples["user_ratings"]).astype(np.float32)
    samples["log_movie_ratings"] = np.log1p(samples["movie_ratings"]).astype(np.float32)
    stars = ratings["rating"].to_numpy(np.int64)
    chosen = {"rated": stars > 0, "liked": stars >= 4, "disliked": stars <= 2}
    for name, moments in HISTORIES.items():
        samples[name], samples[moments] = past_events(ratings, chosen=chosen[name])
    samples["like"] = (stars >= 4).astype(np.int64)
    samples["love"] = (stars == 5).astype(np.int64)
    samples["dislike"] = (stars <= 2).astype(np.int64)
    samples["rating"] = stars.astype(np.float32)
    return samples.sort_values(["timestamp", "user", "movie"], ignore_index=True)


def _add_fields(samples: pd.DataFrame, source: Source) -> pd.DataFrame:
    users = pd.DataFrame(
        {
            "user": source.users["user"],
            "age": source.users["age"],
            "gender": encode(source.users["gender"], GENDERS),
            "occupation": encode(source.users["occupation"], OCCUPATIONS),
            "zip_region": encode(source.users["zip_code"].str[0], ZIP_REGIONS),
        }
    )
    genres = source.movies["genres"].map(lambda names: encode(pd.Series(names), GENRES))
    movies = source.movies[["movie"]].assign(
        release_year=source.movies["release_year"].astype(np.float32),
        genres=genres.map(lambda ids: ids[ids > 0]),  # of an unknown genre: an empty list
    )
    joined = samples.merge(users, on="user", how="left", validate="m:1")
    joined = joined.merge(movies, on="movie", how="left", validate="m:1")
    if joined[["gender", "genres"]].isna().any(axis=None):
        raise ValueError(f"a rating names a user or a movie that the files do not list; use the wheel of {PACKAGE}")
    return joined


def _add_calendar(samples: pd.DataFrame) -> None:
    when = pd.to_datetime(samples["timestamp"], unit="s").dt
    samples["hour"] = when.hour.astype(np.int64)
    samples["day_of_week"] = when.day_of_week.astype(np.int64)


def _add_counts(samples: pd.DataFrame, ratings: pd.DataFrame) -> None:
    """Ratings before the moment: how many, and their mean, which starts from the mean of all ratings before it."""
    nobody = pd.Series(0, index=ratings.index)
    count, total = count_before(ratings, nobody)
    overall = (total + FIRST_MEAN * PRIOR_RATINGS) / (count + PRIOR_RATINGS)
    for name in ("user", "movie"):
        count, total = count_before(ratings, ratings[name])
        samples[f"{name}_ratings"] = count
        mean = (total + PRIOR_RATINGS * overall) / (count + PRIOR_RATINGS)
        samples[f"{name}_mean"] = mean.astype(np.float32)


def count_before(ratings: pd.DataFrame, group: pd.Series[Any]) -> tuple[Ints, Ints]:
    """Counts, for every row, the ratings of its group before its moment.

    Args:
        ratings: rating and timestamp, in any order.
        group: The group of each row.

    Returns:
        How many there are, and the sum of their stars.
    """
    frame = pd.DataFrame({"group": group, "timestamp": ratings["timestamp"], "stars": ratings["rating"]})
    moments = frame.groupby(["group", "timestamp"])["stars"].agg(["size", "sum"])
    before = moments.groupby(level="group").cumsum() - moments
    found = before.loc[pd.MultiIndex.from_frame(frame[["group", "timestamp"]])]
    return found["size"].to_numpy(np.int64), found["sum"].to_numpy(np.int64)


def past_events(ratings: pd.DataFrame, *, chosen: npt.NDArray[np.bool_]) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """Collects, for every row, the chosen ratings of the same user before its moment.

    Args:
        ratings: user, movie, timestamp, sorted by them in the order user, timestamp.
        chosen: The rows that count as events.

    Returns:
        Movies and moments, one array a row each: oldest first, at most the last `MAX_HISTORY`.
    """
    users, times = ratings["user"].to_numpy(np.int64), ratings["timestamp"].to_numpy(np.int64)
    row = np.arange(len(ratings))
    new_user = np.append(True, users[1:] != users[:-1])
    new_moment = new_user | np.append(True, times[1:] != times[:-1])
    events_before = np.concatenate([[0], chosen.cumsum()])
    start = events_before[np.maximum.accumulate(np.where(new_user, row, 0))]
    end = events_before[np.maximum.accumulate(np.where(new_moment, row, 0))]
    start = np.maximum(start, end - MAX_HISTORY)
    movies, moments = (
        pd.Series([events[first:last] for first, last in zip(start, end, strict=True)], dtype=object)
        for events in (ratings["movie"].to_numpy(np.int64)[chosen], times[chosen])
    )
    return movies, moments


def encode(values: pd.Series[Any], vocabulary: Sequence[str]) -> Ints:
    """Maps values to ids.

    Args:
        values: Texts.
        vocabulary: The values with an id.

    Returns:
        1 for the first value of the vocabulary and so forth, 0 for all that are not in it.
    """
    ids = {value: index + 1 for index, value in enumerate(vocabulary)}
    return np.asarray(values.map(ids).fillna(0), np.int64)


def bucket(values: Floats, edges: Sequence[float]) -> Ints:
    """Maps numbers to ids.

    Args:
        values: Numbers, NaN where not known.
        edges: Lower edges of all buckets but the first, ascending.

    Returns:
        0 for NaN, 1 below the first edge, 2 from it on, and so forth up to 1 + len(edges).
    """
    ids = np.searchsorted(np.asarray(edges, np.float64), values, side="right") + 1
    return np.where(np.isnan(values), 0, ids).astype(np.int64)


def split_by_time(samples: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Splits the rows into train, validation, and test; rows of one moment stay in one split.

    Args:
        samples: What `build_samples` returns.

    Returns:
        The rows of each split, by time.
    """
    times = samples["timestamp"].to_numpy(np.int64)
    starts = [int(np.searchsorted(times, times[int(share * len(times))])) for share in SPLITS.values()]
    ends = [*starts[1:], len(times)]
    return {
        name: samples.iloc[start:end].reset_index(drop=True)
        for name, start, end in zip(SPLITS, starts, ends, strict=True)
    }


def table_sizes() -> dict[str, int]:
    """The number of rows an embedding table needs for each id column; the histories share the one of `movie`."""
    return {
        "user": NUM_USERS + 1,
        "movie": NUM_MOVIES + 1,
        "gender": len(GENDERS) + 1,
        "occupation": len(OCCUPATIONS) + 1,
        "zip_region": len(ZIP_REGIONS) + 1,
        "genres": len(GENRES) + 1,
        "hour": 24,
        "day_of_week": 7,
        **{name: len(edges) + 2 for name, (_, edges) in BUCKETS.items()},
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
    lists = {"genres", *HISTORIES, *HISTORIES.values()}
    columns: dict[str, pa.Array] = {}
    for name in rows.columns:
        if name in lists:
            columns[name] = pa.array(rows[name], type=pa.list_(pa.int64()))
        else:
            columns[name] = pa.array(rows[name].to_numpy(), from_pandas=True)  # NaN becomes null
    return pa.table(columns)


def describe(splits: Mapping[str, pd.DataFrame]) -> str:
    """Rows, mean labels, shares of users and movies that train has not, and first and last moment of each split.

    Args:
        splits: What `split_by_time` returns.

    Returns:
        A table as text.
    """
    train = splits["train"]
    table = pd.DataFrame(
        {
            name: {
                "rows": f"{len(rows):,}",
                **{label: f"{rows[label].mean():.4f}" for label in LABELS},
                **{f"new {key}": f"{(~rows[key].isin(train[key])).mean():.4f}" for key in ("user", "movie")},
                "from": str(pd.Timestamp(rows["timestamp"].min(), unit="s"))[:16],
                "to": str(pd.Timestamp(rows["timestamp"].max(), unit="s"))[:16],
            }
            for name, rows in splits.items()
        }
    )
    return table.T.to_string()


if __name__ == "__main__":
    sys.exit(main())
