"""From a run to an index and back: the best items of each query by hand, weights, what was seen, and mistakes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.retrieval_runs import HEAD, NUM_ITEMS, make_files, retrieval_config, vectors
from tests.runs import train_one, write
from torchrec_mtl.cli import app
from torchrec_mtl.retrieval.index import ItemIndex
from torchrec_mtl.training.distributed import process_group

pytest.importorskip("faiss")
K = 7


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=["item_per_task", "user_per_task"])
def run(request, files, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / request.param
    with process_group("cpu"):
        train_one(retrieval_config(files, run_dir, head={**HEAD, "layout": request.param}))
    return run_dir


def call(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def index(run, files, folder, *words):
    return call("index", run, "--items", files["items"], "--out", folder, *words)


def test_what_is_found_is_what_has_the_best_scores_and_was_not_seen(run, files, tmp_path):
    code, said = index(run, files, tmp_path / "index")
    assert (code, said) == (0, f"{NUM_ITEMS} items in {tmp_path / 'index'}: flat, exact\n")
    out = tmp_path / "found.parquet"
    code, said = call(
        "search", tmp_path / "index", "--queries", files["eval"], "-k", K, "--out", out, "--weight", "long_view=3"
    )
    assert (code, said) == (0, f"{3 * 64 - 10} queries written to {out}\n")
    rows, found = pq.read_table(files["eval"]).to_pylist(), pq.read_table(out).to_pylist()
    names = pq.read_table(files["items"])["item_id"].to_pylist()
    queries = vectors(run, files["eval"], "user") * np.float32([[[1], [3]]])
    scores = queries.sum(1) @ vectors(run, files["items"], "item").T
    assert [row["user_id"] for row in found] == [row["user_id"] for row in rows]
    for row, answer, mine in zip(rows, found, scores, strict=True):
        left = {name: score for name, score in zip(names, mine.tolist(), strict=True) if name not in row["seen"]}
        assert answer["ids"] == sorted(left, key=lambda name: -left[name])[:K]
        assert answer["scores"] == pytest.approx([left[name] for name in answer["ids"]], rel=1e-5)


def test_without_a_column_of_what_was_seen_all_items_are_found(run, files, tmp_path):
    index(run, files, tmp_path / "index")
    users = write(tmp_path / "users.parquet", pq.read_table(files["eval"]).select(["user_id", "watched"]).slice(0, 3))
    call("search", tmp_path / "index", "--queries", users, "-k", NUM_ITEMS + 2, "--out", tmp_path / "found.parquet")
    for row in pq.read_table(tmp_path / "found.parquet").to_pylist():
        assert set(row["ids"][:-2]) == set(range(NUM_ITEMS))
        assert row["ids"][-2:] == [None, None]


def test_where_too_much_was_seen_the_last_places_are_empty(run, files, tmp_path):
    index(run, files, tmp_path / "index")
    users = pq.read_table(files["eval"]).select(["user_id", "watched"]).slice(0, 2)
    users = users.append_column("seen", pa.array([list(range(NUM_ITEMS - 2)), [999]]))
    path = write(tmp_path / "users.parquet", users)
    call("search", tmp_path / "index", "--queries", path, "-k", 4, "--out", tmp_path / "found.parquet")
    most, none = pq.read_table(tmp_path / "found.parquet").to_pylist()
    assert set(most["ids"][:2]) == {NUM_ITEMS - 2, NUM_ITEMS - 1}
    assert most["ids"][2:] == [None, None]
    assert most["scores"][2:] == [-np.inf] * 2
    assert None not in none["ids"]


def test_an_approximate_index_says_how_much_of_the_exact_answer_it_finds(run, files, tmp_path):
    code, said = index(run, files, tmp_path / "index", "kind=ivf", "lists=4", "probes=4")
    assert (code, said) == (
        0,
        f"{NUM_ITEMS} items in {tmp_path / 'index'}: ivf, recall@{NUM_ITEMS} 1.0000 of the exact\n",
    )


def test_further_items_join(run, files, tmp_path):
    corpus = pq.read_table(files["items"])
    parts = [write(tmp_path / f"{i}.parquet", part) for i, part in enumerate((corpus.slice(0, 50), corpus.slice(50)))]
    for part, words in zip(parts, ([], ["--add"]), strict=True):
        assert call("index", run, "--items", part, "--out", tmp_path / "index", *words)[0] == 0
    index(run, files, tmp_path / "whole")
    one, other = (ItemIndex.load(tmp_path / name) for name in ("index", "whole"))
    assert one.ids.equals(other.ids)
    queries = vectors(run, files["eval"], "user")
    assert one.search(queries, 5)[0].equals(other.search(queries, 5)[0])
    code, said = call("index", run, "--items", parts[1], "--out", tmp_path / "index", "--add")
    assert code == 1
    assert "10 ids are in the index already" in said


def test_items_of_another_training_do_not_join(run, files, tmp_path):
    index(run, files, tmp_path / "index")
    about = json.loads((tmp_path / "index" / "index.json").read_text())
    about["notes"]["checkpoint"] = "0" * 64
    (tmp_path / "index" / "index.json").write_text(json.dumps(about))
    code, said = index(run, files, tmp_path / "index", "--add")
    assert code == 1
    assert "made of another checkpoint" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kind=hsnw"], "no kind of index 'hsnw'"),
        (["probe=3"], "no such setting. Did you mean 'probes'?"),
        (["kind=hnsw", "ef_search=many"], "ef_search=many: expected a whole number"),
    ],
)
def test_mistakes_in_settings_are_named(run, files, tmp_path, words, message):
    code, said = index(run, files, tmp_path / "index", *words)
    assert code == 1
    assert message in said
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("long=2", "weights name 'long'"),
        ("click", "--weight: expected TASK=NUMBER"),
        ("click=much", "--weight: expected"),
    ],
)
def test_mistakes_in_weights_are_named(run, files, tmp_path, weight, message):
    index(run, files, tmp_path / "index")
    code, said = call(
        "search", tmp_path / "index", "--queries", files["eval"], "--out", tmp_path / "found", "--weight", weight
    )
    assert code == 1
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_items_without_names_or_features_are_refused(run, files, tmp_path):
    corpus = pq.read_table(files["items"])
    path = write(tmp_path / "items.parquet", corpus.drop_columns(["item_id"]))
    code, said = call("index", run, "--items", path, "--out", tmp_path / "index")
    assert code == 1
    assert "no column item_id, which names the items" in said
    path = write(tmp_path / "items.parquet", corpus.drop_columns(["tags"]))
    code, said = call("index", run, "--items", path, "--out", tmp_path / "index")
    assert code == 1
    assert "feature 'tags', column 'tags': not in" in said


def test_an_index_of_other_tasks_does_not_fit_the_run(run, files, tmp_path):
    width = vectors(run, files["items"], "item").shape[1]
    made = ItemIndex.build(pa.array([1]), np.ones((1, width), np.float32), ["buy"], notes={"run": str(run)})
    made.save(tmp_path / "index")
    code, said = call("search", tmp_path / "index", "--queries", files["eval"], "--out", tmp_path / "found")
    assert code == 1
    assert "is an index of the tasks buy, and" in said
