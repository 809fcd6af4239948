"""MovieLens's rows for retrieval: order, histories, the split of each user, negatives, popularity, and the files."""

import hashlib
import io
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.scripts import load_script

SCRIPT = Path(__file__).parents[3] / "examples" / "movielens" / "prepare_retrieval.py"
SPLITS = ["train", "validation", "test"]
OUTCOMES = ["click", "like", "love", "rating"]
ITEM = ["movie", "genres", "year_bucket", "popularity_bucket", "log_popularity"]
LISTS = ["rated", "liked", "genres", "seen"]
FLOATS = ["log_popularity", "rating"]
Line = tuple[int, int, int, int]  # user, movie, stars, moment


retrieval, prepare = load_script(SCRIPT)


def make_source(*log: Line, movies: int = 60) -> object:
    ratings = pd.DataFrame(log, columns=["user", "movie", "rating", "timestamp"])
    users = sorted(set(ratings["user"]))
    return prepare.Source(
        ratings=ratings,
        users=pd.DataFrame({"user": users, "age": 30, "gender": "F", "occupation": "writer", "zip_code": "01234"}),
        movies=pd.DataFrame(
            {
                "movie": range(1, movies + 1),
                "release_year": np.where(np.arange(movies) % 5, 1995.0, np.nan),
                "genres": [["Drama", "War"] if movie % 2 else ["unknown"] for movie in range(movies)],
            }
        ),
    )


def make_log(size: int, movies: int = 60) -> list[Line]:
    """Ratings of 6 users in no order of time, of which many share a second."""
    generator = np.random.default_rng(0)
    pairs = generator.permutation([(user, movie) for user in range(1, 7) for movie in range(1, movies + 1)])[:size]
    stars, times = generator.integers(1, 6, size), generator.integers(0, size // 3, size)
    return [(int(pairs[i][0]), int(pairs[i][1]), int(stars[i]), int(times[i])) for i in range(size)]


def make_splits(*log: Line, negatives: int = 4, seed: int = 0, movies: int = 60) -> dict[str, pd.DataFrame]:
    return retrieval.build_files(make_source(*log, movies=movies), negatives=negatives, seed=seed)[1]


def user_orders(log: list[Line]) -> dict[int, list[Line]]:
    """Each user's lines by moment; those of one moment as they come."""
    return {user: sorted((line for line in log if line[0] == user), key=lambda line: line[3]) for user, *_ in log}


def taken_by(log: list[Line], split: str) -> dict[int, set[int]]:
    """The movies that each user has rated up to and with the split."""
    left_out = {"train": 2, "validation": 1, "test": 0}[split]
    return {user: {line[1] for line in lines[: len(lines) - left_out]} for user, lines in user_orders(log).items()}


def make_wheel() -> bytes:
    log = make_log(100)
    texts = {
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"{user}\t{movie}\t{stars}\t{1000 + at}\n" for user, movie, stars, at in log),
        "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        + "1\t24\tM\tnone\t85711\n2\t53\tF\tother\tT8H1N\n"
        + "".join(f"{user}\t17\tM\twriter\t12345\n" for user in range(3, 7)),
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "1\t\"Story\t1995\tAnimation Children's Comedy\n2\tnull\tunkonwn\tunknown\n"
        + "".join(f"{movie}\tTitle {movie}\t1939\tFilm-Noir\n" for movie in range(3, 61)),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in texts.items():
            archive.writestr(prepare.MEMBER.format(name), text)
    return buffer.getvalue()


def test_each_user_is_split_last_out() -> None:
    log = [(1, 10, 3, 400), (1, 11, 3, 100), (1, 12, 3, 300), (1, 13, 3, 200), (2, 10, 3, 900), (2, 11, 3, 800)]
    log += [(3, 10, 3, 5), (3, 11, 3, 5), (3, 9, 3, 5), (4, 10, 3, 7)]  # one moment: as they come
    splits = make_splits(*log, negatives=0)
    found = {name: list(zip(rows["user"], rows["movie"], strict=True)) for name, rows in splits.items()}
    assert found == {
        "train": [(3, 10), (4, 10), (1, 11), (1, 13), (2, 11), (2, 10)],  # by moment; users of 1 and 2 ratings whole
        "validation": [(3, 11), (1, 12)],
        "test": [(3, 9), (1, 10)],
    }


def test_no_user_has_enough_ratings_for_the_other_splits() -> None:
    splits = make_splits((1, 10, 5, 1), (1, 11, 5, 2), (2, 12, 5, 3))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 15, "validation": 0, "test": 0}


