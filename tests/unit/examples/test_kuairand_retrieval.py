"""KuaiRand's rows for retrieval: what was shown before each, the files, and the refusals."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.kuairand_source import (
    PAST,
    SCRIPT,
    SPLITS,
    START,
    arguments,
    files,
    make_source,
    prepare,
    read,
    retrieval,
    run,
    write_source,
)

Row = tuple[int, int, int]  # user, video, moment


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kuairand")
    run(folder, make_source(0))
    return folder


def make_splits(**rows: list[Row]) -> dict[str, pa.Table]:
    columns = ["user_id", "video_id", "time_ms"]
    return {name: pa.table(pd.DataFrame(rows.get(name, []), columns=columns, dtype=np.int64)) for name in SPLITS}


def make_histories(watched: dict[int, list[int]], end: int = 5) -> pd.DataFrame:
    return pd.DataFrame({"user_id": [*watched], "last_time_ms": end, "watch_seq": [*watched.values()]})


def add_past(histories: pd.DataFrame, splits: dict[str, pa.Table]) -> dict[str, dict[str, list[object]]]:
    """The new columns of each split; videos 10 to 19 have the ids 1 to 10."""
    tables = {name: retrieval.add_past(name, splits, histories, range(10, 20)) for name in SPLITS}
    return {
        name: table.select([c for c in PAST if c in table.column_names]).to_pydict() for name, table in tables.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_new_columns_equal_a_plain_scan_of_all_events(tmp_path: Path, seed: int) -> None:
    source = make_source(seed)
    tables = read(run(tmp_path, source))
    ids = json.loads((tmp_path / "prepared" / "vocabulary.json").read_text())["vocabulary"]["video"]
    histories = zip(*(source["histories"][name] for name in ("user_id", "last_time_ms", "watch_seq")), strict=True)
    events = [(user, at, video, "histories") for user, at, videos in histories for video in videos]
    for name in SPLITS:
        events += [(row.user_id, row.time_ms, row.video_id, name) for row in tables[name].itertuples()]
    for name in SPLITS:
        earlier = ["histories", *SPLITS[: SPLITS.index(name)]]
        for row in tables[name].itertuples():
            past = [(at, video) for user, at, video, _ in events if user == row.user_id and at < row.time_ms]
            last = max(past, key=lambda event: event[0])[0] if past else None
            video = [video for at, video in past if at == last][-1] if past else None
            assert row.last_video == video if past else row.last_video is pd.NA
            assert row.last_shown == (ids.index(video) + 1 if video in ids else 0)
            if name != "train":
                seen = {video for user, _, video, split in events if user == row.user_id and split in earlier}
                assert set(row.seen) == seen
                assert len(row.seen) == len(seen)
    found = pd.concat([tables[name] for name in SPLITS])
    assert found["last_video"].isna().sum() > 1
    assert (found["last_video"].notna() & (found["last_shown"] == 0)).any()
    assert found.duplicated(["user_id", "time_ms"]).sum() > 10


def test_last_video_lies_strictly_before_the_moment_in_the_histories_and_across_splits() -> None:
    histories = make_histories({1: [11, 12], 2: [13]})
    rows = {"train": [(1, 14, 6), (2, 15, 6), (1, 16, 7)], "validation": [(1, 17, 8), (2, 18, 8)], "test": [(1, 19, 9)]}
    found = add_past(histories, make_splits(**rows))
    assert {name: columns["last_video"] for name, columns in found.items()} == {
        "train": [12, 13, 14],
        "validation": [16, 15],
        "test": [17],
    }
    assert found["train"]["last_shown"] == [3, 4, 5]


def test_rows_of_one_moment_do_not_know_each_other_and_the_last_of_them_counts_after_it() -> None:
    found = add_past(make_histories({}), make_splits(train=[(1, 11, 6), (1, 14, 6), (1, 12, 6), (1, 13, 7)]))
    assert found["train"] == {"last_video": [None, None, None, 12], "last_shown": [0, 0, 0, 3]}


def test_rows_keep_their_order_whatever_their_moments() -> None:
    found = add_past(make_histories({}), make_splits(train=[(1, 13, 8), (2, 15, 7), (1, 11, 6), (1, 12, 7)]))
    assert found["train"]["last_video"] == [12, None, None, 11]


def test_users_without_a_past_have_null_and_id_0_and_nothing_seen() -> None:
    found = add_past(make_histories({1: [], 2: [13]}), make_splits(validation=[(1, 11, 6), (3, 11, 6), (2, 11, 6)]))
    assert found["validation"] == {"last_video": [None, None, 13], "last_shown": [0, 0, 4], "seen": [[], [], [13]]}


def test_a_video_without_an_id_is_named_and_has_id_0() -> None:
    found = add_past(make_histories({1: [0], 2: [99]}), make_splits(train=[(1, 11, 6), (2, 11, 6)]))
    assert found["train"] == {"last_video": [0, 99], "last_shown": [0, 0]}


def test_seen_holds_the_histories_and_earlier_splits_and_nothing_of_the_own_split() -> None:
    splits = make_splits(
        train=[(1, 11, 6), (2, 11, 6), (1, 12, 7)],
        validation=[(1, 13, 8), (1, 14, 8), (1, 15, 9), (2, 16, 9)],
        test=[(1, 17, 10), (1, 18, 11)],
    )
    found = add_past(make_histories({1: [12, 19, 12], 2: [12]}), splits)
    assert "seen" not in found["train"]
    assert found["validation"]["seen"] == [[12, 19, 11]] * 3 + [[12, 11]]
    assert found["test"]["seen"] == [[12, 19, 11, 13, 14, 15]] * 2


@pytest.mark.parametrize("name", SPLITS)
def test_a_row_and_what_follows_it_never_change_its_new_columns(made: Path, name: str) -> None:
    source = prepare.read_source(made / "source")
    splits = {split: pq.read_table(made / "prepared" / f"{split}.parquet") for split in SPLITS}
    moments = splits[name]["time_ms"].to_numpy()
    cut = moments[len(moments) // 2]
    assert (moments == cut).sum() > 1
    generator = np.random.default_rng(0)
    changed = {}
    for split, table in splits.items():
        videos, late = table["video_id"].to_numpy().copy(), table["time_ms"].to_numpy() >= cut
        videos[late] = 100 + generator.permutation(videos[late])
        changed[split] = table.set_column(table.column_names.index("video_id"), "video_id", pa.array(videos))
    before, after = (
        {split: retrieval.add_past(split, tables, source.histories, range(200)) for split in SPLITS}
        for tables in (splits, changed)
    )
    for split in SPLITS:
        columns = [column for column in PAST if column in before[split].column_names]
        early = before[split]["time_ms"].to_numpy() <= cut
        assert before[split].select(columns).filter(early).equals(after[split].select(columns).filter(early))
    assert not before[name].select(PAST[:2]).equals(after[name].select(PAST[:2]))


def test_train_and_the_catalogue_know_nothing_of_the_other_splits(tmp_path: Path, made: Path) -> None:
    source = make_source(0)
    late = source["log"]["time_ms"] > read(made / "out")["train"]["time_ms"].max()
    for name in ("video_id", "duration_ms", "is_click", "play_time_ms"):
        source["log"].loc[late, name] = source["log"].loc[late, name].sample(frac=1, random_state=1).to_numpy()
    out = run(tmp_path, source)
    same = {name: (made / "out" / name).read_bytes() == (out / name).read_bytes() for name in files(out)}
    assert same == {"items.parquet": True, "test.parquet": False, "train.parquet": True, "validation.parquet": False}


def test_all_other_columns_and_the_rows_are_those_of_the_prepared_files(made: Path) -> None:
    for name in SPLITS:
        prepared, table = (pq.read_table(made / folder / f"{name}.parquet") for folder in ("prepared", "out"))
        assert table.column_names == [*prepared.column_names, *PAST[: 2 if name == "train" else 3]]
        assert table.select(prepared.column_names).equals(prepared)
        assert [table.schema.field(c).type for c in PAST[:2]] == [pa.int64()] * 2
        assert name == "train" or table.schema.field("seen").type == pa.list_(pa.int64())
        assert [table[c].null_count for c in table.column_names if c != "last_video"] == [0] * (table.num_columns - 1)


def test_the_same_complete_files_are_written_again(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (made / "out" / name).read_bytes() for name in files(made / "out")}
    assert retrieval.main(arguments(made)) == 0
    assert "items: 36" in capsys.readouterr().out
    assert sorted(before) == ["items.parquet", "test.parquet", "train.parquet", "validation.parquet"]
    assert {name: (made / "out" / name).read_bytes() for name in files(made / "out")} == before


def test_missing_prepared_files_are_named_and_nothing_is_written(
    tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--source", str(made / "source"), "--out", str(tmp_path / "out"), "--prepared", str(tmp_path / "prepared")]
    assert retrieval.main(given) == 1
    names = "train.parquet, validation.parquet, test.parquet, videos.parquet, vocabulary.json"
    assert f"error: {tmp_path / 'prepared'} has no {names}; run prepare.py first" in capsys.readouterr().err
    shutil.copytree(made / "prepared", tmp_path / "prepared")
    for name in ("videos.parquet", "vocabulary.json"):
        (tmp_path / "prepared" / name).unlink()
    assert retrieval.main(given) == 1
    assert f"{tmp_path / 'prepared'} has no videos.parquet, vocabulary.json; run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_source_whose_histories_are_not_those_of_the_prepared_files_is_refused(
    tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_source(0)
    source["histories"]["last_time_ms"] += 1000  # reaches into the rows
    write_source(tmp_path / "source", source)
    given = [*arguments(tmp_path), "--prepared", str(made / "prepared")]
    assert retrieval.main(given) == 1
    expected = f"histories end at time_ms {START + 1000}, and those of {made / 'prepared'} at {START};"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_prepared_files_are_not_overwritten(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "prepared" / "train.parquet").read_bytes()
    assert retrieval.main([*arguments(made), "--out", str(made / "out" / ".." / "prepared")]) == 1
    assert f"--out: would overwrite the splits in {made / 'prepared'}" in capsys.readouterr().err
    assert (made / "prepared" / "train.parquet").read_bytes() == before


def test_the_script_finds_its_neighbour_and_names_a_missing_log(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--source", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: no log in {tmp_path}" in done.stderr
    assert not (tmp_path / "out").exists()
