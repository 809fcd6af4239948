"""MovieLens's samples: what a row may know, ties of moments, the split, the files, and the refusals."""

import hashlib
import importlib.util
import io
import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

LABELS = ["like", "love", "dislike", "rating"]
LISTS = ["rated", "rated_at", "liked", "liked_at", "disliked", "disliked_at"]
INTS = ["user", "movie", "timestamp", "age", "user_ratings", "movie_ratings", "hour", "day_of_week", "like"]
FLOATS = ["release_year", "user_mean", "movie_mean", "log_user_ratings", "log_movie_ratings", "rating"]
EXAMPLE = Path(__file__).parents[3] / "examples" / "movielens"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"movielens_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script("prepare")


def make_samples(*ratings: tuple[int, int, int, int]) -> pd.DataFrame:
    """Samples of (user, movie, stars, moment), in any order; by moment, user, and movie."""
    columns = ["user", "movie", "rating", "timestamp"]
    log = pd.DataFrame(ratings, columns=columns)
    users, movies = sorted(set(log["user"])), sorted(set(log["movie"]))
    source = prepare.Source(
        ratings=log,
        users=pd.DataFrame({"user": users, "age": 30, "gender": "F", "occupation": "writer", "zip_code": "01234"}),
        movies=pd.DataFrame({"movie": movies, "release_year": 1995.0, "genres": [["Drama", "War"]] * len(movies)}),
    )
    return prepare.build_samples(source)


def make_log(size: int) -> list[tuple[int, int, int, int]]:
    """Ratings of 6 users, of which many share a second."""
    generator = np.random.default_rng(0)
    pairs = generator.permutation([(user, movie) for user in range(1, 7) for movie in range(1, 61)])[:size]
    stars, times = generator.integers(1, 6, size), np.sort(generator.integers(0, size // 3, size))
    return [(int(pairs[i][0]), int(pairs[i][1]), int(stars[i]), int(times[i])) for i in range(size)]


def make_wheel(**changed: str) -> bytes:
    texts = {
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"{1 + i % 2}\t{1 + i // 2}\t{1 + i % 5}\t{1000 + i}\n" for i in range(20)),
        "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        '1\t24\tM\tnone\t85711\n2\t53\tF\t"other\tT8H1N\n',
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "1\t\"Story\t1995\tAnimation Children's Comedy\n2\tnull\tunkonwn\tunknown\n"
        + "".join(f"{i}\tTitle {i}\t1939\tFilm-Noir\n" for i in range(3, 11)),
    } | changed
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in texts.items():
            archive.writestr(prepare.MEMBER.format(name), text)
    return buffer.getvalue()


def test_labels_are_thresholds_of_the_rating() -> None:
    samples = make_samples(*[(1, stars, stars, stars) for stars in range(1, 6)])
    assert samples[LABELS].to_numpy().tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 2],
        [0, 0, 0, 3],
        [1, 0, 0, 4],
        [1, 1, 0, 5],
    ]


def test_histories_hold_earlier_ratings_of_the_same_user_oldest_first() -> None:
    samples = make_samples((1, 10, 5, 100), (2, 11, 5, 150), (1, 12, 1, 200), (1, 13, 3, 300), (1, 14, 4, 400))
    last = samples.iloc[-1]
    assert [last[name].tolist() for name in LISTS] == [[10, 12, 13], [100, 200, 300], [10], [100], [12], [200]]
    assert [len(samples.loc[samples["user"] == 2, name].iloc[0]) for name in LISTS] == [0] * 6


def test_ratings_of_the_same_moment_do_not_know_each_other() -> None:
    samples = make_samples((1, 9, 2, 100), (1, 8, 4, 200), (1, 3, 5, 200), (1, 5, 1, 200), (1, 7, 3, 201))
    together = samples[samples["timestamp"] == 200]
    assert together["movie"].tolist() == [3, 5, 8]
    for name, expected in zip(LISTS, [[9], [100], [], [], [9], [100]], strict=True):
        assert [row.tolist() for row in together[name]] == [expected] * 3
    assert together["user_ratings"].tolist() == [1, 1, 1]
    after = samples.iloc[-1]  # events of one moment: by movie
    assert [after[name].tolist() for name in LISTS[:2]] == [[9, 3, 5, 8], [100, 200, 200, 200]]
    assert [after[name].tolist() for name in LISTS[2:]] == [[3, 8], [200, 200], [9, 5], [100, 200]]


