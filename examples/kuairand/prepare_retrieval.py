"""Make files for retrieval on KuaiRand-Pure: the catalogue, and what each user was shown before.

    python examples/kuairand/prepare.py --source KuaiRand-Pure --out data/kuairand
    python examples/kuairand/prepare_retrieval.py --source KuaiRand-Pure

The splits are those of `prepare.py`, by time, with three columns more, all of what lies before the row: `last_video`,
what the user was shown last before the row's moment, in the log or in the histories; `last_shown`, its id in the table
of videos; and, in validation and test, `seen`: what the histories list as watched (the last 50), and all that was shown
in the splits before.

All rows are of videos that somebody was shown. `--drawn N` also writes train_drawn.parquet: the rows of train, each
followed by N more with a video drawn uniformly from those its user was not shown in train or the histories, and no
outcome.

The catalogue is all videos of the release. A length is that of the video file, or else of the video's rows in train.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from examples.kuairand import prepare
    from examples.kuairand.prepare import Ints
else:  # in a script, its own folder is on the path
    import prepare

NAMES = ("train", "validation", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes items.parquet, train.parquet, validation.parquet, and test.parquet.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where the data is missing or malformed.
    """
    parser = argparse.ArgumentParser(description="Make files for retrieval on KuaiRand-Pure.")
    parser.add_argument("--source", type=Path, required=True, help="folder of the release")
    parser.add_argument("--prepared", type=Path, default=Path("data/kuairand"), help="OUT of prepare.py [%(default)s]")
    out = Path("data/kuairand_retrieval")
    parser.add_argument("--out", type=Path, default=out, help="folder to write to [%(default)s]")
    parser.add_argument("--drawn", type=int, default=0, help="rows drawn for each of train [%(default)s: no such file]")
    parser.add_argument("--seed", type=int, default=0, help="of the draws [%(default)s]")
    args = parser.parse_args(argv)
    for option in ("drawn", "seed"):
        if getattr(args, option) < 0:
            parser.error(f"argument --{option}: {getattr(args, option)} is below 0; give 0 or more")
    try:
        if args.out.resolve() == args.prepared.resolve():
            raise ValueError(f"--out: would overwrite the splits in {args.prepared}; give a folder of its own")
        source = prepare.read_source(args.source)
        history_end = int(source.histories["last_time_ms"].max())
        splits, vocabulary, videos = read_prepared(args.prepared, history_end=history_end)
        items = build_items(videos, lengths_of(source.videos, splits["train"]), vocabulary)
        files = {name: add_past(name, splits, source.histories, vocabulary) for name in NAMES}
        if args.drawn:
            shown = pd.concat([watched_before(source.histories), _keys(files["train"])])
            files["train_drawn"] = add_drawn(files["train"], items, shown, count=args.drawn, seed=args.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    prepare.write_files({"items": items, **files}, out=args.out, vocabulary=None)
    print(prepare.describe(files))
    print(f"items: {len(items):,}")
    print(f"written to {args.out}")
    return 0


def read_prepared(folder: Path, *, history_end: int) -> tuple[dict[str, pa.Table], list[int | str], pa.Table]:
    """Reads what `prepare.py` wrote.

    Args:
        folder: Its OUT.
        history_end: Time of the last event in any history, in milliseconds.

    Returns:
        The splits by name, the videos with an id of their own, and the encoded videos.

    Raises:
        ValueError: If a file is missing, or all were made with other histories, which could reach into the rows.
    """
    names = (*(f"{name}.parquet" for name in (*NAMES, "videos")), "vocabulary.json")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder} has no {', '.join(missing)}; run prepare.py first, with --out {folder}")
    saved = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    if (found := saved["history_end_ms"]) != history_end:
        raise ValueError(
            f"--source: its histories end at time_ms {history_end}, and those of {folder} at {found}; give the folder "
            f"that {folder} was made of, or run prepare.py again"
        )
    splits = {name: pq.read_table(folder / f"{name}.parquet") for name in NAMES}
    return splits, saved["vocabulary"]["video"], pq.read_table(folder / "videos.parquet")


def lengths_of(videos: pd.DataFrame, train: pa.Table) -> pd.Series[Any]:
    """Finds the length of each video.

    Args:
        videos: Raw, with `video_duration` in milliseconds, null or 0 where not known.
        train: Encoded rows with the logarithm of theirs, null or 0 where not known.

    Returns:
        Seconds, by video_id; 0 where not known.
    """
    rows = train.select(["video_id", "log_duration"]).to_pandas()
    shown = rows[rows["log_duration"] > 0].drop_duplicates("video_id").set_index("video_id")["log_duration"]
    # To the millisecond, as the log has it: 25 s would come back as 24.999998 and fall into the bucket below.
    in_train = np.expm1(shown.astype("Float64")).round(3)
    known = videos.set_index("video_id")["video_duration"].astype("Float64") / 1000
    return known.where(known > 0).fillna(in_train.reindex(known.index)).fillna(0)