def test_every_rating_matches_a_plain_scan_of_what_came_before_it() -> None:
    log = make_log(330)
    orders = user_orders(log)
    longest = 0
    for name, rows in make_splits(*log, negatives=1).items():
        for row in rows[rows["click"] == 1].itertuples():
            line = next(line for line in log if line[:2] == (row.user, row.movie))
            place = orders[row.user].index(line)
            after = len(orders[row.user]) - place - 1
            assert name == ("test", "validation", "train")[min(after, 2)]
            rated = [movie for _, movie, _, _ in orders[row.user][:place]]
            liked = [movie for _, movie, stars, _ in orders[row.user][:place] if stars >= 4]
            assert (row.rated.tolist(), row.liked.tolist()) == (rated[-50:], liked[-50:])
            assert (row.last_movie, row.last_liked) == ([0, *rated][-1], [0, *liked][-1])
            assert row.user_ratings_bucket == prepare.bucket(np.array([len(rated)], float), prepare.COUNT)[0]
            assert row.timestamp == line[3]
            assert (row.like, row.love, row.rating) == (line[2] >= 4, line[2] == 5, line[2])
            if name != "train":
                assert row.seen.tolist() == rated
            longest = max(longest, len(rated))
    assert longest > 50
    assert pd.DataFrame(log).duplicated([0, 3]).sum() > 50