def test_counts_and_means_are_those_before_the_moment() -> None:
    samples = make_samples((1, 7, 5, 10), (2, 7, 3, 20), (3, 7, 1, 20), (1, 8, 2, 30))
    assert samples["user_ratings"].tolist() == [0, 0, 0, 1]
    assert samples["movie_ratings"].tolist() == [0, 1, 1, 0]
    # Five ratings of 3 stars before the first one, and then five of the mean of all ratings so far.
    overall = [3, (15 + 5) / 6, (15 + 5) / 6, (15 + 9) / 8]
    users = [overall[0], overall[1], overall[2], (5 + 5 * overall[3]) / 6]
    movies = [overall[0], (5 + 5 * overall[1]) / 6, (5 + 5 * overall[2]) / 6, overall[3]]
    np.testing.assert_allclose(samples["user_mean"], users, rtol=1e-6)
    np.testing.assert_allclose(samples["movie_mean"], movies, rtol=1e-6)


def test_every_row_matches_a_plain_count_of_what_came_before_it() -> None:
    log = make_log(300)
    samples = make_samples(*log)
    longest = 0
    for row in samples.itertuples():
        events = sorted((at, movie, stars) for user, movie, stars, at in log if user == row.user and at < row.timestamp)
        of_movie = [stars for _, movie, stars, at in log if movie == row.movie and at < row.timestamp]
        assert (row.user_ratings, row.movie_ratings) == (len(events), len(of_movie))
        for name, chosen in {"rated": range(1, 6), "liked": (4, 5), "disliked": (1, 2)}.items():
            expected = [(at, movie) for at, movie, stars in events if stars in chosen][-50:]
            found = zip(getattr(row, f"{name}_at").tolist(), getattr(row, name).tolist(), strict=True)
            assert list(found) == expected
        longest = max(longest, len(row.rated))
    assert samples.duplicated(["user", "timestamp"]).sum() > 30
    assert longest > 40


def test_what_happens_at_or_after_a_moment_never_changes_its_features() -> None:
    log = make_log(300)
    cut = log[200][3]
    changed = [line if line[3] < cut else (line[0], line[1], 6 - line[2], line[3]) for line in log]
    before, after = (make_samples(*lines) for lines in (log, changed))
    before, after = (samples[samples["timestamp"] <= cut].drop(columns=LABELS) for samples in (before, after))
    assert (before["timestamp"] == cut).sum() > 1
    pd.testing.assert_frame_equal(before, after)


def test_histories_keep_the_last_50() -> None:
    samples = make_samples(*[(1, movie, 5 if movie % 2 else 1, 1000 - movie) for movie in range(1, 121)])
    last = samples.iloc[-1]  # movie 1; the oldest rating is of movie 120
    assert last["movie"] == 1
    assert last["rated"].tolist() == list(range(51, 1, -1))
    assert last["liked"].tolist() == list(range(101, 1, -2))
    assert last["disliked_at"].tolist() == [1000 - movie for movie in range(100, 1, -2)]
    assert last["user_ratings"] == 119


def test_the_calendar_is_that_of_utc() -> None:
    row = make_samples((1, 1, 3, 881_250_949)).iloc[0]  # Thursday, 4 December 1997, 15:55:49
    assert (row["hour"], row["day_of_week"]) == (15, 3)


