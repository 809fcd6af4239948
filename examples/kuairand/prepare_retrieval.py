"""Make files for retrieval on KuaiRand-Pure: the catalogue, and what each user was shown before.

    python examples/kuairand/prepare.py --source KuaiRand-Pure --out data/kuairand
    python examples/kuairand/prepare_retrieval.py --source KuaiRand-Pure

The splits are those of `prepare.py`, by time, with three columns more, all of what lies before the row: `last_video`,
what the user was shown last before the row's moment, in the log or in the histories; `last_shown`, its id in the table
of videos; and, in validation and test, `seen`: what the histories list as watched (the last 50), and all that was shown
in the splits before.

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
    args = parser.parse_args(argv)
    try:
        if args.out.resolve() == args.prepared.resolve():
            raise ValueError(f"--out: would overwrite the splits in {args.prepared}; give a folder of its own")
        source = prepare.read_source(args.source)
        history_end = int(source.histories["last_time_ms"].max())
        splits, vocabulary, videos = read_prepared(args.prepared, history_end=history_end)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    items = build_items(videos, lengths_of(source.videos, splits["train"]), vocabulary)
    files = {name: add_past(name, splits, source.histories, vocabulary) for name in NAMES}
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
    rows = splits[name].select(["user_id", "video_id", "time_ms"]).to_pandas()
    before = [
        splits[other].select(["user_id", "video_id", "time_ms"]).to_pandas() for other in NAMES[: NAMES.index(name)]
    ]
    watched = histories[["user_id", "watch_seq", "last_time_ms"]].explode("watch_seq").dropna()
    watched = watched.set_axis(["user_id", "video_id", "time_ms"], axis=1).astype(np.int64)
    last = last_shown(rows, pd.concat([watched, *before, rows], ignore_index=True))
    table = splits[name].append_column("last_video", pa.array(last, mask=last < 0))
    encoded = prepare.encode(pd.Series(last).where(last >= 0), vocabulary)
    table = table.append_column("last_shown", pa.array(encoded))
    if name == "train":  # there it would be most of the file
        return table
    shown = pd.concat([watched, *before]).drop_duplicates(["user_id", "video_id"])
    lists = shown.groupby("user_id")["video_id"].agg(list).reindex(rows["user_id"])
    return table.append_column(
        "seen", pa.array([s if isinstance(s, list) else [] for s in lists], pa.list_(pa.int64()))
    )


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