def build_items(videos: pa.Table, lengths: pd.Series[Any], vocabulary: Sequence[int | str]) -> pa.Table:
    """Makes the catalogue.

    Args:
        videos: Encoded, a row a video.
        lengths: Seconds, by video_id.
        vocabulary: The videos with an id of their own.

    Returns:
        All columns of a row that belong to its video.
    """
    ids = videos["video_id"].to_pandas()
    seconds = lengths.reindex(ids).to_numpy(np.float64)
    return (
        videos.append_column("video", pa.array(prepare.encode(ids, vocabulary)))
        .append_column(
            "duration_bucket", pa.array(prepare.bucket(np.where(seconds > 0, seconds, np.nan), prepare.SECONDS))
        )
        .append_column("log_duration", pa.array(np.log1p(seconds).astype(np.float32)))
    )


def add_past(
    name: str, splits: Mapping[str, pa.Table], histories: pd.DataFrame, vocabulary: Sequence[int | str]
) -> pa.Table:
    """Adds to the rows of a split what their users were shown before.

    Args:
        name: Of the split.
        splits: All of them.
        histories: As in `prepare.Source`.
        vocabulary: The videos with an id of their own.

    Returns:
        The rows, in their order.
    """
    rows = _keys(splits[name])
    before = [_keys(splits[other]) for other in NAMES[: NAMES.index(name)]]
    watched = watched_before(histories)
    last = last_shown(rows, pd.concat([watched, *before, rows], ignore_index=True))
    table = splits[name].append_column("last_video", pa.array(last, mask=last < 0))
    encoded = prepare.encode(pd.Series(last).where(last >= 0), vocabulary)
    table = table.append_column("last_shown", pa.array(encoded))
    if name == "train":  # there it would be most of the file
        return table
    shown = pd.concat([watched, *before]).drop_duplicates(["user_id", "video_id"])
    by_user = shown.groupby("user_id")["video_id"].agg(list).to_dict()
    seen = [by_user.get(user, []) for user in rows["user_id"]]
    return table.append_column("seen", pa.array(seen, pa.list_(pa.int64())))


def add_drawn(rows: pa.Table, items: pa.Table, shown: pd.DataFrame, *, count: int, seed: int) -> pa.Table:
    """Puts rows of videos drawn at random behind each row.

    Args:
        rows: Of train.
        items: What `build_items` returns.
        shown: user_id and video_id of what is not drawn.
        count: Rows drawn for each.
        seed: Of the draws.

    Returns:
        All rows. One that was drawn differs from its row in the video, its features, and the outcomes, which are 0.

    Raises:
        ValueError: If a row's video is not in the catalogue, or a user was shown all videos.
    """
    drawn = np.arange(len(rows) * (1 + count)) % (1 + count) > 0
    everyone = rows.take(pa.array(np.repeat(np.arange(len(rows)), 1 + count)))
    catalogue = pd.Index(items["video_id"].to_numpy())
    users = everyone["user_id"].to_numpy()
    pairs = shown[shown["video_id"].isin(catalogue)].drop_duplicates(["user_id", "video_id"])
    if (pairs.groupby("user_id").size() == len(items)).any() or not rows["video_id"].to_pandas().isin(catalogue).all():
        raise ValueError(
            "--drawn: a row's video is not in the catalogue, or a user was shown all of it; give --drawn 0"
        )
    taken = pairs["user_id"].to_numpy() * len(items) + catalogue.get_indexer(pairs["video_id"])
    places = catalogue.get_indexer(everyone["video_id"].to_numpy())
    generator, open_rows = np.random.default_rng(seed), np.flatnonzero(drawn)
    while len(open_rows):  # those that hit what was shown draw again
        places[open_rows] = generator.integers(len(items), size=len(open_rows))
        open_rows = open_rows[np.isin(users[open_rows] * len(items) + places[open_rows], taken)]
    found = items.take(pa.array(places))
    for i, name in enumerate(everyone.column_names):
        if name in found.column_names:
            everyone = everyone.set_column(i, name, found[name])
        elif name in prepare.LABELS:
            values = everyone[name].to_numpy()
            everyone = everyone.set_column(i, name, pa.array(np.where(drawn, 0, values).astype(values.dtype)))
    return everyone


def watched_before(histories: pd.DataFrame) -> pd.DataFrame:
    """Lists what the histories hold as watched, oldest first.

    Args:
        histories: As in `prepare.Source`.

    Returns:
        user_id, video_id, time_ms of the history's end.
    """
    watched = histories[["user_id", "watch_seq", "last_time_ms"]].explode("watch_seq").dropna()
    return watched.set_axis(["user_id", "video_id", "time_ms"], axis=1).astype(np.int64)


def _keys(rows: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = rows.select(["user_id", "video_id", "time_ms"]).to_pandas()
    return frame


def last_shown(rows: pd.DataFrame, events: pd.DataFrame) -> Ints:
    """Finds what each row's user was shown last before the row's moment.

    Args:
        rows: user_id and time_ms.
        events: user_id, video_id, time_ms; of one user and moment, the last in order counts as the latest.

    Returns:
        A video_id for each row, -1 where there is none.
    """
    ordered = events.sort_values("time_ms", kind="stable").drop_duplicates(["user_id", "time_ms"], keep="last")
    asked = rows[["user_id", "time_ms"]].assign(place=np.arange(len(rows))).sort_values("time_ms", kind="stable")
    found = pd.merge_asof(asked, ordered, on="time_ms", by="user_id", allow_exact_matches=False)
    return found.sort_values("place")["video_id"].fillna(-1).to_numpy(np.int64)


if __name__ == "__main__":
    sys.exit(main())