def test_the_split_keeps_a_moment_together() -> None:
    times = [*range(7), 7, 7, 7, *range(8, 18)]  # 80 % of 20 rows end before moment 14
    samples = make_samples(*[(1, 1 + i, 3, time) for i, time in enumerate(times)])
    splits = {name: rows["timestamp"].tolist() for name, rows in prepare.split_by_time(samples).items()}
    assert splits == {"train": times[:16], "validation": [14, 15], "test": [16, 17]}
    times = [*range(14), 14, 14, 14, 14, 14, 15]  # the cuts at rows 16 and 18 fall into moment 14
    samples = make_samples(*[(1 + i % 2, 1 + i, 3, time) for i, time in enumerate(times)])
    splits = {name: rows["timestamp"].tolist() for name, rows in prepare.split_by_time(samples).items()}
    assert splits == {"train": list(range(14)), "validation": [], "test": [14, 14, 14, 14, 14, 15]}


def test_ids_fit_their_tables() -> None:
    values = np.array([np.nan, -1.0, 0.0, 5.0, 1e9])
    assert prepare.bucket(values, (0.0, 5.0)).tolist() == [0, 1, 2, 3, 3]
    sizes = prepare.table_sizes()
    assert all(prepare.bucket(values, edges).max() == sizes[name] - 1 for name, (_, edges) in prepare.BUCKETS.items())
    for name, vocabulary in {"gender": prepare.GENDERS, "genres": prepare.GENRES}.items():
        assert prepare.encode(pd.Series([*vocabulary, "?"]), vocabulary).tolist() == [*range(1, sizes[name]), 0]


def test_the_tables_of_the_config_are_as_large_as_the_ids() -> None:
    features = yaml.safe_load((EXAMPLE / "dtrn.yaml").read_text())["features"]
    rows = {table["name"]: table["rows"] for table in features["tables"]}
    readers = {f["name"]: rows[f["table"]] for f in (*features["sparse"], *features["sequences"])}
    sizes = prepare.table_sizes()
    assert readers == {name: sizes[name if name in sizes else "movie"] for name in readers}


def test_fields_of_users_and_movies() -> None:
    source = prepare.read_source(make_wheel())
    rows = prepare.build_samples(source).set_index(["user", "movie"])
    assert rows.loc[(1, 1), ["age", "gender", "occupation", "zip_region"]].tolist() == [24, 2, 13, 9]
    assert rows.loc[(2, 1), ["age", "gender", "occupation", "zip_region"]].tolist() == [53, 1, 0, 0]
    assert rows.loc[(1, 1), "genres"].tolist() == [3, 4, 5]
    assert rows.loc[(1, 2), "genres"].tolist() == []
    assert np.isnan(rows.loc[(1, 2), "release_year"])
    assert rows.loc[(1, 3), ["release_year", "year_bucket"]].tolist() == [1939, 1]
    assert rows.loc[(1, 2), "year_bucket"] == 0


def test_a_rating_of_somebody_the_files_do_not_list_is_refused() -> None:
    wheel = make_wheel(user="user_id\tage\tgender\toccupation\tzip_code\n1\t24\tM\tnone\t85711\n")
    with pytest.raises(ValueError, match="names a user or a movie that the files do not list"):
        prepare.build_samples(prepare.read_source(wheel))


def test_wheel_with_another_checksum_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "recbole.whl"
    wheel.write_bytes(b"not the wheel")
    assert prepare.main(["--wheel", str(wheel), "--out", str(tmp_path / "out")]) == 1
    assert "expected " + prepare.WHEEL_SHA256 in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_wheel_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--wheel", str(tmp_path / "none.whl"), "--out", str(tmp_path / "out")]) == 1
    assert f"--wheel: no file {tmp_path / 'none.whl'}; give the wheel of recbole==1.2.1" in capsys.readouterr().err


def test_failed_download_points_to_the_wheel_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare.sys, "executable", "false")
    with pytest.raises(ValueError, match=r"could not download recbole==1\.2\.1.*\n.*--wheel FILE"):
        prepare.read_wheel(None)


def test_a_wheel_without_the_files_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(ValueError, match=r"no file recbole/dataset_example/ml-100k/ml-100k\.inter"):
        prepare.read_source(buffer.getvalue())


def test_a_file_with_other_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ml-100k\.item: columns are \['item_id', 'name'\], expected"):
        prepare.read_source(make_wheel(item="item_id:token\tname:token\n1\tx\n"))


