"""What tests of KuaiRand's files for retrieval share: made-up raw files, and both scripts run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.scripts import load_script

SCRIPT = Path(__file__).parents[1] / "examples" / "kuairand" / "prepare_retrieval.py"
SPLITS = ["train", "validation", "test"]
PAST = ["last_video", "last_shown", "seen"]
START = 1_650_000_000_000  # in milliseconds, the end of the histories
Tables = dict[str, pd.DataFrame]


retrieval, prepare = load_script(SCRIPT)


def make_source(seed: int, rows: int = 400) -> Tables:
    """8 users, of whom two have no history; 36 videos, of which six are never shown; and many rows that share a moment.

    Lengths are whole seconds, edges of buckets among them. Of the first 10 videos the file has none, nor has the log
    of the first 5.
    """
    generator = np.random.default_rng(seed)
    duration = 1000.0 * np.resize([*prepare.SECONDS, 4, 77, 2000], 36)
    videos = generator.integers(0, 30, rows)
    log = pd.DataFrame({name: generator.integers(0, 2, rows) for name in prepare.LOG_COLUMNS})
    log = log.assign(user_id=generator.integers(0, 8, rows), video_id=videos)
    log["time_ms"] = START + 1 + generator.integers(0, rows // 5, rows)
    log["duration_ms"] = np.where(videos < 5, 0.0, duration[videos])
    users = pd.DataFrame({"user_id": range(8), **dict.fromkeys((*prepare.USER_CATEGORIES, *prepare.USER_NUMBERS), 1)})
    ids = np.arange(36)
    catalogue = pd.DataFrame({"video_id": ids, **dict.fromkeys(prepare.VIDEO_CATEGORIES.values(), ids % 3)})
    catalogue = catalogue.assign(tag=np.where(ids % 2, "7", "8,9"), video_duration=np.where(ids < 10, np.nan, duration))
    watched = [generator.integers(0, 30, count).tolist() for count in (0, 1, 2, 5, 20, 50)]
    histories = {"user_id": range(6), "history_len": 50, "last_time_ms": START - generator.permutation(6) // 2}
    histories |= {"watch_seq": watched, "like_seq": [[]] * 6, "long_watch_seq": [seq[::2] for seq in watched]}
    frames = {"users": users, "videos": catalogue.sample(frac=1, random_state=seed), "log": log}
    return frames | {"histories": pd.DataFrame(histories)}


def write_source(folder: Path, source: Tables) -> Path:
    names = {"users": prepare.USERS, "videos": prepare.VIDEOS}
    names |= {"log": "log_standard_all", "histories": "user_histories_to_all"}
    folder.mkdir()
    for name, frame in source.items():
        frame.to_parquet(folder / f"{names[name]}.parquet")
    return folder


def run(folder: Path, source: Tables, *more: str) -> Path:
    """Both scripts, from the raw files on; videos of fewer than 10 rows have no id. Returns OUT."""
    folder.mkdir(exist_ok=True)
    raw, out = write_source(folder / "source", source), folder / "prepared"
    assert prepare.main(["--source", str(raw), "--out", str(out), "--min-count", "10"]) == 0
    assert retrieval.main([*arguments(folder), *more]) == 0
    return folder / "out"


def arguments(folder: Path) -> list[str]:
    names = {"source": "source", "prepared": "prepared", "out": "out"}
    return [word for option, name in names.items() for word in (f"--{option}", str(folder / name))]


def read(folder: Path) -> Tables:
    return {path.stem: pd.read_parquet(path, dtype_backend="numpy_nullable") for path in folder.glob("*.parquet")}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
