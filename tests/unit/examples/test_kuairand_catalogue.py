"""KuaiRand's catalogue of videos: its columns, its lengths, and the YAML that reads it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.kuairand_source import SCRIPT, SPLITS, make_source, prepare, read, retrieval, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kuairand")
    run(folder, make_source(0))
    return folder


def test_the_catalogue_has_all_videos_with_the_columns_and_the_values_of_the_rows(made: Path) -> None:
    tables = read(made / "out")
    items = tables["items"].set_index("video_id")
    assert items.index.tolist() == list(range(36))
    assert set(items.columns) == item_features()
    assert (items["duration_bucket"] > 0).tolist() == [False] * 5 + [True] * 31
    for name in SPLITS:
        rows = tables[name].set_index("video_id")[items.columns]
        expected = items.loc[rows.index]
        assert [ids.tolist() for ids in rows.pop("tag")] == [ids.tolist() for ids in expected.pop("tag")]
        pd.testing.assert_frame_equal(rows, expected)


def item_features() -> set[str]:
    features = config()["features"]
    return {f["name"] for kind in ("sparse", "sequences", "dense") for f in features[kind] if f["side"] == "item"}


def config() -> dict[str, Any]:
    loaded = yaml.safe_load(SCRIPT.with_name("dmmp.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_lengths_come_from_the_video_file_else_from_train_and_else_are_0() -> None:
    lengths = {1: 5000, 2: None, 3: None, 4: 0, 5: None, 6: 9500}
    videos = pd.DataFrame({"video_id": [*lengths], "video_duration": pd.Series(lengths.values(), dtype="Float64")})
    shown = {"video_id": [1, 2, 2, 4, 5, 5, 5, 9], "seconds": [8, 25, 30, 7.25, np.nan, 0, 40, 3]}
    train = pa.table({"video_id": shown["video_id"], "log_duration": np.log1p(shown["seconds"]).astype(np.float32)})
    expected = {1: 5, 2: 25, 3: 0, 4: 7.25, 5: 40, 6: 9.5}
    assert retrieval.lengths_of(videos, train).to_dict() == expected
    items = retrieval.build_items(pa.table({"video_id": [6, 3, 1]}), retrieval.lengths_of(videos, train), [1, 6])
    assert items.select(["video_id", "video", "duration_bucket"]).to_pydict() == {
        "video_id": [6, 3, 1],
        "video": [2, 0, 1],
        "duration_bucket": [4, 0, 2],
    }
    assert items["log_duration"].to_numpy().tolist() == np.log1p(np.float32([9.5, 0, 5])).tolist()


def test_a_length_that_only_a_later_split_knows_is_not_in_the_catalogue(tmp_path: Path) -> None:
    source = make_source(0)
    source["videos"].loc[source["videos"]["video_id"] == 34, "video_duration"] = np.nan
    late = source["log"]["time_ms"].nlargest(60).index  # in validation and test
    source["log"].loc[late, ["video_id", "duration_ms"]] = [34, 20_000]
    tables = read(run(tmp_path, source))
    assert 34 not in set(tables["train"]["video_id"])
    for name in ("validation", "test"):
        assert 9 in set(tables[name].query("video_id == 34")["duration_bucket"])
    item = tables["items"].query("video_id == 34").iloc[0]
    assert (item["duration_bucket"], item["log_duration"]) == (0, 0)


@pytest.mark.parametrize("seconds", prepare.SECONDS)
def test_a_length_of_train_on_the_edge_of_a_bucket_stays_in_the_rows_bucket(seconds: int) -> None:
    videos = pd.DataFrame({"video_id": [1], "video_duration": [np.nan]})
    train = pa.table({"video_id": [1], "log_duration": np.log1p(np.array([float(seconds)])).astype(np.float32)})
    items = retrieval.build_items(pa.table({"video_id": [1]}), retrieval.lengths_of(videos, train), [])
    assert items["duration_bucket"].to_numpy().tolist() == prepare.bucket([seconds], prepare.SECONDS).tolist()
    assert items["log_duration"].equals(train["log_duration"])


def test_the_yaml_has_room_for_what_is_made_and_reads_columns_that_are_there(made: Path) -> None:
    loaded = config()
    features, data = loaded["features"], loaded["data"]
    rows = {table["name"]: table["rows"] for table in features["tables"]}
    sizes = prepare.table_sizes(json.loads((made / "prepared" / "vocabulary.json").read_text())["vocabulary"])
    assert all(rows[f["table"]] >= sizes[f["name"]] for f in features["sparse"] if f["name"] in sizes)
    used = {f["name"] for kind in ("sparse", "sequences", "dense") for f in features[kind]}
    named = {*used, *data["keys"], data["group"], *data["outcomes"], *(task["label"] for task in loaded["tasks"])}
    assert named <= set(pq.read_schema(made / "out" / "train.parquet").names)
    asked = {loaded["retrieval"][name] for name in ("query", "item", "seen")}
    assert asked <= set(pq.read_schema(made / "out" / "test.parquet").names)
    assert {f["table"] for f in features["sparse"] if f["name"] in {"video", "last_shown"}} == {"video"}


def test_rows_drawn_are_of_videos_not_shown_and_have_no_outcome(tmp_path: Path) -> None:
    source = make_source(3)
    run(tmp_path, source, "--drawn", "3")
    tables = read(tmp_path / "out")
    whole = tables["train_drawn"]
    assert list(whole.columns) == list(tables["train"].columns)
    rows = whole.iloc[::4].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, tables["train"])
    drawn = whole[np.arange(len(whole)) % 4 > 0]
    assert not drawn[list(prepare.LABELS)].any().any()
    shown = set(zip(rows["user_id"], rows["video_id"], strict=True))
    shown |= {(u, v) for u, seq in source["histories"][["user_id", "watch_seq"]].to_numpy() for v in seq}
    assert not shown & set(zip(drawn["user_id"], drawn["video_id"], strict=True))
    assert set(drawn["video_id"]) >= set(range(30, 36))  # those that nobody was shown
    kept = ["user_id", "time_ms", "tab", "last_video", "watched", "user_long_watch_rate"]
    pd.testing.assert_frame_equal(
        drawn[kept].reset_index(drop=True), rows.loc[rows.index.repeat(3), kept].reset_index(drop=True)
    )
    items = tables["items"].set_index("video_id").drop(columns="tag")
    pd.testing.assert_frame_equal(drawn.set_index("video_id")[items.columns], items.loc[drawn["video_id"]])