def test_main_writes_the_same_complete_files_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = make_wheel()
    (tmp_path / "recbole.whl").write_bytes(wheel)
    monkeypatch.setattr(prepare, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    arguments = ["--wheel", str(tmp_path / "recbole.whl"), "--out", str(tmp_path / "out")]
    assert prepare.main(arguments) == 0
    assert "new user" in capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["test.parquet", "train.parquet", "validation.parquet"]
    assert prepare.main(arguments) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


def test_the_schema_of_the_files(tmp_path: Path) -> None:
    splits = prepare.split_by_time(prepare.build_samples(prepare.read_source(make_wheel())))
    prepare.write_splits(splits, out=tmp_path)
    tables = {name: pq.read_table(tmp_path / f"{name}.parquet") for name in splits}
    assert {name: len(table) for name, table in tables.items()} == {"train": 16, "validation": 2, "test": 2}
    [schema] = {table.schema.remove_metadata() for table in tables.values()}
    types = dict(zip(schema.names, schema.types, strict=True))
    assert {types.pop(name).value_type for name in ("genres", *LISTS)} == {pa.int64()}
    assert {name: types[name] for name in INTS} == dict.fromkeys(INTS, pa.int64())
    assert {name: kind for name, kind in types.items() if kind != pa.int64()} == dict.fromkeys(FLOATS, pa.float32())
    assert set(prepare.table_sizes()) <= set(schema.names)
    rows = tables["train"].to_pylist()
    assert [row["release_year"] for row in rows if row["movie"] == 2] == [None, None]
    assert rows[2]["rated"] == [1]
    assert rows[2]["rated_at"] == [1000]


def test_killed_run_leaves_no_file_that_looks_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(*make_log(30))
    write_table = pq.write_table

    def die_at_test(table: object, path: Path, **options: int) -> None:
        if path.stem == "test":
            raise KeyboardInterrupt
        write_table(table, path, **options)

    monkeypatch.setattr(prepare.pq, "write_table", die_at_test)
    with pytest.raises(KeyboardInterrupt):
        prepare.write_splits(prepare.split_by_time(samples), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_reference_auc_on_known_orders() -> None:
    reference = load_script("lightgbm_reference")
    labels = np.array([0.0, 0.0, 1.0, 1.0])
    assert reference.auc(labels, np.array([1.0, 2.0, 2.0, 3.0])) == 0.875


def test_reference_sees_a_column_a_genre_and_no_label() -> None:
    reference = load_script("lightgbm_reference")
    assert len(prepare.GENRES) == reference.NUM_GENRES
    seen = reference.design(make_samples((1, 1, 5, 10), (1, 2, 3, 20)))
    assert not set(seen.columns) & {*LABELS, "user", "movie", "timestamp"}
    genres = seen.filter(like="genre_")
    assert genres.columns[genres.all()].tolist() == ["genre_8", "genre_17"]  # Drama, War
    assert genres.to_numpy().sum() == 4


def test_reference_writes_the_figures_of_the_test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = load_script("lightgbm_reference")
    samples = make_samples((1, 1, 5, 10), (1, 2, 3, 20))
    for name in reference.SPLITS:
        samples.to_parquet(tmp_path / f"{name}.parquet")
    right = {"validation": np.array([0.0, 1.0]), "test": np.array([1.0, 0.0])}  # the first row is liked and loved
    monkeypatch.setattr(reference, "find_spec", lambda name: True)
    monkeypatch.setattr(reference, "version", lambda name: "0")
    monkeypatch.setattr(reference, "TASKS", ("like", "love"))
    monkeypatch.setattr(reference, "_predict", lambda inputs, labels, *, seed: right)
    out = tmp_path / "made" / "figures.json"
    assert reference.main(["--data", str(tmp_path), "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == {t: {"metric": "auc", "untuned": [1.0]} for t in ("like", "love")}


def test_reference_says_what_to_run_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = load_script("lightgbm_reference")
    assert reference.main(["--data", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