def test_a_rating_and_what_follows_it_never_change_its_features() -> None:
    log = make_log(330)
    orders = user_orders(log)
    cut = {user: lines[len(lines) // 2] for user, lines in orders.items()}
    late = {line for user, lines in orders.items() for line in lines[lines.index(cut[user]) :]}
    changed = [
        (user, movie, 6 - stars if (user, movie, stars, at) in late else stars, at) for user, movie, stars, at in log
    ]
    before, after = (make_splits(*lines)["train"].drop(columns=OUTCOMES) for lines in (log, changed))
    kept = [(row.user, row.timestamp) not in {(u, a) for u, _, _, a in late} for row in before.itertuples()]
    at_cut = before["movie"].eq(before["user"].map({user: line[1] for user, line in cut.items()}))
    assert at_cut.sum() >= 6
    rows = at_cut | pd.Series(kept)
    pd.testing.assert_frame_equal(before[rows], after[rows])
    assert not before["last_liked"].equals(after["last_liked"])


def test_train_has_no_seen_and_all_else_alike() -> None:
    splits = make_splits(*make_log(100))
    columns = {name: set(rows.columns) for name, rows in splits.items()}
    assert columns["validation"] == columns["test"] == columns["train"] | {"seen"}
    assert "seen" not in columns["train"]


def test_negatives_stand_behind_their_rating_and_share_all_but_the_movie() -> None:
    splits = make_splits(*make_log(200), negatives=3)
    for rows in splits.values():
        assert rows["click"].tolist() == [1, 0, 0, 0] * (len(rows) // 4)
        assert rows["timestamp"].is_monotonic_increasing
        assert (rows.loc[rows["click"] == 0, OUTCOMES] == 0).all(axis=None)
        shared = rows[[name for name in rows.columns if name not in {*ITEM, *OUTCOMES}]]
        for number in range(1, 4):
            for name in shared:
                positives, negatives = shared[name][::4].tolist(), shared[name][number::4].tolist()
                assert all(np.array_equal(a, b) for a, b in zip(positives, negatives, strict=True))


def test_negatives_are_what_the_user_has_not_rated_up_to_and_with_the_split() -> None:
    log = make_log(300)
    for name, rows in make_splits(*log, negatives=200).items():
        taken = taken_by(log, name)
        negatives = rows[rows["click"] == 0]
        drawn = {user: set(movies) for user, movies in negatives.groupby("user")["movie"]}
        assert drawn == {
            user: set(range(1, 61)) - movies for user, movies in taken.items()
        }  # answers of later splits too


def test_draws_are_uniform_over_the_movies_that_are_free() -> None:
    catalogue = pd.Series([3, 4, 7, 8, 9, 20])
    taken = pd.DataFrame({"user": [5, 5, 5, 9, 9, 9, 9, 9, 7], "movie": [3, 8, 3, 4, 7, 8, 9, 20, 20]})
    free = {5: [4, 7, 9, 20], 9: [3], 7: [3, 4, 7, 8, 9], 6: [3, 4, 7, 8, 9, 20]}
    users = np.random.default_rng(1).permutation(np.repeat([5, 9, 7, 6], 6000))
    movies = retrieval.draw_movies(users, catalogue, taken=taken, generator=np.random.default_rng(0))
    for user, expected in free.items():
        counts = Counter(movies[users == user].tolist())
        assert sorted(counts) == expected
        assert all(abs(count - 6000 / len(expected)) < 5 * np.sqrt(6000 / len(expected)) for count in counts.values())


def test_a_user_of_all_movies_has_no_negative() -> None:
    log = [(1, movie, 3, movie) for movie in range(1, 7)]
    with pytest.raises(ValueError, match="user 1 has rated all 6 movies, and none is left to draw; give --negatives 0"):
        make_splits(*log, movies=6)
    assert [len(rows) for rows in make_splits(*log, movies=6, negatives=0).values()] == [4, 1, 1]


def test_the_seed_changes_the_draws_and_nothing_else() -> None:
    one, same, other = (make_splits(*make_log(200), seed=seed) for seed in (1, 1, 2))
    for name in SPLITS:
        pd.testing.assert_frame_equal(one[name], same[name])
        assert (one[name]["movie"] != other[name]["movie"]).mean() > 0.5
        pd.testing.assert_frame_equal(one[name].drop(columns=ITEM), other[name].drop(columns=ITEM))


def test_items_hold_the_whole_catalogue_and_count_train_only() -> None:
    log = make_log(300)
    items, splits = retrieval.build_files(make_source(*log, movies=70), negatives=2, seed=0)
    assert items["movie"].tolist() == list(range(1, 71))
    trained = [movie for user, movies in taken_by(log, "train").items() for movie in movies]
    counts = np.array([trained.count(movie) for movie in items["movie"]], float)
    assert counts.sum() == 300 - 2 * 6
    np.testing.assert_allclose(items["log_popularity"], np.log1p(counts), rtol=1e-6)
    assert items["popularity_bucket"].tolist() == prepare.bucket(counts, prepare.COUNT).tolist()
    assert items["year_bucket"][:2].tolist() == [0, 12]  # not known, 1995
    assert [ids.tolist() for ids in items["genres"][:2]] == [[], [8, 17]]  # unknown; Drama, War
    for rows in splits.values():
        expected = items.set_index("movie").loc[rows["movie"]].reset_index()
        pd.testing.assert_frame_equal(rows[ITEM], expected[ITEM])


def test_a_rating_of_somebody_the_files_do_not_list_is_refused() -> None:
    with pytest.raises(ValueError, match="names a user or a movie the files do not list"):
        make_splits((1, 61, 3, 1))


@pytest.mark.parametrize("option", ["negatives", "seed"])
def test_options_below_0_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        retrieval.main([f"--{option}", "-1"])
    assert f"argument --{option}: -1 is below 0; give 0 or more" in capsys.readouterr().err


def test_the_script_finds_its_neighbour_and_names_a_missing_wheel(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--wheel", str(tmp_path / "none.whl")]
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"error: --wheel: no file {tmp_path / 'none.whl'}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_main_writes_the_same_complete_files_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = make_wheel()
    (tmp_path / "recbole.whl").write_bytes(wheel)
    monkeypatch.setattr(prepare, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    arguments = ["--wheel", str(tmp_path / "recbole.whl"), "--out", str(tmp_path / "out")]
    assert retrieval.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "0.2000" in printed
    assert "items: 60" in printed
    assert "popularity_bucket 12" in printed
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["items.parquet", "test.parquet", "train.parquet", "validation.parquet"]
    assert retrieval.main(arguments) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    tables = {name: pq.read_table(io.BytesIO(files[f"{name}.parquet"])) for name in ("items", *SPLITS)}
    assert {name: len(table) for name, table in tables.items()} == {
        "items": 60,
        "train": 5 * (100 - 12),
        "validation": 30,
        "test": 30,
    }


def test_the_schema_and_the_ids_of_the_files(tmp_path: Path) -> None:
    source = prepare.read_source(make_wheel())
    items, splits = retrieval.build_files(source, negatives=4, seed=0)
    prepare.write_splits({"items": items, **splits}, out=tmp_path)
    tables = {name: pq.read_table(tmp_path / f"{name}.parquet") for name in ("items", *SPLITS)}
    assert tables["items"].schema.names == ITEM
    sizes = retrieval.table_sizes()
    for table in tables.values():
        for name, kind in zip(table.schema.names, table.schema.types, strict=True):
            if name in LISTS:
                assert kind.value_type == pa.int64()
            else:
                assert kind == (pa.float32() if name in FLOATS else pa.int64())
            assert table[name].null_count == 0
            if name in {*sizes, "rated", "liked", "seen", "last_movie", "last_liked"}:
                values = table[name].combine_chunks()
                ids = np.asarray(values.flatten() if name in LISTS else values)
                assert 0 <= ids.min() <= ids.max() < sizes[name if name in sizes else "movie"]
    users = {row["user"]: row for row in tables["train"].to_pylist()}
    assert [users[1][name] for name in ("age_bucket", "gender", "occupation")] == [2, 2, 13]
    assert [users[2][name] for name in ("age_bucket", "gender", "occupation")] == [6, 1, 14]
    assert tables["items"].to_pylist()[0]["genres"] == [3, 4, 5]
    assert set(sizes) <= set(tables["train"].schema.names)
