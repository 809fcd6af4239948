"""KuaiRand's samples: both layouts, histories, vocabularies, the split, later logs, and the refusals."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

HISTORY_END = 1_650_000_000_000  # in milliseconds
OUTCOMES = {
    "play_time_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
}
RANDOM_LOG = "log_random_4_22_to_5_08_pure.csv"
PREPARED = ["test", "train", "users", "validation", "videos"]


def load_script() -> ModuleType:
    path = Path(__file__).parents[3] / "examples" / "kuairand" / "prepare.py"
    spec = importlib.util.spec_from_file_location("kuairand_prepare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script()


def make_log(*, start: int, users: list[int], videos: list[int]) -> pd.DataFrame:
    """An impression a second; every second one is a long view, every third one a like."""
    rows = np.arange(len(users))
    zeros = {name: np.zeros(len(rows), np.int64) for name in sorted(OUTCOMES - {"play_time_ms"})}
    columns = {
        "user_id": users,
        "video_id": videos,
        "time_ms": start + 1000 * rows,
        "is_click": (rows % 2 == 0).astype(np.int64),
        "is_like": (rows % 3 == 0).astype(np.int64),
        "long_view": (rows % 2 == 0).astype(np.int64),
        "play_time_ms": 50_000 * (rows % 4),
        "duration_ms": 10_000 + 0 * rows,
        "tab": rows % 2,
    }
    return pd.DataFrame(columns | zeros)


def make_users(count: int) -> pd.DataFrame:
    users = pd.DataFrame({"user_id": np.arange(count)})
    for name in prepare.USER_CATEGORIES:
        users[name] = np.where(users["user_id"] % 2 == 0, "a", "b") if "range" in name else users["user_id"] % 2
    users["onehot_feat4"] = [np.nan, *([3.0] * (count - 1))]
    return users.assign(**dict.fromkeys(prepare.USER_NUMBERS, 9))


def make_videos(count: int) -> pd.DataFrame:
    ids = np.arange(count)
    return pd.DataFrame(
        {
            "video_id": ids,
            "author_id": 100 + ids // 2,
            "music_id": 9_000_000_000 + ids,
            "music_type": [np.nan, *([9.0] * (count - 1))],
            "video_type": "NORMAL",
            "upload_type": "Web",
            "tag": ["20,43", None, *(["39"] * (count - 2))],
            "video_duration": 10_000.0,
        }
    )


FIRST = make_log(start=HISTORY_END - 5000, users=[0, 0, 0, 1, 1, 0], videos=[0, 0, 1, 2, 3, 4])
SECOND = make_log(start=HISTORY_END + 1000, users=[0, 1] * 9 + [2, 3], videos=[0, 1, 2, 3] * 4 + [0, 1, 5, 6])
HISTORIES = pd.DataFrame(
    {
        "user_id": [0, 1],
        "history_len": [4, 2],
        "last_time_ms": [HISTORY_END, HISTORY_END - 1000],
        "watch_seq": [[0, 0, 1, 4], [2, 3]],
        "like_seq": [[0], [2]],
        "long_watch_seq": [[0, 1], [3]],
    }
)


def write_csv_release(folder: Path) -> Path:
    data = folder / "data"
    data.mkdir(parents=True)
    FIRST.to_csv(data / prepare.CSV_HISTORY_LOG, index=False)
    SECOND.to_csv(data / prepare.CSV_LOG, index=False)
    make_users(4).to_csv(data / "user_features_pure.csv", index=False)
    make_videos(7).to_csv(data / "video_features_basic_pure.csv", index=False)
    return folder


def write_parquet_slice(folder: Path, *, log: pd.DataFrame = SECOND) -> Path:
    folder.mkdir(parents=True)
    log.to_parquet(folder / "log_standard_0425_to_0504_pure.parquet")
    make_users(4).to_parquet(folder / "user_features_pure.parquet")
    make_videos(7).to_parquet(folder / "video_features_basic_pure.parquet")
    HISTORIES.to_parquet(folder / "user_histories_to_0424.parquet")
    return folder


LOG_LAYOUT = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
VIDEO_LAYOUT = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)


def write_whole_release(folder: Path) -> Path:
    """All six files with all their columns; the first 3 of 100 rows of the second log are not later than the first."""
    rng = np.random.default_rng(0)
    data = folder / "data"
    data.mkdir(parents=True)
    logs = {
        prepare.CSV_HISTORY_LOG: (HISTORY_END - 99_000, 100, 0),
        prepare.CSV_LOG: (HISTORY_END - 2000, 100, 0),
        RANDOM_LOG: (HISTORY_END + 500, 40, 1),
    }
    for name, (start, count, is_rand) in logs.items():
        log = make_log(start=start, users=rng.integers(0, 4, count).tolist(), videos=rng.integers(0, 7, count).tolist())
        log = log.assign(date=20220421, hourmin=1300, is_profile_enter=0, is_rand=is_rand)
        log.sort_values(["user_id", "time_ms"])[LOG_LAYOUT.split(",")].to_csv(data / name, index=False)
    make_users(4).to_csv(data / "user_features_pure.csv", index=False)
    make_videos(7).reindex(columns=VIDEO_LAYOUT.split(",")).to_csv(data / "video_features_basic_pure.csv", index=False)
    make_videos(7)[["video_id"]].assign(show_cnt=1.0).to_csv(data / "video_features_statistic_pure.csv", index=False)
    return folder


def run(*arguments: str | Path) -> int:
    return int(prepare.main([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kuairand")
    source = write_parquet_slice(folder / "source")
    assert run("--source", source, "--out", folder / "out", "--min-count", "1") == 0
    return folder / "out"


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


def read_vocabulary(folder: Path) -> dict[str, Any]:
    vocabulary = json.loads((folder / "vocabulary.json").read_text())["vocabulary"]
    assert isinstance(vocabulary, dict)
    return vocabulary


def test_both_layouts_give_the_same_files(tmp_path: Path, prepared: Path) -> None:
    assert run("--source", write_csv_release(tmp_path / "csv"), "--out", tmp_path / "out", "--min-count", "1") == 0
    assert sorted(path.stem for path in prepared.glob("*.parquet")) == PREPARED
    for name in PREPARED:
        assert pq.read_table(tmp_path / "out" / f"{name}.parquet").equals(pq.read_table(prepared / f"{name}.parquet"))
    assert (tmp_path / "out" / "vocabulary.json").read_text() == (prepared / "vocabulary.json").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kuairand_release")
    write_whole_release(folder / "KuaiRand-Pure")
    assert run("--source", folder / "KuaiRand-Pure", "--out", folder / "out", "--min-count", "1") == 0
    return folder


def test_histories_of_the_release_hold_earlier_events_of_the_user_only(whole: Path) -> None:
    raw = whole / "KuaiRand-Pure" / "data"
    earlier = pd.read_csv(raw / prepare.CSV_HISTORY_LOG).sort_values("time_ms")
    ids = {video: index + 1 for index, video in enumerate(read_vocabulary(whole / "out")["video"])}
    samples = pd.concat([read(whole / "out", name) for name in ("train", "validation", "test")])
    later = pd.read_csv(raw / prepare.CSV_LOG).query("time_ms > @HISTORY_END")
    assert len(later) == 97
    assert sorted(samples["time_ms"]) == sorted(later["time_ms"])
    for row in samples.itertuples():
        events = earlier[(earlier["user_id"] == row.user_id) & (earlier["time_ms"] < row.time_ms)]
        assert row.watched.tolist() == events["video_id"].map(ids).tolist()
        assert row.liked.tolist() == events[events["is_like"] == 1]["video_id"].map(ids).tolist()
        assert row.long_watched.tolist() == events[events["long_view"] == 1]["video_id"].map(ids).tolist()


def test_neither_random_log_nor_statistics_are_read(tmp_path: Path, whole: Path) -> None:
    source = write_whole_release(tmp_path / "KuaiRand-Pure")
    for name in (RANDOM_LOG, "video_features_statistic_pure.csv"):
        (source / "data" / name).write_text("not,what\nit,was\n")
    assert run("--source", source / "data", "--out", tmp_path / "out", "--min-count", "1") == 0
    for name in PREPARED:
        before = whole / "out" / f"{name}.parquet"
        assert (tmp_path / "out" / f"{name}.parquet").read_bytes() == before.read_bytes()


def test_the_random_log_is_converted_on_request(tmp_path: Path, whole: Path) -> None:
    log = whole / "KuaiRand-Pure" / "data" / RANDOM_LOG
    assert run("--log", log, "--out", whole / "out") == 0
    random = read(whole / "out", log.stem)
    (whole / "out" / f"{log.stem}.parquet").unlink()
    assert len(random) == 40
    assert list(random.columns) == list(read(whole / "out", "test").columns)
    assert random["video_id"].tolist() == pd.read_csv(log)["video_id"].tolist()
    assert (random["video"] > 0).all()


def test_the_yaml_has_room_for_what_prepare_fixes(whole: Path) -> None:
    config = yaml.safe_load(Path(prepare.__file__).with_name("htlnet.yaml").read_text(encoding="utf-8"))
    rows = {table["name"]: table["rows"] for table in config["features"]["tables"]}
    sizes = prepare.table_sizes(read_vocabulary(whole / "out"))
    used = {feature["name"]: feature["table"] for feature in config["features"]["sparse"]}
    assert all(rows[table] >= sizes[name] for name, table in used.items() if name in sizes)
    columns = set(read(whole / "out", "train").columns) - set(prepare.LABELS)
    assert {*used, *(feature["name"] for feature in config["features"]["dense"])} <= columns


def test_histories_of_a_log_are_the_last_50_oldest_first() -> None:
    log = make_log(start=0, users=[7] * 120, videos=list(range(120))).sample(frac=1, random_state=0)
    row = prepare.build_histories(log).iloc[0]
    assert row["watch_seq"] == list(range(70, 120))
    assert row["long_watch_seq"] == list(range(20, 120, 2))
    assert row["like_seq"] == list(range(0, 120, 3))
    assert (row["history_len"], row["last_time_ms"]) == (120, 119_000)


def test_split_is_by_time_and_keeps_a_moment_together() -> None:
    log = make_log(start=0, users=[0] * 20, videos=[0] * 20)
    log.loc[14:17, "time_ms"] = 14_000  # the cut at 80 % falls into these
    splits = prepare.split_by_time(log.sample(frac=1, random_state=0))
    assert [len(rows) for rows in splits.values()] == [14, 4, 2]
    assert splits["train"]["time_ms"].max() < splits["validation"]["time_ms"].min() == 14_000
    assert splits["validation"]["time_ms"].max() < splits["test"]["time_ms"].min()


def test_vocabularies_come_from_train_and_histories_only(prepared: Path) -> None:
    vocabulary = read_vocabulary(prepared)
    assert vocabulary["user"] == [0, 1]
    assert vocabulary["video"] == [0, 1, 2, 3, 4]  # 4 is in a history only
    assert vocabulary["author"] == [100, 101]
    assert vocabulary["tag"] == ["20", "39", "43"]
    test = read(prepared, "test")
    assert test["user_id"].tolist() == [2, 3]
    assert test[["user", "video", "author"]].to_numpy().tolist() == [[0, 0, 0], [0, 0, 0]]


def test_rare_values_share_id_0() -> None:
    values = pd.Series([5, 5, 7, None], dtype="Float64")
    vocabulary = prepare._frequent_values(values, min_count=2)
    assert vocabulary == [5]
    assert prepare.encode(values, vocabulary).tolist() == [1, 1, 0, 0]


def test_row_of_a_known_user_and_video(prepared: Path) -> None:
    row = read(prepared, "train").iloc[0]
    assert row[["user_id", "video_id", "user", "video"]].tolist() == [0, 0, 1, 1]
    assert {name: row[name].tolist() for name in prepare.HISTORIES} == {
        "watched": [1, 1, 2, 5],
        "liked": [1],
        "long_watched": [1, 2],
    }
    assert row["tag"].tolist() == [1, 3]
    assert row["log_video_popularity"] == pytest.approx(np.log(3))
    assert row["video_long_watch_rate"] == pytest.approx((1 + 20 * 0.5) / (2 + 20))  # 3 of 6 views were long
    assert row["author_long_watch_rate"] == pytest.approx((2 + 20 * 0.5) / (3 + 20))
    assert (row["onehot_feat4"], row["music_type"]) == (0, 0)
    assert (row["hour"], row["day_of_week"]) == (13, 4)  # Friday, 15 April 2022, 13:20 in Beijing


def test_play_time_is_capped_in_seconds(prepared: Path) -> None:
    assert read(prepared, "train")["play_time_s"].tolist()[:4] == [0, 50, 100, 120]


def test_play_ratio_is_the_share_of_the_video_that_was_played(tmp_path: Path, prepared: Path) -> None:
    log = make_log(start=HISTORY_END + 10**9, users=[0] * 8, videos=[0] * 8).astype({"duration_ms": "float64"})
    log["play_time_ms"] = [0, 2500, 10_000, 15_000, 300_000, 5000, 5000, 1]
    log["duration_ms"] = [10_000, 10_000, 10_000, 10_000, 200_000, 0, None, 2_000_000]
    log.to_parquet(tmp_path / "ratios.parquet")
    assert run("--log", tmp_path / "ratios.parquet", "--out", prepared) == 0
    rows = read(prepared, "ratios")
    (prepared / "ratios.parquet").unlink()
    assert rows["play_ratio"].dtype == np.float32
    assert rows["play_ratio"].tolist() == [0, 0.25, 1, 1, 1, 0, 0, np.float32(5e-7)]  # of 0 or no length: not known
    assert rows["played"].dtype == np.int64
    assert rows["played"].tolist() == [0, 1, 1, 1, 1, 0, 0, 1]
    assert rows["play_time_s"].tolist()[4] == 120  # the cap on seconds is none on the share


def test_every_split_has_all_labels(prepared: Path) -> None:
    for name in ("train", "validation", "test"):
        rows = read(prepared, name)
        assert list(rows.columns)[-len(prepare.LABELS) :] == list(prepare.LABELS)
        assert rows["played"].tolist() == (rows["play_time_s"] > 0).astype(int).tolist()  # all lengths are known here


def test_no_outcome_but_the_labels_is_carried_over(prepared: Path) -> None:
    for name in PREPARED:
        assert not OUTCOMES & set(pq.read_schema(prepared / f"{name}.parquet").names)


def test_features_do_not_depend_on_the_outcomes_of_the_log(tmp_path: Path, prepared: Path) -> None:
    flipped = SECOND.assign(is_click=1, long_view=1, is_like=1, play_time_ms=1)
    source = write_parquet_slice(tmp_path / "source", log=flipped)
    assert run("--source", source, "--out", tmp_path / "out", "--min-count", "1") == 0
    for name in ("train", "validation", "test"):
        before, after = read(prepared, name), read(tmp_path / "out", name)
        labels = list(prepare.LABELS)
        pd.testing.assert_frame_equal(before.drop(columns=labels), after.drop(columns=labels))


def test_rows_not_later_than_the_histories_are_left_out() -> None:
    log = make_log(start=HISTORY_END - 1000, users=[0, 0, 0], videos=[0, 0, 0])
    assert prepare.drop_before(log, history_end=HISTORY_END)["time_ms"].tolist() == [HISTORY_END + 1000]
    with pytest.raises(ValueError, match="none of the log's 2 rows is later than the histories"):
        prepare.drop_before(log[:2], history_end=HISTORY_END)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_further_log_is_converted_as_the_samples_were(tmp_path: Path, prepared: Path, suffix: str) -> None:
    log = tmp_path / f"later{suffix}"
    if suffix == ".csv":
        SECOND.to_csv(log, index=False)
    else:
        SECOND.to_parquet(log)
    assert run("--log", log, "--out", prepared) == 0
    expected = pd.concat([read(prepared, name) for name in ("train", "validation", "test")], ignore_index=True)
    pd.testing.assert_frame_equal(read(prepared, "later"), expected)
    (prepared / "later.parquet").unlink()


def test_unseen_users_and_videos_get_id_0_and_empty_lists(tmp_path: Path, prepared: Path) -> None:
    make_log(start=HISTORY_END + 10**9, users=[99], videos=[98]).to_parquet(tmp_path / "new.parquet")
    assert run("--log", tmp_path / "new.parquet", "--out", prepared) == 0
    row = read(prepared, "new").iloc[0]
    (prepared / "new.parquet").unlink()
    assert row[["user_id", "video_id"]].tolist() == [99, 98]
    ids = ["user", "video", "author", *prepare.USER_CATEGORIES, "video_popularity_bucket", "user_history_bucket"]
    assert not row[ids].any()
    assert [len(row[name]) for name in ("tag", *prepare.HISTORIES)] == [0, 0, 0, 0]


def test_ids_fit_the_stated_table_sizes(prepared: Path) -> None:
    sizes = prepare.table_sizes(read_vocabulary(prepared))
    for name in ("train", "validation", "test"):
        rows = read(prepared, name)
        for column, size in sizes.items():
            assert rows[column].explode().max() < size
    assert prepare.bucket([np.nan, 0.0, 5.0, 1e9], (5.0,)).tolist() == [0, 1, 2, 2]


def test_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--source", tmp_path, "--out", tmp_path / "out") == 1
    assert f"looked for log_standard_*.parquet (Parquet slice) and {prepare.CSV_LOG}" in capsys.readouterr().err
    source = write_csv_release(tmp_path / "csv")
    (source / "data" / prepare.CSV_HISTORY_LOG).unlink()
    assert run("--source", source, "--out", tmp_path / "out") == 1
    assert prepare.CSV_HISTORY_LOG in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_columns_are_named(tmp_path: Path) -> None:
    source = write_parquet_slice(tmp_path / "source", log=SECOND.drop(columns=["tab", "long_view"]))
    with pytest.raises(ValueError, match=r"log_standard_0425_to_0504_pure\.parquet: no column tab, long_view; found"):
        prepare.read_source(source)


def test_log_needs_a_prepared_folder_and_a_name_of_its_own(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--log", tmp_path / "x.csv", "--out", tmp_path) == 1
    assert "has no vocabulary.json, users.parquet, videos.parquet: prepare it first" in capsys.readouterr().err
    assert run("--log", tmp_path / "train.csv", "--out", prepared) == 1
    assert "would overwrite train.parquet" in capsys.readouterr().err
    assert run("--out", prepared) == 1
    assert "nothing to do" in capsys.readouterr().err
